"""Measured choice of methods and block sizes, where cost models choose otherwise (`dhc compile --tune`)."""
