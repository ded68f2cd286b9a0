"""LLVM IR: a builder for loop nests with vectors, and a loader for tests, benchmarks and tuning."""
