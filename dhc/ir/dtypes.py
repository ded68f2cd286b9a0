"""Element types of tensors.

A `DType` is an interned, immutable record. Names are the short ones of the text form (`f32`, `i8`, `bool`).
Storage follows NumPy; `bf16` and the small floats use the NumPy extension types of `ml_dtypes`, integers of 4 and 2
bits are kept one value per byte in memory and only packed inside artifacts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: short name, e.g. ``f32``.
        kind: ``f`` float, ``i`` signed, ``u`` unsigned, ``b`` bool, ``c`` complex, ``s`` string.
        bits: significant bits of one element.
        storage: name of the NumPy type that holds it (``ml_dtypes`` names allowed).
    """

    name: str
    kind: str
    bits: int
    storage: str = field(repr=False)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type that stores elements of this type."""
        cached = _NUMPY.get(self.name)
        if cached is None:
            cached = _resolve_storage(self.storage)
            _NUMPY[self.name] = cached
        return cached

    @property
    def itemsize(self) -> int:
        """Bytes of one stored element (strings: 0, they never reach a device)."""
        if self.kind == "s":
            return 0
        return 2 if self.name == "bf16" else 1 if self.bits <= 8 else self.bits // 8

    @property
    def is_float(self) -> bool:
        """True for the real floating-point types."""
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for bool."""
        return self.kind in "iu"

    @property
    def min(self) -> int | float:
        """Smallest finite value."""
        if self.kind == "b":
            return 0
        if self.is_integer:
            return -(1 << (self.bits - 1)) if self.kind == "i" else 0
        return -self.max

    @property
    def max(self) -> int | float:
        """Largest finite value."""
        if self.kind == "b":
            return 1
        if self.is_integer:
            return (1 << (self.bits - (self.kind == "i"))) - 1
        if self.name == "bf16" or self.bits <= 8:
            import ml_dtypes

            return float(ml_dtypes.finfo(self.numpy).max)  # type: ignore[no-untyped-call]
        return float(np.finfo(self.numpy).max)

    def __str__(self) -> str:
        return self.name


_NUMPY: dict[str, np.dtype[Any]] = {}


def _resolve_storage(storage: str) -> np.dtype[Any]:
    if hasattr(np, storage):
        numpy_type: np.dtype[Any] = np.dtype(getattr(np, storage))
        return numpy_type
    import ml_dtypes

    extension_type: np.dtype[Any] = np.dtype(getattr(ml_dtypes, storage))
    return extension_type


f64 = DType("f64", "f", 64, "float64")
f32 = DType("f32", "f", 32, "float32")
f16 = DType("f16", "f", 16, "float16")
bf16 = DType("bf16", "f", 16, "bfloat16")
i64 = DType("i64", "i", 64, "int64")
i32 = DType("i32", "i", 32, "int32")
i16 = DType("i16", "i", 16, "int16")
i8 = DType("i8", "i", 8, "int8")
u64 = DType("u64", "u", 64, "uint64")
u32 = DType("u32", "u", 32, "uint32")
u16 = DType("u16", "u", 16, "uint16")
u8 = DType("u8", "u", 8, "uint8")
i4 = DType("i4", "i", 4, "int8")
u4 = DType("u4", "u", 4, "uint8")
i2 = DType("i2", "i", 2, "int8")
u2 = DType("u2", "u", 2, "uint8")
f8e4m3fn = DType("f8e4m3fn", "f", 8, "float8_e4m3fn")
f8e4m3fnuz = DType("f8e4m3fnuz", "f", 8, "float8_e4m3fnuz")
f8e5m2 = DType("f8e5m2", "f", 8, "float8_e5m2")
f8e5m2fnuz = DType("f8e5m2fnuz", "f", 8, "float8_e5m2fnuz")
f8e8m0 = DType("f8e8m0", "f", 8, "float8_e8m0fnu")
f4e2m1 = DType("f4e2m1", "f", 4, "float4_e2m1fn")
boolean = DType("bool", "b", 1, "bool_")
c64 = DType("c64", "c", 64, "complex64")
c128 = DType("c128", "c", 128, "complex128")
string = DType("str", "s", 0, "object_")

ALL: dict[str, DType] = {
    d.name: d
    for d in (
        f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, i4, u4, i2, u2,
        f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0, f4e2m1, boolean, c64, c128, string,
    )
}  # fmt: skip

FLOATS = frozenset({f64, f32, f16, bf16})
SIGNED = frozenset({i64, i32, i16, i8})
UNSIGNED = frozenset({u64, u32, u16, u8})
INTS = SIGNED | UNSIGNED
REALS = FLOATS | INTS
COMPLEX = frozenset({c64, c128})
NUMERIC = REALS | COMPLEX
BOOL = frozenset({boolean})
SUB_BYTE = frozenset({i4, u4, i2, u2})
MINIFLOATS = frozenset({f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0, f4e2m1})
"""Floats for storage: moved and converted, never computed with."""
INDEX = frozenset({i64, i32})
FIXED = NUMERIC | BOOL | SUB_BYTE | MINIFLOATS
"""Every type with a fixed-size element: what a device can hold."""
ANY = FIXED | frozenset({string})


def ordered(dtypes: Iterable[DType]) -> list[DType]:
    """Sorts dtypes into the declaration order of this module (stable across runs)."""
    chosen = set(dtypes)
    return [d for d in ALL.values() if d in chosen]


def dtype(spec: str | DType | np.dtype[Any] | type) -> DType:
    """Returns the DType named or described by `spec`.

    Args:
        spec: a DType, its short name, or anything `numpy.dtype` takes.

    Raises:
        TypeError: nothing in dhc corresponds to `spec`.
    """
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in ALL:
        return ALL[spec]
    found = _of_numpy(np.dtype(spec))
    if found is None:
        raise TypeError(f"no dhc element type corresponds to {spec!r}; known: {', '.join(ALL)}")
    return found


@functools.cache
def _of_numpy(described: np.dtype[Any]) -> DType | None:
    if described.kind in "OUS":
        return string
    for candidate in ALL.values():
        if candidate not in SUB_BYTE and candidate.kind != "s" and candidate.storage.rstrip("_") == described.name:
            return candidate
    return None
