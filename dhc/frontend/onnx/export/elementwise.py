"""Elementwise ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.constants import constant_of
from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.frontend.onnx.tensors import to_onnx_dtype
from dhc.ir.graph import Node, Value

_SAME = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "asin": "Asin", "asinh": "Asinh", "atan": "Atan",
    "atanh": "Atanh", "bit_and": "BitwiseAnd", "bit_not": "BitwiseNot", "bit_or": "BitwiseOr", "bit_xor": "BitwiseXor",
    "ceil": "Ceil", "copy": "Identity", "cos": "Cos", "cosh": "Cosh", "div": "Div", "eq": "Equal", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "hard_swish": "HardSwish",
    "is_nan": "IsNaN", "le": "LessOrEqual", "log": "Log", "logical_and": "And", "logical_not": "Not",
    "logical_or": "Or", "logical_xor": "Xor", "lt": "Less", "maximum": "Max", "minimum": "Min", "mish": "Mish",
    "mul": "Mul", "neg": "Neg", "pow": "Pow", "relu": "Relu", "round": "Round", "sigmoid": "Sigmoid", "sign": "Sign",
    "sin": "Sin", "sinh": "Sinh", "softplus": "Softplus", "softsign": "Softsign", "sqrt": "Sqrt", "sub": "Sub",
    "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip

_WITH_ATTRIBUTES = {
    "elu": "Elu", "gelu": "Gelu", "hard_sigmoid": "HardSigmoid", "leaky_relu": "LeakyRelu",
    "selu": "Selu", "thresholded_relu": "ThresholdedRelu",
}  # fmt: skip


@exports(*_SAME)
def same(w: GraphWriter, node: Node) -> Any:
    """Ops that ONNX has under another name."""
    return _widened(w, node, _SAME[node.op.name])


def _widened(w: GraphWriter, node: Node, op: str, **attributes: Any) -> Any:
    """An operator on operands of one type; narrow ones that it does not take are widened, the result narrowed."""
    names = w.operands(node)
    dtype = node.types[0].dtype
    wide = {"bf16": "f32", "f16": "f32", "u32": "i64", "u64": None, "f64": None}.get(dtype.name, "i32")
    if w.takes(op, dtype) or wide is None or any(t.dtype != dtype for t in node.types) or dtype.kind in "bcs":
        return w.node(op, names, **attributes)
    made = w.node(op, [w.cast(name, wide) for name in names], **attributes)
    return w.cast(made, dtype) if node.result.dtype == dtype else made


@exports("where")
def where(w: GraphWriter, node: Node) -> Any:
    """Where; ``where(x < 0, slope * x, x)`` is PRelu, for which other tools have a kernel."""
    condition, scaled, x = node.operands
    slope = _slope(condition, scaled, x)
    if slope is not None and w.takes("PRelu", x.dtype):
        return w.node("PRelu", [w[x], w[slope]])
    return _widened(w, node, "Where")


def _slope(condition: Value, scaled: Value, x: Value) -> Value | None:
    """What PRelu would multiply `x` with below zero; None where the three are no PRelu."""
    if condition.producer is None or condition.producer.op.name != "lt":
        return None
    left, right = condition.producer.operands
    zero = constant_of(right)
    if left is not x or zero is None or np.any(zero) or scaled.type != x.type:
        return None
    if scaled.producer is None or scaled.producer.op.name != "mul" or x not in scaled.producer.operands:
        return None
    first, second = scaled.producer.operands
    slope = first if second is x else second
    return slope if slope.type.rank <= x.type.rank else None


@exports(*_WITH_ATTRIBUTES)
def with_attributes(w: GraphWriter, node: Node) -> Any:
    """Ops whose attributes have the same names in ONNX."""
    return _widened(w, node, _WITH_ATTRIBUTES[node.op.name], **dict(node.attrs))


@exports("celu")
def celu(w: GraphWriter, node: Node) -> Any:
    """Celu takes f32 only; else max(0, x) + alpha * (exp(min(0, x) / alpha) - 1)."""
    (x,) = w.operands(node)
    dtype, value = node.result.dtype, node.attrs["alpha"]
    if w.takes("Celu", dtype):
        return w.node("Celu", [x], alpha=value)
    zero, one, alpha = (w.constant(v, dtype) for v in (0, 1, value))
    power = w.node("Exp", [w.node("Div", [w.node("Min", [x, zero]), alpha])])
    below = w.node("Mul", [w.node("Sub", [power, one]), alpha])
    return w.node("Add", [w.node("Max", [x, zero]), below])


@exports("ne")
def not_equal(w: GraphWriter, node: Node) -> Any:
    """ONNX has no inequality."""
    return w.node("Not", [w.node("Equal", w.operands(node))])


@exports("rsqrt")
def rsqrt(w: GraphWriter, node: Node) -> Any:
    """1 / sqrt(x)."""
    return w.node("Reciprocal", [w.node("Sqrt", w.operands(node))])


@exports("log1p", "expm1")
def near_zero(w: GraphWriter, node: Node) -> Any:
    """ONNX lacks the forms that keep digits near zero."""
    (x,) = w.operands(node)
    one = w.like(1, node.operands[0])
    if node.op.name == "log1p":
        return w.node("Log", [w.node("Add", [x, one])])
    return w.node("Sub", [w.node("Exp", [x]), one])


@exports("trunc")
def truncate(w: GraphWriter, node: Node) -> Any:
    """Toward zero."""
    (x,) = w.operands(node)
    negative = w.node("Less", [x, w.like(0, node.operands[0])])
    return w.node("Where", [negative, w.node("Ceil", [x]), w.node("Floor", [x])])


@exports("silu")
def silu(w: GraphWriter, node: Node) -> Any:
    """X * sigmoid(x)."""
    (x,) = w.operands(node)
    return w.node("Mul", [x, w.node("Sigmoid", [x])])


@exports("clamp")
def clamp(w: GraphWriter, node: Node) -> Any:
    """Clip takes scalars only."""
    x, low, high = w.operands(node)
    if all(t.rank == 0 for t in node.types[1:]):
        return w.node("Clip", [x, low, high])
    return w.node("Min", [w.node("Max", [x, low]), high])


@exports("mod", "fmod")
def modulo(w: GraphWriter, node: Node) -> Any:
    """Mod with the divisor's sign exists for integers only."""
    a, b = w.operands(node)
    if node.op.name == "fmod":
        return w.node("Mod", [a, b], fmod=1)
    if not node.result.dtype.is_float:
        return w.node("Mod", [a, b])
    zero = w.like(0, node.operands[0])
    rest = w.node("Mod", [a, b], fmod=1)
    other_sign = w.node("Xor", [w.node("Less", [rest, zero]), w.node("Less", [b, zero])])
    moved = w.node("And", [other_sign, w.node("Not", [w.node("Equal", [rest, zero])])])
    return w.node("Where", [moved, w.node("Add", [rest, b]), rest])


