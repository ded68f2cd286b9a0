"""Arithmetic, comparisons, logic and casts."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir.dtypes import SUB_BYTE, DType, f32
from dhc.ir.graph import Value

_UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan",
    "Atanh": "atanh", "BitwiseNot": "bit_not", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf",
    "Exp": "exp", "Floor": "floor", "Log": "log", "Neg": "neg", "Not": "logical_not", "Round": "round",
    "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip

_BINARY = {
    "Add": "add", "And": "logical_and", "BitwiseAnd": "bit_and", "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor",
    "Div": "div", "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le",
    "Mul": "mul", "Or": "logical_or", "Sub": "sub", "Xor": "logical_xor",
}  # fmt: skip


@onnx_op(*_UNARY)
def unary(n: NodeContext) -> Value:
    """One operand, one result."""
    return n.b.call(_UNARY[n.proto.op_type], n.value(0))


@onnx_op(*_BINARY)
def binary(n: NodeContext) -> Value:
    """Two operands with broadcasting."""
    return n.b.call(_BINARY[n.proto.op_type], n.value(0), placed(n, n.value(0), n.value(1)))


def placed(n: NodeContext, a: Value, b: Value) -> Value:
    """The second operand with its axes where they belong: before opset 7 ``axis`` says where in the first one's."""
    if n.opset >= 7 or not n.attr("broadcast", 0) or n.attr("axis") is None:
        return b
    after = a.type.rank - n.axis(n.attr("axis"), a.type.rank) - b.type.rank
    if after < 0:
        n.invalid(f"the second operand, {b.type}, does not fit into {a.type} from axis {n.attr('axis')} on")
    return n.b.reshape(b, shape=(*b.shape, *[1] * after)) if after else b


@onnx_op("Reciprocal")
def reciprocal(n: NodeContext) -> Value:
    """1 / x."""
    x = n.value(0)
    return n.b.div(n.b.like(1, x), x)


@onnx_op("IsInf")
def is_inf(n: NodeContext) -> Value:
    """Which infinities count is given by attributes."""
    negative, positive = bool(n.attr("detect_negative", 1)), bool(n.attr("detect_positive", 1))
    return n.b.is_inf(_computed(n, n.value(0)), negative=negative, positive=positive)


@onnx_op("IsNaN")
def is_nan(n: NodeContext) -> Value:
    """True for NaN."""
    return n.b.is_nan(_computed(n, n.value(0)))


def _computed(n: NodeContext, x: Value) -> Value:
    """Small floats are for storage: their value in f32."""
    value: Value = n.b.cast(x, dtype=f32) if x.dtype.is_float and x.dtype.bits < 16 else x
    return value


@onnx_op("Pow")
def power(n: NodeContext) -> Value:
    """The exponent may have another dtype; the result has the base's."""
    base = n.value(0)
    exponent = placed(n, base, n.value(1))
    if base.dtype == exponent.dtype:
        return n.b.pow(base, exponent)
    if base.dtype.is_float or not exponent.dtype.is_float:
        return n.b.pow(base, n.b.cast(exponent, dtype=base.dtype))
    return n.b.cast(n.b.pow(n.b.cast(base, dtype=exponent.dtype), exponent), dtype=base.dtype)


@onnx_op("Mod")
def modulo(n: NodeContext) -> Value:
    """Sign of the divisor, or of the dividend with ``fmod``."""
    return n.b.call("fmod" if n.attr("fmod", 0) else "mod", n.value(0), n.value(1))


@onnx_op("BitShift")
def bit_shift(n: NodeContext) -> Value:
    """Shift by as many bits as the second operand says."""
    direction = n.require_attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        n.invalid(f"direction is LEFT or RIGHT, not {direction!r}")
    return n.b.call("shift_left" if direction == "LEFT" else "shift_right", n.value(0), n.value(1))


@onnx_op("Max", "Min", "Sum")
def variadic(n: NodeContext) -> Value:
    """Any number of operands."""
    name = {"Max": "maximum", "Min": "minimum", "Sum": "add"}[n.proto.op_type]
    return reduce(lambda a, b: n.b.call(name, a, b), n.values())


@onnx_op("Mean")
def mean(n: NodeContext) -> Value:
    """Element-wise mean of the operands."""
    values = n.values()
    return n.b.div(reduce(n.b.add, values), n.b.like(len(values), values[0]))


@onnx_op("Where")
def where(n: NodeContext) -> Value:
    """Selection with broadcasting."""
    return n.b.where(n.value(0), n.value(1), n.value(2))


@onnx_op("Cast")
def cast(n: NodeContext) -> Value:
    """Conversion to the dtype of ``to``."""
    return convert(n, n.value(0), from_onnx_dtype(n.require_attr("to"), str(n.location)))


@onnx_op("CastLike")
def cast_like(n: NodeContext) -> Value:
    """Conversion to the dtype of the second operand."""
    return convert(n, n.value(0), n.value(1).dtype)


