"""Element types of dhc and the NumPy types that hold them.

NumPy lacks some of them: bf16 and the small floats are arrays of ``ml_dtypes`` when that package is installed,
otherwise unsigned integers of the same width (the bits); i4, u4, i2 and u2 hold one value in each int8 or uint8.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import numpy as np

from dhc_runtime.errors import ArtifactError

__all__ = ["accepted_dtypes", "is_dtype", "itemsize", "numpy_dtype", "storage_dtype", "value_range"]

_STORAGE: Dict[str, str] = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "uint16",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "i4": "int8",
    "u4": "uint8",
    "bool": "bool",
    "c64": "complex64",
    "c128": "complex128",
    "f8e4m3fn": "uint8",
    "f8e4m3fnuz": "uint8",
    "f8e5m2": "uint8",
    "f8e5m2fnuz": "uint8",
    "f8e8m0": "uint8",
    "f4e2m1": "uint8",
    "i2": "int8",
    "u2": "uint8",
}
_STORAGE_DTYPES: Dict[str, "np.dtype[Any]"] = {name: np.dtype(text) for name, text in _STORAGE.items()}
_EXTENDED = {
    "bf16": "bfloat16",
    "f8e4m3fn": "float8_e4m3fn",
    "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2": "float8_e5m2",
    "f8e5m2fnuz": "float8_e5m2fnuz",
    "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float4_e2m1fn",
}
_RANGES = {"i4": (-8, 7), "u4": (0, 15), "i2": (-2, 1), "u2": (0, 3)}
_extended_cache: Dict[str, Optional["np.dtype[Any]"]] = {}


def is_dtype(name: Any) -> bool:
    """Whether ``name`` is an element type that the runtime knows."""
    return isinstance(name, str) and name in _STORAGE_DTYPES


def storage_dtype(name: str) -> "np.dtype[Any]":
    """The NumPy type of the bytes in memory: for bf16 uint16, for i4 int8.

    Raises:
        ArtifactError: the element type is unknown.
    """
    try:
        return _STORAGE_DTYPES[name]
    except KeyError:
        raise ArtifactError(
            "The element type {!r} is unknown to this runtime".format(name), hint="Install a newer dhc-runtime"
        ) from None


def itemsize(name: str) -> int:
    """Bytes of one element in memory."""
    return int(storage_dtype(name).itemsize)


def numpy_dtype(name: str) -> "np.dtype[Any]":
    """The NumPy type in which the user sees values of this element type."""
    if name not in _EXTENDED:
        return storage_dtype(name)
    if name not in _extended_cache:
        try:
            import ml_dtypes
        except ImportError:
            _extended_cache[name] = None
        else:
            extended = getattr(ml_dtypes, _EXTENDED[name], None)
            _extended_cache[name] = None if extended is None else np.dtype(extended)
    found = _extended_cache[name]
    return storage_dtype(name) if found is None else found


def accepted_dtypes(name: str) -> Tuple["np.dtype[Any]", ...]:
    """The NumPy types that an input of this element type may have."""
    storage, shown = storage_dtype(name), numpy_dtype(name)
    return (shown,) if shown == storage else (shown, storage)


def value_range(name: str) -> Optional[Tuple[int, int]]:
    """Smallest and largest value where the storage type holds more than the element type; otherwise None."""
    return _RANGES.get(name)
