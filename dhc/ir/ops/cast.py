"""Conversions between element types.

Rules (those of the ONNX Cast operator where it has one):

* to bool: ``x != 0`` (NaN is true); from bool: 0 or 1;
* integer to integer: wraparound;
* float to integer: truncated; out of range saturates and NaN gives 0 when `saturate` or when the integer has fewer
  than 8 bits, else it is undefined;
* to f16 or bf16: through f32, each step rounded to the nearest, halves to even; overflow gives ±inf;
* to small floats (8 and 4 bits): through f32; too large numbers become the largest, or infinite or NaN without
  `saturate`;
* complex to complex and real to complex; complex to real is refused (take `real` or `abs` first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, FLOATS, INTS, MINIFLOATS, SUB_BYTE, DType, boolean, f32, i8, u8
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Elementwise
from dhc.ir.minifloat import ROUNDINGS, decode, decode_expr, encode, encode_expr
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.precision import HALF, wide_array
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _cast_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    target = call.attrs.dtype
    if target not in FIXED:
        call.fail_type(f"cannot convert to {target}")
    if x.dtype.kind == "c" and target.kind not in "cb":
        call.fail_type(f"a complex number has no value in {target}", hint="take real, imag or abs of it first")
    return [TensorType(target, x.shape)]


def convert(
    x: np.ndarray[Any, Any], target: DType, saturate: bool = True, rounding: str = "up"
) -> np.ndarray[Any, Any]:
    """Converts an array by the rules of the module."""
    x = np.asarray(x)
    if as_dtype(x.dtype) in MINIFLOATS:
        x = decode(x)
    if target in MINIFLOATS:
        return encode(wide_array(x).astype(np.float32), target, saturate, rounding)
    if target == boolean:
        return np.asarray(x != 0)
    if target in HALF:
        return x.astype(np.float32).astype(target.numpy)
    if not target.is_integer:
        return wide_array(x).astype(target.numpy)
    if as_dtype(x.dtype).is_float:
        return _float_to_integer(wide_array(x), target, saturate)
    return _wrap(x, target)


def _wrap(x: np.ndarray[Any, Any], target: DType) -> np.ndarray[Any, Any]:
    """Keeps the low bits of integers."""
    stored = x.astype(target.numpy)
    if target in SUB_BYTE:
        count = 1 << target.bits
        low = stored & (count - 1)
        stored = np.where(low >= count // 2, low - count, low).astype(np.int8) if target.kind == "i" else low
    return stored


def _float_to_integer(x: np.ndarray[Any, Any], target: DType, saturate: bool) -> np.ndarray[Any, Any]:
    whole = np.trunc(x.astype(np.float64))
    # 2**bits is exact in f64 where the largest integer may not be, so the limits are compared from outside.
    above, below = whole >= float(target.max) + (target.bits <= 32), whole < float(target.min)
    safe = np.where(np.isnan(whole) | above | below, 0, whole).astype(target.numpy)
    if not saturate and target not in SUB_BYTE:
        return safe  # undefined: here 0
    limited = np.where(above, target.numpy.type(target.max), np.where(below, target.numpy.type(target.min), safe))
    return limited.astype(target.numpy)


def convert_expr(x: s.ScalarExpr, target: DType, saturate: bool = True, rounding: str = "up") -> s.ScalarExpr:
    """The same conversion of one element."""
    if target == x.dtype:
        return x
    if x.dtype in MINIFLOATS:
        x = decode_expr(x)
    if target in MINIFLOATS:
        return encode_expr(convert_expr(x, f32), target, saturate, rounding)
    if target == boolean:
        return x.ne(0)
    if x.dtype in HALF:
        x = s.cast(x, f32)
    if target in HALF:
        return s.cast(s.cast(x, f32), target)
    if target in SUB_BYTE:
        return _sub_byte(x, target, saturate)
    if x.dtype in SUB_BYTE:
        x = s.cast(x, i8 if x.dtype.kind == "i" else u8)
    return s.cast(x, target, saturate and x.dtype.is_float and target.is_integer)


def _sub_byte(x: s.ScalarExpr, target: DType, saturate: bool) -> s.ScalarExpr:
    byte = i8 if target.kind == "i" else u8
    if x.dtype.is_float:
        limited = s.minimum(s.maximum(s.cast(x, byte, saturate=True), int(target.min)), int(target.max))
        return s.cast(limited, target)
    narrow = s.cast(x, byte)
    return s.cast((narrow << (8 - target.bits)) >> (8 - target.bits), target)


def _grad_cast(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    source = node.operands[0].type.dtype
    if source not in FLOATS and source.kind != "c":
        return (None,)
    if source.is_float and g.dtype.is_float:
        return (b.cast(g, dtype=source),)
    if source.kind == "c" and g.dtype.kind == "c":
        return (b.cast(g, dtype=source),)
    if source.is_float and g.dtype.kind == "c":
        return (b.cast(b.real(g), dtype=source),)
    return (None,)


register(
    OpDef(
        name="cast",
        doc="Converts the element type.",
        operands=(Operand("x", FIXED),),
        attrs=(
            Attr("dtype", "dtype", doc="the new element type"),
            Attr("saturate", "bool", True, "floats out of the range of an integer or small float become its limits"),
            Attr("rounding", "str", "up", "how f8e8m0 rounds what lies between two powers of two", ROUNDINGS),
        ),
        infer=_cast_type,
        reference=lambda call, x: _reference(call, x),
        kind=Elementwise(lambda call, x: convert_expr(x, call.attrs.dtype, call.attrs.saturate, call.attrs.rounding)),
        grad=_grad_cast,
        examples=lambda: [
            ([np.array([1.5, -2.5, 300, np.nan], np.float32)], {"dtype": "i8"}),
            ([np.array([1.5, -2.5], np.float32)], {"dtype": "f64"}),
            ([np.array([0, 1, -7], np.int32)], {"dtype": "bool"}),
        ],
        source="ONNX Cast",
    )
)


def _reference(call: Call, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    source, target = call.types[0].dtype, call.attrs.dtype
    return np.array(x) if source == target else convert(x, target, call.attrs.saturate, call.attrs.rounding)


def _bitcast_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    target = call.attrs.dtype
    if target not in FLOATS | INTS:
        call.fail_type(f"cannot reinterpret bits as {target}")
    if target.bits != x.dtype.bits:
        call.fail_type(f"{x.dtype} has {x.dtype.bits} bits, {target} has {target.bits}")
    return [TensorType(target, x.shape)]


register(
    OpDef(
        name="bitcast",
        doc="The same bits as another element type of the same width.",
        operands=(Operand("x", FLOATS | INTS),),
        attrs=(Attr("dtype", "dtype", doc="the new element type"),),
        infer=_bitcast_type,
        reference=lambda call, x: np.asarray(x).copy().view(call.attrs.dtype.numpy),
        kind=Elementwise(lambda call, x: x if x.dtype == call.attrs.dtype else s.Bitcast(call.attrs.dtype, x)),
        grad=NotDifferentiable("bits have no derivative"),
        examples=lambda: [([np.array([1, -2, np.nan], np.float32)], {"dtype": "i32"})],
        source="ONNX BitCast",
    )
)