def convert(n: NodeContext, x: Value, dtype: DType) -> Value:
    """A cast, saturating unless the node says otherwise."""
    if x.dtype == dtype:
        return x
    if dtype.kind == "s":
        return n.b.to_string(x)
    if x.dtype.kind == "s":
        return n.b.from_string(x, dtype=dtype)
    if x.dtype.is_float and dtype in SUB_BYTE:
        x = n.b.cast(x, dtype="i32")  # four-bit integers keep the low bits of the whole number
    rounding = n.attr("round_mode", "up")
    return n.b.cast(x, dtype=dtype, saturate=bool(n.attr("saturate", 1)), rounding=rounding)


@onnx_op("BitCast")
def bit_cast(n: NodeContext) -> Value:
    """The same bits as another dtype."""
    x, dtype = n.value(0), from_onnx_dtype(n.require_attr("to"), str(n.location))
    if x.dtype.kind == "b":
        x = n.b.cast(x, dtype="u8")  # stored as 0 and 1
    return x if x.dtype == dtype else n.b.bitcast(x, dtype=dtype)


@onnx_op("Clip")
def clip_attributes(n: NodeContext) -> Value:
    """Bounds as attributes (before opset 11)."""
    x = n.value(0)
    low, high = n.attr("min"), n.attr("max")
    return _clamp(n, x, None if low is None else n.b.like(low, x), None if high is None else n.b.like(high, x))


@onnx_op("Clip", since=11)
def clip(n: NodeContext) -> Value:
    """Bounds as optional operands."""
    return _clamp(n, n.value(0), n.optional(1), n.optional(2))


def _clamp(n: NodeContext, x: Value, low: Value | None, high: Value | None) -> Value:
    def scalar(v: Value) -> Value:
        return v if v.type.rank == 0 else n.b.reshape(v, shape=())

    if low is not None and high is not None:
        return n.b.clamp(x, scalar(low), scalar(high))
    if low is not None:
        return n.b.maximum(x, scalar(low))
    return x if high is None else n.b.minimum(x, scalar(high))


@onnx_op("Identity")
def identity(n: NodeContext) -> Any:
    """The operand itself."""
    return n.raw(0)


@onnx_op("Dropout")
def dropout(n: NodeContext) -> list[Value | None]:
    """Inference keeps everything; the mask is all true."""
    x = n.value(0)
    if n.opset >= 12 and n.has(2):
        training = n.const(2)
        ratio = n.const(1) if n.has(1) else np.array(0.5)
        if ratio is not None and not 0.0 <= float(ratio.reshape(-1)[0]) < 1.0:
            n.invalid(f"the ratio {ratio} is not within 0 and 1")
        nothing_dropped = ratio is not None and float(ratio.reshape(-1)[0]) == 0.0
        if (training is None or bool(training.reshape(-1)[0])) and not nothing_dropped:
            return _training_dropout(n, x, known=training is not None)
    mask_dtype = "bool" if n.opset >= 10 else x.dtype
    return [x, n.b.full(x.shape, 1, mask_dtype) if n.wants(1) else None]


def _training_dropout(n: NodeContext, x: Value, known: bool) -> list[Value | None]:
    """Zeroes each element with the probability `ratio` and scales the others up; unless training is off at run time."""
    from dhc.frontend.onnx.families.generate import node_seed

    b = n.b
    ratio = n.value(1) if n.has(1) else b.constant(0.5, "f32")
    ratio = b.reshape(ratio, shape=()) if ratio.type.rank else ratio
    drawn = b.random_uniform(shape=x.shape, dtype="f32", seed=node_seed(n))
    kept = b.ge(drawn, ratio if ratio.dtype == drawn.dtype else b.cast(ratio, dtype=drawn.dtype))
    share = ratio if ratio.dtype == x.dtype else b.cast(ratio, dtype=x.dtype)
    dropped = b.where(kept, b.div(x, b.sub(b.like(1, x), share)), b.like(0, x))
    if known:
        return [dropped, kept]
    training = n.value(2)
    training = b.reshape(training, shape=()) if training.type.rank else training
    return [b.where(training, dropped, x), b.logical_or(kept, b.logical_not(training))]


@onnx_op("PRelu")
def prelu(n: NodeContext) -> Value:
    """X where x >= 0, else slope * x."""
    x, slope = n.value(0), n.value(1)
    if n.opset < 7 and slope.type.rank == 1 and slope.shape[0] != 1 and x.type.rank > 1:
        slope = n.b.reshape(slope, shape=(*slope.shape, *[1] * (x.type.rank - 2)))  # one for each channel
    return n.b.where(n.b.lt(x, n.b.like(0, x)), n.b.mul(slope, x), x)


@onnx_op("Swish")
def swish(n: NodeContext) -> Value:
    """X * sigmoid(alpha * x)."""
    x = n.value(0)
    alpha = n.attr("alpha", 1.0)
    if alpha == 1.0:
        return n.b.silu(x)
    return n.b.mul(x, n.b.sigmoid(n.b.mul(x, n.b.like(alpha, x))))
