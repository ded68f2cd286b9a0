"""Reductions and running sums."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node

_NAMES = {
    "logsumexp": "ReduceLogSumExp", "reduce_max": "ReduceMax", "reduce_mean": "ReduceMean", "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd", "reduce_sum": "ReduceSum",
}  # fmt: skip


@exports(*_NAMES)
def reduce(w: GraphWriter, node: Node) -> Any:
    """Axes are an operand; none means all."""
    op, (x,) = _NAMES[node.op.name], w.operands(node)
    dtype = node.types[0].dtype
    if dtype.is_integer and not w.takes(op, dtype):  # 32 bits hold narrower extremes, and sums with their low bits
        return w.cast(_reduce(w, node, op, w.cast(x, "i32")), dtype)
    return _reduce(w, node, op, x)


def _reduce(w: GraphWriter, node: Node, op: str, x: str) -> Any:
    axes = node.attrs["axes"]
    return w.node(op, [x, w.ints(*axes) if axes else ""], keepdims=int(node.attrs["keepdims"]))


@exports("reduce_any", "reduce_all")
def reduce_bool(w: GraphWriter, node: Node) -> Any:
    """As the extremes of 0 and 1 (of nothing: the lowest and the highest number)."""
    op = "ReduceMax" if node.op.name == "reduce_any" else "ReduceMin"
    return w.node("Greater", [_reduce(w, node, op, w.cast(w.operands(node)[0], "i32")), w.constant(0, "i32")])


@exports("argmax", "argmin")
def arg_extreme(w: GraphWriter, node: Node) -> Any:
    """ArgMax and ArgMin."""
    a = node.attrs
    op = "ArgMax" if node.op.name == "argmax" else "ArgMin"
    last = int(a["last"])
    return w.node(op, w.operands(node), axis=a["axis"], keepdims=int(a["keepdims"]), select_last_index=last)


@exports("cumsum", "cumprod")
def cumulative(w: GraphWriter, node: Node) -> Any:
    """The axis is an operand; CumProd came with opset 26."""
    a = node.attrs
    axis = w.constant(a["axis"], "i64")
    op = "CumSum"
    if node.op.name == "cumprod":
        w.need_opset(26)
        op = "CumProd"
    (x,) = w.operands(node)
    dtype = node.types[0].dtype
    wide = dtype if w.takes(op, dtype) else "f32" if dtype.is_float else "i32"
    narrow = dtype if wide != dtype else None
    if narrow is not None:
        x = w.cast(x, wide)
    made = w.node(op, [x, axis], exclusive=int(a["exclusive"]), reverse=int(a["reverse"]))
    return made if narrow is None else w.cast(made, narrow)
