"""ONNX TensorProto to NumPy, with every declared size checked before memory is taken."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.frontend.onnx.reader import open_external
from dhc.ir import dtypes
from dhc.ir.dtypes import DType

MAX_ELEMENTS = 2**40

# TensorProto.DataType -> dhc dtype
_DTYPES: dict[int, DType] = {
    1: dtypes.f32, 2: dtypes.u8, 3: dtypes.i8, 4: dtypes.u16, 5: dtypes.i16, 6: dtypes.i32, 7: dtypes.i64,
    8: dtypes.string, 9: dtypes.boolean, 10: dtypes.f16, 11: dtypes.f64, 12: dtypes.u32, 13: dtypes.u64,
    14: dtypes.c64, 15: dtypes.c128, 16: dtypes.bf16, 17: dtypes.f8e4m3fn, 18: dtypes.f8e4m3fnuz,
    19: dtypes.f8e5m2, 20: dtypes.f8e5m2fnuz, 21: dtypes.u4, 22: dtypes.i4, 23: dtypes.f4e2m1, 24: dtypes.f8e8m0,
    25: dtypes.u2, 26: dtypes.i2,
}  # fmt: skip


def from_onnx_dtype(code: int, where: str) -> DType:
    """The dhc dtype of an ONNX element type.

    Raises:
        UnsupportedError: dhc has no such type.
    """
    found = _DTYPES.get(code)
    if found is None:
        from onnx import TensorProto

        name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else str(code)
        raise UnsupportedError(f"element type {name} is not supported", where=where)
    return found


def to_onnx_dtype(dtype: DType) -> int:
    """The ONNX element type of a dhc dtype."""
    return next(code for code, d in _DTYPES.items() if d == dtype)


def onnx_type_name(dtype: DType) -> str:
    """The element type as ONNX's schemas write it."""
    from onnx import TensorProto

    name: str = TensorProto.DataType.Name(to_onnx_dtype(dtype)).lower()
    return name


def from_array(array: np.ndarray, dtype: DType, name: str) -> Any:
    """A TensorProto of an array; elements of fewer than eight bits are packed."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=to_onnx_dtype(dtype), dims=array.shape)
    if dtype.kind == "s":
        tensor.string_data.extend(str(s).encode() for s in array.reshape(-1))
    elif _is_packed(dtype):
        tensor.raw_data = _pack(array, dtype).tobytes()
    else:
        little = (
            array
            if dtype.itemsize == 1 or dtype.name == "bf16"
            else array.astype(dtype.numpy.newbyteorder("<"), copy=False)
        )
        tensor.raw_data = np.ascontiguousarray(little).tobytes()
    return tensor


def to_array(tensor: Any, folder: Path | None = None) -> np.ndarray:
    """The elements of a TensorProto.

    Raises:
        ModelError: the declared shape and the data do not fit, or the external data is unsafe.
        UnsupportedError: the element type is unknown.
    """
    name = tensor.name
    dtype = from_onnx_dtype(tensor.data_type, f"tensor {name!r}")
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"tensor {name!r} declares the impossible shape {list(shape)}")
    count = math.prod(shape)
    if dtype.kind == "s":
        if len(tensor.string_data) != count:
            raise ModelError(f"tensor {name!r} declares {count} strings and holds {len(tensor.string_data)}")
        return np.array([s.decode("utf-8", "replace") for s in tensor.string_data], dtype=object).reshape(shape)
    packed = _is_packed(dtype)
    needed = -(-count * dtype.bits // 8) if packed else count * dtype.itemsize
    if tensor.data_location == 1:
        raw = _external_bytes(tensor, folder, needed)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _typed_field(tensor, dtype, count, shape)
    if len(raw) != needed:
        raise ModelError(f"tensor {name!r} of {dtype}{list(shape)} needs {needed} bytes and holds {len(raw)}")
    if packed:
        return _unpack(np.frombuffer(raw, np.uint8), dtype, count).reshape(shape)
    array = np.frombuffer(raw, dtype=_little_endian(dtype))
    return array.astype(dtype.numpy, copy=False).reshape(shape)


def _external_bytes(tensor: Any, folder: Path | None, needed: int) -> bytes | np.ndarray:
    entries = {e.key: e.value for e in tensor.external_data if e.key in ("location", "offset", "length")}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r} has a malformed external offset or length") from None
    descriptor = open_external(folder, entries.get("location", ""), tensor.name)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if length != needed or offset < 0 or offset + length > size:
            raise ModelError(
                f"tensor {tensor.name!r} needs {needed} bytes; its external data gives {length} at offset {offset} "
                f"of a file of {size} bytes"
            )
        if needed == 0:
            return b""
        return np.memmap(file, np.uint8, "r", offset=offset, shape=(length,))


def _typed_field(tensor: Any, dtype: DType, count: int, shape: tuple[int, ...]) -> np.ndarray:
    kind: type[np.generic]
    if dtype in (dtypes.f32, dtypes.c64):
        field, kind = tensor.float_data, np.float32
    elif dtype in (dtypes.f64, dtypes.c128):
        field, kind = tensor.double_data, np.float64
    elif dtype == dtypes.i64:
        field, kind = tensor.int64_data, np.int64
    elif dtype in (dtypes.u32, dtypes.u64):
        field, kind = tensor.uint64_data, np.uint64
    else:
        field, kind = tensor.int32_data, np.int32
    packed = _is_packed(dtype)
    expected = count * 2 if dtype.kind == "c" else -(-count * dtype.bits // 8) if packed else count
    if len(field) != expected:
        raise ModelError(f"tensor {tensor.name!r} declares {count} elements and holds {len(field)}")
    values = np.array(field, dtype=kind)
    if dtype.kind == "c":
        return values.view(dtype.numpy).reshape(shape)
    if packed:
        return _unpack(values.astype(np.uint8), dtype, count).reshape(shape)
    if dtype in (dtypes.f16, dtypes.bf16):
        return values.astype(np.uint16).view(dtype.numpy).reshape(shape)
    if dtype in dtypes.MINIFLOATS:
        return values.astype(np.uint8).view(dtype.numpy).reshape(shape)
    return values.astype(dtype.numpy).reshape(shape)


def _little_endian(dtype: DType) -> np.dtype:
    """The type of elements in a file (extension types know no byte order; they are small or little-endian already)."""
    return dtype.numpy if dtype.itemsize == 1 or dtype.name == "bf16" else dtype.numpy.newbyteorder("<")


def _is_packed(dtype: DType) -> bool:
    """Several elements share a byte."""
    return dtype in dtypes.SUB_BYTE or dtype == dtypes.f4e2m1


def _unpack(packed: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """One element a byte; the first one lies in the low bits."""
    bits = dtype.bits
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = ((packed[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    if dtype == dtypes.f4e2m1:
        return values.view(dtype.numpy)
    if dtype.kind == "i":
        sign = np.int8(1 << (bits - 1))
        return (values.astype(np.int8) ^ sign) - sign
    return values


def _pack(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The inverse of `_unpack`."""
    bits = dtype.bits
    each = 8 // bits
    flat = np.zeros(-(-array.size // each) * each, np.uint8)
    flat[: array.size] = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    shifted = flat.reshape(-1, each) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)
