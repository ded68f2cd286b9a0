"""Constants in text: nested lists, hexadecimal bytes, or a hash that a table of arrays resolves.

One each::

    dense<f32[2, 2]: [[1.0, 2.5], [-0.0, inf]]>
    dense<i8[3]: 0x01ff7f>
    dense<f32[64, 3, 7, 7]: sha256:5f70bf18a08660...>

The last has all 64 digits of the SHA-256 of element type, shape and bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dhc.ir.dtypes import DType, f64
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.text.formats import format_float, format_string

INLINE_ELEMENTS = 16
"""Constants up to this many elements are written as nested lists unless the caller asks for all or none."""

MAX_BYTES = 1 << 32
"""The largest constant that the parser takes, checked before anything is allocated."""


def _little_endian(array: np.ndarray) -> bytes:
    """The bytes in row-major, little-endian order."""
    plain = np.ascontiguousarray(array)
    if plain.dtype.byteorder == ">":
        plain = plain.astype(plain.dtype.newbyteorder("<"))
    return plain.tobytes()


def _header(array: np.ndarray) -> str:
    return f"{as_dtype(array.dtype)}[{', '.join(str(n) for n in array.shape)}]"


def array_hash(array: np.ndarray) -> str:
    """SHA-256 of element type, shape and little-endian bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256(_header(array).encode())
    digest.update(_little_endian(array))
    return digest.hexdigest()


def _float_text(value: Any, dtype: DType) -> str:
    """The shortest decimal that reads back as the same number of this dtype."""
    number = float(value)
    if dtype == f64 or not math.isfinite(number):
        return format_float(number)
    kind = dtype.numpy.type
    with np.errstate(over="ignore"):
        for digits in range(1, 18):
            text = f"{number:.{digits}g}"
            if kind(float(text)) == value:
                return text if any(c in text for c in ".e") else text + ".0"
    return format_float(number)


def _element(value: Any, dtype: DType) -> str:
    if dtype.kind == "b":
        return "true" if value else "false"
    if dtype.is_integer:
        return str(int(value))
    if dtype.kind == "f":
        return _float_text(value, dtype)
    if dtype.kind == "c":
        part = f64 if dtype.bits == 128 else as_dtype("f32")
        return f"({_float_text(value.real, part)}, {_float_text(value.imag, part)})"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return format_string(value)


def _nested(texts: Iterator[str], shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "[]"
    if not shape:
        return next(texts)
    return f"[{', '.join(_nested(texts, shape[1:]) for _ in range(shape[0]))}]"


def _decimal_is_exact(array: np.ndarray, dtype: DType) -> bool:
    """False when a NaN carries bits that the word `nan` would lose."""
    if dtype.kind not in "fc":
        return True
    part = array if dtype.kind == "f" else array.view(array.real.dtype)
    flat = np.ascontiguousarray(part).reshape(-1)
    odd = flat[np.isnan(flat.astype(np.float64))]
    return _little_endian(odd) == _little_endian(np.full(odd.shape, math.nan, dtype=odd.dtype))


def format_dense(array: np.ndarray, mode: str, collect: dict[str, np.ndarray] | None) -> str:
    """Text of a constant.

    Args:
        array: the elements.
        mode: ``full`` (small as lists, large as bytes), ``inline`` (all as lists) or ``elide`` (large as a hash).
        collect: receives elided arrays by hash.
    """
    dtype = as_dtype(array.dtype)
    header = _header(array)
    small = array.size <= INLINE_ELEMENTS or mode == "inline"
    if dtype.kind == "s" or (small and _decimal_is_exact(np.ascontiguousarray(array), dtype)):
        texts = (_element(value, dtype) for value in array.reshape(-1))
        return f"dense<{header}: {_nested(texts, array.shape)}>"
    if mode == "elide" and not small:
        key = array_hash(array)
        if collect is not None:
            collect[key] = array
        return f"dense<{header}: sha256:{key}>"
    return f"dense<{header}: 0x{_little_endian(array).hex()}>"


def check_size(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a constant.

    Raises:
        ValueError: it is larger than MAX_BYTES or has too many axes.
    """
    if len(shape) > 32:
        raise ValueError(f"a constant of rank {len(shape)} is not supported (at most 32)")
    total = max(dtype.itemsize, 1)
    for size in shape:
        total *= size
    if total > MAX_BYTES or any(size > MAX_BYTES for size in shape):
        raise ValueError(f"a constant of shape {list(shape)} is larger than the limit of {MAX_BYTES} bytes")
    return total


def from_hex(digits: str, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """The array of the given little-endian bytes.

    Raises:
        ValueError: there are too many or too few of them.
    """
    wanted = check_size(dtype, shape)
    if len(digits) != 2 * wanted:
        raise ValueError(f"{wanted} bytes need {2 * wanted} hexadecimal digits, got {len(digits)}")
    stored = dtype.numpy
    if dtype.kind == "b" and set(digits[1::2]) - {"0", "1"}:
        raise ValueError("a bool is the byte 00 or 01")
    little = stored.newbyteorder("<") if stored.kind in "iufc" and stored.itemsize > 1 else stored
    array = np.frombuffer(bytes.fromhex(digits), dtype=little).astype(stored, copy=False)
    return array.reshape(shape)


def from_elements(elements: list[Any], dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """The array of the given elements in row-major order (their number already checked).

    Raises:
        ValueError: an element does not fit the dtype.
    """
    check_size(dtype, shape)
    if dtype.is_integer:
        low, high = dtype.min, dtype.max
        for value in elements:
            if not low <= value <= high:
                raise ValueError(f"{value} does not fit {dtype}")
    if dtype.kind == "s":
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(shape)
    with np.errstate(over="ignore"):
        return np.array(elements, dtype=dtype.numpy).reshape(shape)
