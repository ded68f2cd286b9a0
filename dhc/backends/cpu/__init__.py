"""The CPU backend: kernels through LLVM, one native step list per segment."""
