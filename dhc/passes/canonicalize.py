"""Local simplifications that never change a bit of the result: one form for each meaning, fewer nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import Rewritten, apply_rules, rule


def _scalar(node: Node, index: int) -> float | None:
    """The value of a constant operand whose elements are all equal."""
    producer = node.operands[index].producer
    if producer is None or producer.op.name != "constant":
        return None
    array = producer.attrs["value"]
    if array.size == 0 or array.size > 4096 or array.dtype == object or array.dtype.kind == "c":
        return None
    first = array.reshape(-1)[0]
    return float(first) if bool(np.all(array == first)) else None


def _keeps_type(node: Node, index: int) -> bool:
    same: bool = node.operands[index].type == node.result.type
    return same


@rule("same_shape", "reshape", "broadcast_to")
def _same_shape(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if _keeps_type(node, 0) else None


@rule("merge_reshapes", "reshape")
def _merge_reshapes(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    if inner is None or inner.op.name != "reshape":
        return None
    return b.reshape(inner.operands[0], shape=node.attrs["shape"])


@rule("merge_transposes", "transpose")
def _merge_transposes(b: Builder, node: Node) -> Rewritten:
    perm = node.attrs["perm"]
    if list(perm) == list(range(len(perm))):
        return node.operands[0]
    inner = node.operands[0].producer
    if inner is None or inner.op.name != "transpose":
        return None
    return b.transpose(inner.operands[0], perm=[inner.attrs["perm"][p] for p in perm])


@rule("transpose_of_ones", "transpose")
def _transpose_of_ones(b: Builder, node: Node) -> Rewritten:
    shape = node.operands[0].shape
    moved = [p for p in node.attrs["perm"] if shape[p] != 1]
    if moved != sorted(moved) or list(node.attrs["perm"]) == sorted(node.attrs["perm"]):
        return None
    return b.reshape(node.operands[0], shape=node.result.shape)


@rule("merge_broadcasts", "broadcast_to")
def _merge_broadcasts(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    if inner is None or inner.op.name != "broadcast_to":
        return None
    return b.broadcast_to(inner.operands[0], shape=node.attrs["shape"])


@rule("cast_to_itself", "cast")
def _cast_to_itself(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if _keeps_type(node, 0) else None


@rule("copy_in_place", "copy")
def _copy_in_place(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if not node.attrs["device"] else None


@rule("whole_slice", "slice")
def _whole_slice(b: Builder, node: Node) -> Rewritten:
    forward = all(step == 1 for step in node.attrs["steps"])
    return node.operands[0] if forward and _keeps_type(node, 0) else None


@rule("single_concat", "concat")
def _single_concat(b: Builder, node: Node) -> Rewritten:
    if len(node.operands) == 1:
        return node.operands[0]
    axis = node.attrs["axis"] % node.result.type.rank
    filled = [v for v in node.operands if v.shape[axis] != 0]
    if len(filled) == len(node.operands) or not filled:
        return None
    return b.concat(*filled, axis=axis)


@rule("empty_pad", "pad")
def _empty_pad(b: Builder, node: Node) -> Rewritten:
    widths = (*node.attrs["low"], *node.attrs["high"])
    return node.operands[0] if all(w == 0 for w in widths) and _keeps_type(node, 0) else None


@rule("times_one", "mul")
def _times_one(b: Builder, node: Node) -> Rewritten:
    for index in (0, 1):
        if _scalar(node, 1 - index) == 1.0 and _keeps_type(node, index):
            return node.operands[index]
    return None


@rule("divided_by_one", "div")
def _divided_by_one(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if _scalar(node, 1) == 1.0 and _keeps_type(node, 0) else None


@rule("plus_zero", "add", "sub")
def _plus_zero(b: Builder, node: Node) -> Rewritten:
    # Of floats only x - 0 and x + (-0) keep every bit: -0 + 0 is +0.
    integer = node.result.dtype.is_integer
    indices = (0, 1) if node.op.name == "add" else (0,)
    for index in indices:
        value = _scalar(node, 1 - index)
        if value != 0.0 or not _keeps_type(node, index):
            continue
        if integer or bool(np.signbit(value)) == (node.op.name == "add"):
            return node.operands[index]
    return None


@rule("twice", "neg", "logical_not", "bit_not", "conj")
def _twice(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    return inner.operands[0] if inner is not None and inner.op is node.op else None


@rule("idempotent", "relu", "abs", "floor", "ceil", "round", "trunc")
def _idempotent(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    return node.operands[0] if inner is not None and inner.op is node.op else None


@rule("reduce_nothing", "reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_any", "reduce_all")
def _reduce_nothing(b: Builder, node: Node) -> Rewritten:
    x = node.operands[0]
    axes = [a % x.type.rank for a in node.attrs["axes"]] if node.attrs["axes"] else list(range(x.type.rank))
    if any(x.shape[a] != 1 for a in axes):
        return None
    return x if x.type == node.result.type else b.reshape(x, shape=node.result.shape)


RULES = (
    _same_shape, _merge_reshapes, _merge_transposes, _transpose_of_ones, _merge_broadcasts, _cast_to_itself,
    _copy_in_place, _whole_slice, _single_concat, _empty_pad, _times_one, _divided_by_one, _plus_zero, _twice,
    _idempotent, _reduce_nothing,
)  # fmt: skip


@register_pass
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies bit-exact local simplifications until none is left."""

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph) -> PassResult:
        """Rewrites the graph and nested graphs."""
        return apply_rules(graph, RULES)
