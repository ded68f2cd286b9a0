"""Affine quantization: real = (stored - zero_point) * scale.

The scale is a scalar (or one element), one number for each index of `axis`, or a tensor of the operand's rank that
broadcasts against it (blocks). The zero point has the scale's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS, MINIFLOATS, SUB_BYTE, DType, f32, f64, i8, i16, i32, u8, u16
from dhc.ir.graph import Value
from dhc.ir.kinds import Composite
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.cast import convert
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

STORED = frozenset({i8, u8, i16, u16, i32}) | SUB_BYTE | MINIFLOATS
_AXIS = Attr("axis", "int", 1, "the axis along which a one-dimensional scale runs")


def _parameter_shape(call: Call) -> tuple[Dim, ...]:
    """The shape under which scale and zero point broadcast against the operand; checks that they do."""
    x, scale, zero_point = call.types
    if zero_point.rank != scale.rank:
        call.fail("scale and zero_point have different ranks")
    for a, b in zip(scale.shape, zero_point.shape):
        call.require(a, b, "sizes of scale and zero_point")
    shape: tuple[Dim, ...] = (1,) * x.rank
    if scale.numel == 1:
        return shape
    if scale.rank == 1 and x.rank > 1:
        axis = call.axis(call.attrs.axis)
        shape = tuple(scale.shape[0] if i == axis else 1 for i in range(x.rank))
    elif scale.rank == x.rank:
        shape = (*scale.shape,)
    else:
        call.fail(f"a scale of rank {scale.rank} fits no operand of rank {x.rank}")
    for own, full in zip(shape, x.shape):
        if own != 1:
            call.require(own, full, "sizes of the scale and the operand")
    return shape


def _compute(*dtypes: DType) -> DType:
    return f64 if f64 in dtypes else f32


def _reshaped(shape: Sequence[Dim], parameter: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.reshape(parameter, tuple(symbols.evaluate(d, {}) for d in shape))


_REALS = np.array([[0.0, 0.25, -0.75], [1e9, -3.2, np.nan]], np.float32)

# ---- quantize --------------------------------------------------------------------------------------------------------


def _quantize_type(call: Call) -> list[TensorType]:
    _parameter_shape(call)
    return [TensorType(call.types[2].dtype, call.types[0].shape)]


def _quantize(call: Call, x: Any, scale: Any, zero_point: Any) -> Any:
    shape = _parameter_shape(call)
    kind = _compute(*(t.dtype for t in call.types[:2])).numpy
    steps = x.astype(kind) / _reshaped(shape, scale).astype(kind)
    if call.types[2].dtype not in MINIFLOATS:
        steps = np.rint(steps)
    return convert(steps + _reshaped(shape, zero_point).astype(kind), call.types[2].dtype)


def _build_quantize(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    x, scale, zero_point = operands
    shape = _parameter_shape(call)
    kind = _compute(x.dtype, scale.dtype)
    wide_scale = b.cast(b.reshape(scale, shape=shape), dtype=kind)
    offset = b.cast(b.reshape(zero_point, shape=shape), dtype=kind)
    steps = b.div(b.cast(x, dtype=kind), wide_scale)
    if zero_point.dtype not in MINIFLOATS:
        steps = b.round(steps)  # small floats round when they are stored
    return [b.cast(b.add(steps, offset), dtype=zero_point.dtype, saturate=True)]


register(
    OpDef(
        name="quantize",
        doc="round(x / scale), halves to even, plus zero_point, saturated to the type of the zero point. NaN gives 0.",
        operands=(Operand("x", FLOATS | {i32}), Operand("scale", FLOATS), Operand("zero_point", STORED)),
        attrs=(_AXIS,),
        infer=_quantize_type,
        reference=_quantize,
        kind=Composite(_build_quantize),
        grad=NotDifferentiable("integer result; use fake quantization for training"),
        examples=lambda: [
            ([_REALS, np.array(0.5, np.float32), np.array(10, np.uint8)], {}),
            ([_REALS, np.array([0.5, 0.25, 2], np.float32), np.array([0, 1, -2], np.int8)], {"axis": -1}),
            ([_REALS, np.array([[0.5], [0.25]], np.float32), np.array([[0], [9]], np.int16)], {}),
            ([_REALS[:0], np.array([0.5], np.float32), np.array([3], np.int32)], {}),
        ],
        source="ONNX QuantizeLinear",
    )
)


# ---- dequantize ------------------------------------------------------------------------------------------------------


def _dequantize_type(call: Call) -> list[TensorType]:
    _parameter_shape(call)
    return [TensorType(call.types[1].dtype, call.types[0].shape)]


def _dequantize(call: Call, q: Any, scale: Any, zero_point: Any) -> Any:
    shape = _parameter_shape(call)
    dtype = call.types[1].dtype
    kind = _compute(dtype).numpy
    exact = np.float32 if call.types[0].dtype in MINIFLOATS else np.int32
    steps = q.astype(exact) - _reshaped(shape, zero_point).astype(exact)
    return convert(steps.astype(kind) * _reshaped(shape, scale).astype(kind), dtype)


def _build_dequantize(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    q, scale, zero_point = operands
    shape = _parameter_shape(call)
    kind = _compute(scale.dtype)
    exact = f32 if q.dtype in MINIFLOATS else i32
    offset = b.cast(b.reshape(zero_point, shape=shape), dtype=exact)
    steps = b.cast(b.sub(b.cast(q, dtype=exact), offset), dtype=kind)
    real = b.mul(steps, b.cast(b.reshape(scale, shape=shape), dtype=kind))
    return [b.cast(real, dtype=scale.dtype)]


register(
    OpDef(
        name="dequantize",
        doc="(q - zero_point) * scale in the type of the scale; the difference is exact in 32 bits.",
        operands=(Operand("q", STORED), Operand("scale", FLOATS), Operand("zero_point", STORED, same="q")),
        attrs=(_AXIS,),
        infer=_dequantize_type,
        reference=_dequantize,
        kind=Composite(_build_dequantize),
        examples=lambda: [
            ([np.array([[-8, 0, 7]], np.int8), np.array(0.5, np.float32), np.array(1, np.int8)], {}),
            ([np.array([[1, 2]] * 2, np.int8), np.array([0.5, 2], np.float32), np.array([0, 1], np.int8)], {"axis": 0}),
            ([np.zeros((0, 2), np.int8), np.array([[1, 2]], np.float32), np.array([[0, 1]], np.int8)], {}),
        ],
        source="ONNX DequantizeLinear",
    )
)
