"""Kernels that Numba compiles: the imperative functions of opaque ops, and the readable form of loop kernels."""
