"""Reductions and running sums."""

from __future__ import annotations

from collections.abc import Callable

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.graph import Value

Form = Callable[[NodeContext, Value, list[int], bool], Value]


def _plain(op: str) -> Form:
    return lambda n, x, axes, keep: n.b.call(op, x, attrs={"axes": axes, "keepdims": keep})


def _extreme(op: str, on_bool: str) -> Form:
    return lambda n, x, axes, keep: _plain(on_bool if x.dtype.kind == "b" else op)(n, x, axes, keep)


def _sum(n: NodeContext, x: Value, axes: list[int], keep: bool) -> Value:
    return n.b.reduce_sum(x, axes=axes, keepdims=keep)


_FORMS: dict[str, Form] = {
    "ReduceL1": lambda n, x, axes, keep: _sum(n, n.b.abs(x), axes, keep),
    "ReduceL2": lambda n, x, axes, keep: _root(n, _sum(n, n.b.mul(x, x), axes, keep)),
    "ReduceLogSum": lambda n, x, axes, keep: n.b.log(_sum(n, x, axes, keep)),
    "ReduceLogSumExp": lambda n, x, axes, keep: n.b.logsumexp(x, axes=axes, keepdims=keep),
    "ReduceMax": _extreme("reduce_max", "reduce_any"),
    "ReduceMean": _plain("reduce_mean"),
    "ReduceMin": _extreme("reduce_min", "reduce_all"),
    "ReduceProd": _plain("reduce_prod"),
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda n, x, axes, keep: _sum(n, n.b.mul(x, x), axes, keep),
}


def _root(n: NodeContext, x: Value) -> Value:
    if x.dtype.is_float:
        return n.b.sqrt(x)
    return n.b.cast(n.b.sqrt(n.b.cast(x, dtype="f64")), dtype=x.dtype)


@onnx_op(*_FORMS)
def reduce_attributes(n: NodeContext) -> Value:
    """Axes as an attribute; none means all."""
    return _reduce(n, n.attr("axes"))


@onnx_op("ReduceSum", since=13)
def reduce_sum(n: NodeContext) -> Value:
    """Axes as an operand."""
    return _reduce_operand(n)


@onnx_op(*(name for name in _FORMS if name != "ReduceSum"), since=18)
def reduce_operands(n: NodeContext) -> Value:
    """Axes as an operand."""
    return _reduce_operand(n)


def _reduce_operand(n: NodeContext) -> Value:
    if not n.has(1):
        return _reduce(n, None)
    return _reduce(n, [int(a) for a in n.require_const(1, "the axes to reduce").reshape(-1)])


def _reduce(n: NodeContext, axes: list[int] | None) -> Value:
    x = n.value(0)
    form = _FORMS[n.proto.op_type]
    keep = bool(n.attr("keepdims", 1))
    if not axes:
        if n.attr("noop_with_empty_axes", 0):
            return _without_axes(n, x)
        axes = list(range(x.type.rank))
    axes = [n.axis(a, x.type.rank) for a in axes]
    if x.type.rank == 0:
        # A scalar has no axis: reduce it as a vector of one.
        return n.b.reshape(form(n, n.b.reshape(x, shape=(1,)), [0], True), shape=())
    return form(n, x, axes, keep)


def _without_axes(n: NodeContext, x: Value) -> Value:
    """No axis is reduced, but what the reduction does to each element still happens."""
    name = n.proto.op_type
    if name in ("ReduceL1", "ReduceL2"):
        return n.b.abs(x)
    if name == "ReduceSumSquare":
        return n.b.mul(x, x)
    return n.b.log(x) if name == "ReduceLogSum" else x


@onnx_op("ArgMax", "ArgMin")
def arg_extreme(n: NodeContext) -> Value:
    """Position of the extreme element."""
    x = n.value(0)
    return n.b.call(
        "argmax" if n.proto.op_type == "ArgMax" else "argmin",
        x,
        attrs={
            "axis": n.axis(n.attr("axis", 0), x.type.rank),
            "keepdims": bool(n.attr("keepdims", 1)),
            "last": bool(n.attr("select_last_index", 0)),
        },
    )


@onnx_op("CumSum", "CumProd")
def cumulative(n: NodeContext) -> Value:
    """Running sums and products."""
    x = n.value(0)
    axis = int(n.require_const(1, "the axis").reshape(-1)[0])
    attrs = {
        "axis": n.axis(axis, x.type.rank),
        "exclusive": bool(n.attr("exclusive", 0)),
        "reverse": bool(n.attr("reverse", 0)),
    }
    return n.b.call("cumsum" if n.proto.op_type == "CumSum" else "cumprod", x, attrs=attrs)
