"""Activation functions and the softmax family."""

from __future__ import annotations

from collections.abc import Callable

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import f64
from dhc.ir.graph import Value

# operator -> (op, {attribute: default in ONNX})
_SIMPLE: dict[str, tuple[str, dict[str, float]]] = {
    "Celu": ("celu", {"alpha": 1.0}),
    "Elu": ("elu", {"alpha": 1.0}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": ("hard_swish", {}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "Mish": ("mish", {}),
    "Relu": ("relu", {}),
    "Selu": ("selu", {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "Sigmoid": ("sigmoid", {}),
    "Softplus": ("softplus", {}),
    "Softsign": ("softsign", {}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
}


@onnx_op(*_SIMPLE)
def simple(n: NodeContext) -> Value:
    """Activations that are ops of their own."""
    op, defaults = _SIMPLE[n.proto.op_type]
    attrs = {name: n.attr(name, default) for name, default in defaults.items()}
    if op == "relu" and n.value(0).dtype.kind == "u":
        return n.value(0)
    return n.b.call(op, n.value(0), attrs=attrs)


@onnx_op("Gelu")
def gelu(n: NodeContext) -> Value:
    """Exact or with tanh."""
    return n.b.gelu(n.value(0), approximate=n.attr("approximate", "none"))


@onnx_op("Shrink")
def shrink(n: NodeContext) -> Value:
    """X + bias below -lambd, x - bias above lambd, else 0."""
    given = n.value(0)
    x = n.b.cast(given, dtype=f64) if given.dtype.is_integer else given
    bias, threshold = n.b.like(n.attr("bias", 0.0), x), n.attr("lambd", 0.5)
    above = n.b.where(n.b.gt(x, n.b.like(threshold, x)), n.b.sub(x, bias), n.b.like(0, x))
    result = n.b.where(n.b.lt(x, n.b.like(-threshold, x)), n.b.add(x, bias), above)
    return n.b.cast(result, dtype=given.dtype) if given.dtype.is_integer else result


@onnx_op("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(n: NodeContext) -> Value:
    """Along one axis."""
    x = n.value(0)
    return _FAMILY[n.proto.op_type](n, x, n.axis(n.attr("axis", -1), x.type.rank))


@onnx_op("Softmax", "LogSoftmax", "Hardmax")
def flattening_softmax(n: NodeContext) -> Value:
    """Before opset 13: over all axes from ``axis`` on, as one."""
    x = n.value(0)
    axis = n.axis(n.attr("axis", 1), x.type.rank)
    if axis == x.type.rank - 1:
        return _FAMILY[n.proto.op_type](n, x, axis)
    rows, columns = symbols.product(x.shape[:axis]), symbols.product(x.shape[axis:])
    flat = n.b.reshape(x, shape=(rows, columns))
    return n.b.reshape(_FAMILY[n.proto.op_type](n, flat, 1), shape=x.shape)


def _hardmax(n: NodeContext, x: Value, axis: int) -> Value:
    largest = n.b.argmax(x, axis=axis)
    return n.b.one_hot(largest, n.b.like(1, x), n.b.like(0, x), depth=x.shape[axis], axis=axis)


_FAMILY: dict[str, Callable[[NodeContext, Value, int], Value]] = {
    "Softmax": lambda n, x, axis: n.b.softmax(x, axis=axis),
    "LogSoftmax": lambda n, x, axis: n.b.log_softmax(x, axis=axis),
    "Hardmax": _hardmax,
}