@exports("shift_left", "shift_right")
def shift(w: GraphWriter, node: Node) -> Any:
    """BitShift takes unsigned integers."""
    left = node.op.name == "shift_left"
    dtype = node.result.dtype
    direction = "LEFT" if left else "RIGHT"
    if dtype.kind == "u":
        return w.node("BitShift", w.operands(node), direction=direction)
    x, amount = w.operands(node)
    unsigned = [w.cast(x, f"u{dtype.bits}"), w.cast(amount, f"u{dtype.bits}")]
    if left:
        return w.cast(w.node("BitShift", unsigned, direction=direction), dtype)
    # To the right the sign stays: the complement of the shifted complement of what is negative.
    negative = w.node("Less", [x, w.like(0, node.operands[0])])
    unsigned[0] = w.cast(w.node("Where", [negative, w.node("BitwiseNot", [x]), x]), f"u{dtype.bits}")
    shifted = w.cast(w.node("BitShift", unsigned, direction=direction), dtype)
    return w.node("Where", [negative, w.node("BitwiseNot", [shifted]), shifted])


@exports("is_inf")
def is_inf(w: GraphWriter, node: Node) -> Any:
    """Which infinities count."""
    a = node.attrs
    return w.node("IsInf", w.operands(node), detect_negative=int(a["negative"]), detect_positive=int(a["positive"]))


@exports("bitcast")
def bitcast(w: GraphWriter, node: Node) -> Any:
    """BitCast, which opset 26 introduced."""
    w.need_opset(26)
    return w.node("BitCast", w.operands(node), to=to_onnx_dtype(node.attrs["dtype"]))


@exports("cast")
def cast(w: GraphWriter, node: Node) -> Any:
    """Conversion (ONNX leaves floats out of an integer's range undefined, dhc saturates)."""
    if "c" in (node.types[0].dtype.kind, node.result.dtype.kind):
        w.unsupported("Cast of ONNX takes no complex numbers")
    return w.cast(w.operands(node)[0], node.attrs["dtype"], node.attrs["saturate"])
