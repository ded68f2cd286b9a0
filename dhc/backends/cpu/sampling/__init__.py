"""Kernels that resize maps, row by row in vectors."""
