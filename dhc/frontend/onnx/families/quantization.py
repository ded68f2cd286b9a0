"""Quantized operators: linear quantization, QLinear products and convolutions."""

from __future__ import annotations

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.families.contraction import convolution_attributes, multiply, without_zero_point
from dhc.frontend.onnx.handlers import onnx_op
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir.dtypes import DType, f32, i32, i64, u8
from dhc.ir.graph import Value


def _zero_like(n: NodeContext, scale: Value, dtype: DType) -> Value:
    return n.b.full(scale.shape, 0, dtype)


@onnx_op("QuantizeLinear")
def quantize(n: NodeContext) -> Value:
    """round(x / scale) + zero point, saturated."""
    x, scale = n.value(0), n.value(1)
    code = n.attr("output_dtype", 0)
    default = from_onnx_dtype(code, str(n.location)) if code else u8
    zero = n.optional(2)
    if zero is None:
        zero = _zero_like(n, scale, default)
    if not x.dtype.is_float:
        x = n.b.cast(x, dtype=scale.dtype)
    elif x.dtype != scale.dtype:
        scale = n.b.cast(scale, dtype=x.dtype)
    if n.attr("block_size", 0):
        return n.b.quantize(x, _blocks(n, scale, x), _blocks(n, zero, x))
    axis = n.axis(n.attr("axis", 1), x.type.rank) if _per_axis(scale) else 0
    return n.b.quantize(x, _parameter(n, scale), _parameter(n, zero), axis=axis)


@onnx_op("DequantizeLinear")
def dequantize(n: NodeContext) -> Value:
    """(x - zero point) * scale."""
    x, scale = n.value(0), n.value(1)
    zero = n.optional(2)
    if zero is None:
        zero = _zero_like(n, scale, x.dtype)
    if n.attr("block_size", 0):
        return n.b.dequantize(x, _blocks(n, scale, x), _blocks(n, zero, x))
    axis = n.axis(n.attr("axis", 1), x.type.rank) if _per_axis(scale) else 0
    return n.b.dequantize(x, _parameter(n, scale), _parameter(n, zero), axis=axis)


def _blocks(n: NodeContext, parameter: Value, x: Value) -> Value:
    """One number for each block of elements along the axis, repeated for all elements of the block."""
    axis, size = n.axis(n.attr("axis", 1), x.type.rank), n.attr("block_size", 0)
    if size < 0 or parameter.type.rank != x.type.rank:
        n.invalid(f"blocks of {size} with {parameter.type} do not fit {x.type}")
    if size == 1:
        return parameter
    block = n.b.div(n.b.iota(shape=(x.shape[axis],), axis=0, dtype=i64), n.b.constant(size, i64))
    result: Value = n.b.gather(parameter, block, axis=axis)
    return result


def _per_axis(parameter: Value) -> bool:
    return parameter.type.rank == 1 and parameter.shape[0] != 1


def _parameter(n: NodeContext, value: Value) -> Value:
    """One-element vectors are scalars."""
    return n.b.reshape(value, shape=()) if value.type.rank == 1 and value.shape[0] == 1 else value


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize(n: NodeContext) -> list[Value]:
    """Scale and zero point from the data's own range, which always holds 0."""
    b, x = n.b, n.value(0)
    zero = b.like(0, x)
    low = b.minimum(b.reduce_min(x), zero)
    high = b.maximum(b.reduce_max(x), zero)
    scale = b.div(b.sub(high, low), b.like(255, x))
    safe = b.where(b.eq(scale, zero), b.like(1, x), scale)
    point = b.cast(b.clamp(b.round(b.div(b.sub(zero, low), safe)), zero, b.like(255, x)), dtype=u8)
    return [b.quantize(x, safe, point, axis=0), scale, point]


def requantize(n: NodeContext, total: Value, scale: Value, out_scale: Value, out_zero: Value) -> Value:
    """i32 sums to the result's integers: total * scale / out_scale, rounded half to even."""
    real = n.b.mul(n.b.cast(total, dtype=f32), n.b.div(scale, out_scale))
    one = n.b.constant(1.0, f32)
    return n.b.quantize(real, one, out_zero, axis=0)


@onnx_op("QLinearMatMul")
def quantized_matmul(n: NodeContext) -> Value:
    """Product of quantized matrices with a quantized result."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (n.value(i) for i in range(8))
    scales = [_row(n, a_scale), _parameter(n, b_scale)]
    total = multiply(n, without_zero_point(n, a, _row(n, a_zero)), without_zero_point(n, b, _parameter(n, b_zero)))
    scale = n.b.mul(*(s if s.dtype == f32 else n.b.cast(s, dtype=f32) for s in scales))
    out_scale = _parameter(n, y_scale)
    out_scale = out_scale if out_scale.dtype == f32 else n.b.cast(out_scale, dtype=f32)
    return requantize(n, total, scale, out_scale, _parameter(n, y_zero))


def _row(n: NodeContext, parameter: Value) -> Value:
    """A parameter of the left operand: one per row."""
    parameter = _parameter(n, parameter)
    return n.b.reshape(parameter, shape=(*parameter.shape, 1)) if parameter.type.rank == 1 else parameter


@onnx_op("QLinearConv")
def quantized_convolution(n: NodeContext) -> Value:
    """Convolution of quantized tensors with a quantized result; bias in i32 with scale x_scale * w_scale."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (n.value(i) for i in range(8))
    attrs = convolution_attributes(n, x, w)
    w_scale, w_zero = _parameter(n, w_scale), _parameter(n, w_zero)
    if w_zero.type.rank == 1:
        w_zero = n.b.reshape(w_zero, shape=(*w_zero.shape, *(1,) * (w.type.rank - 1)))
    operands = [without_zero_point(n, x, _parameter(n, x_zero)), without_zero_point(n, w, w_zero)]
    bias = n.optional(8)
    if bias is not None:
        operands.append(bias if bias.dtype == i32 else n.b.cast(bias, dtype=i32))
    total = n.b.call("conv", *operands, attrs=attrs)
    scale = n.b.mul(_parameter(n, x_scale), w_scale)
    if scale.type.rank == 1:
        scale = n.b.reshape(scale, shape=(*scale.shape, *(1,) * (x.type.rank - 2)))
    return requantize(n, total, scale, _parameter(n, y_scale), _parameter(n, y_zero))
