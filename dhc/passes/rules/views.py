"""Views: reshapes, transposes, broadcasts, slices, concatenations that do nothing, merge or become simpler ones."""

from __future__ import annotations

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir.agreement import type_difference
from dhc.ir.builder import Builder
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Elementwise
from dhc.ir.op import infer_types
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of, keeps_type


def _made_by(value: Value, op: str) -> Node | None:
    producer = value.producer
    return producer if producer is not None and producer.op.name == op else None


@rule("same_shape", "reshape", "broadcast_to", "tile")
def _same_shape(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if keeps_type(node, 0) and all(r == 1 for r in node.attrs.get("repeats", ())) else None


@rule("merge_reshapes", "reshape")
def _merge_reshapes(b: Builder, node: Node) -> Rewritten:
    inner = _made_by(node.operands[0], "reshape")
    return None if inner is None else b.reshape(inner.operands[0], shape=node.attrs["shape"])


@rule("merge_transposes", "transpose")
def _merge_transposes(b: Builder, node: Node) -> Rewritten:
    perm = node.attrs["perm"]
    if list(perm) == list(range(len(perm))):
        return node.operands[0]
    inner = _made_by(node.operands[0], "transpose")
    return None if inner is None else b.transpose(inner.operands[0], perm=[inner.attrs["perm"][p] for p in perm])


@rule("transpose_of_ones", "transpose")
def _transpose_of_ones(b: Builder, node: Node) -> Rewritten:
    shape = node.operands[0].shape
    moved = [p for p in node.attrs["perm"] if shape[p] != 1]
    if moved != sorted(moved) or list(node.attrs["perm"]) == sorted(node.attrs["perm"]):
        return None
    return b.reshape(node.operands[0], shape=node.result.shape)


@rule("view_of_one_number", "reshape", "transpose", "slice", "flip")
def _view_of_one_number(b: Builder, node: Node) -> Rewritten:
    """However the copies of one number are arranged, they are copies of one number."""
    inner = _made_by(node.operands[0], "broadcast_to")
    if inner is None or inner.operands[0].type.numel != 1 or inner.result.type.numel == 1:
        return None
    if node.op.name == "slice" and not all(isinstance(d, int) for d in (*inner.result.shape, *node.result.shape)):
        return None  # the check that the slice lies within the operand is made at run time
    source = inner.operands[0]
    if source.type.rank > node.result.type.rank:
        source = b.reshape(source, shape=())
    return b.broadcast_to(source, shape=node.result.shape)


@rule("merge_broadcasts", "broadcast_to")
def _merge_broadcasts(b: Builder, node: Node) -> Rewritten:
    inner = _made_by(node.operands[0], "broadcast_to")
    return None if inner is None else b.broadcast_to(inner.operands[0], shape=node.attrs["shape"])


@rule("broadcast_by_the_op")
def _broadcast_by_the_op(b: Builder, node: Node) -> Rewritten:
    """Element-wise ops broadcast their operands themselves, without writing the copies to memory."""
    if not isinstance(node.op.kind, Elementwise) or len(node.operands) < 2 or len(node.results) != 1:
        return None
    operands = list(node.operands)
    for index, value in enumerate(operands):
        inner = _made_by(value, "broadcast_to")
        if inner is None:
            continue
        given = [*operands[:index], inner.operands[0], *operands[index + 1 :]]
        if _gives(node, given):
            operands = given
    if operands == list(node.operands):
        return None
    return b.call(node.op, *operands, attrs=dict(node.attrs))


def _gives(node: Node, operands: list[Value]) -> bool:
    """True when the op makes the same type of other operands, for every value of the symbols."""
    ranks = [v.type.rank for v in operands]
    for v in operands:
        wanted = node.result.shape[node.result.type.rank - v.type.rank :] if v.type.rank else ()
        if v.type.rank > max(ranks) or any(d not in (1, w) for d, w in zip(v.shape, wanted)):
            return False
    try:
        (type_,) = infer_types(node.op, [v.type for v in operands], node.attrs, node.regions, node.location)
    except DhcError:
        return False
    return type_difference(node.result.type, type_) is None and getattr(type_, "shape", None) == node.result.shape


@rule("whole_slice", "slice")
def _whole_slice(b: Builder, node: Node) -> Rewritten:
    forward = all(step == 1 for step in node.attrs["steps"])
    return node.operands[0] if forward and keeps_type(node, 0) else None


@rule("merge_slices", "slice")
def _merge_slices(b: Builder, node: Node) -> Rewritten:
    inner = _made_by(node.operands[0], "slice")
    if inner is None or not all(isinstance(d, int) for d in (*inner.result.shape, *node.result.shape)):
        return None
    starts = [s + i * step for s, i, step in zip(inner.attrs["starts"], node.attrs["starts"], inner.attrs["steps"])]
    steps = [p * q for p, q in zip(inner.attrs["steps"], node.attrs["steps"])]
    return b.slice(inner.operands[0], starts=starts, sizes=node.attrs["sizes"], steps=steps)


@rule("gather_of_a_range", "gather")
def _gather_of_a_range(b: Builder, node: Node) -> Rewritten:
    """Positions known at compile time with equal distances are a slice, which often is a view."""
    x, indices = node.operands
    array = constant_of(indices)
    axis = node.attrs["axis"] % x.type.rank
    dim = x.shape[axis]
    if array is None or array.size == 0 or not isinstance(dim, int):
        return None
    positions = array.reshape(-1).astype(np.int64)
    if positions.min() < -dim or positions.max() >= dim:
        return None  # an error at run time, where it belongs
    positions = np.where(positions < 0, positions + dim, positions)
    steps = np.unique(np.diff(positions))
    if len(steps) > 1 or (len(steps) == 1 and steps[0] == 0):
        return None
    rank = x.type.rank
    sliced = b.slice(
        x,
        starts=[int(positions[0]) if a == axis else 0 for a in range(rank)],
        sizes=[len(positions) if a == axis else d for a, d in enumerate(x.shape)],
        steps=[int(steps[0]) if a == axis and len(steps) else 1 for a in range(rank)],
    )
    return sliced if sliced.shape == node.result.shape else b.reshape(sliced, shape=node.result.shape)


@rule("single_concat", "concat")
def _single_concat(b: Builder, node: Node) -> Rewritten:
    if len(node.operands) == 1:
        return node.operands[0]
    axis = node.attrs["axis"] % node.result.type.rank
    filled = [v for v in node.operands if v.shape[axis] != 0]
    if len(filled) == len(node.operands) or not filled:
        return None
    return b.concat(*filled, axis=axis)


@rule("merge_concats", "concat")
def _merge_concats(b: Builder, node: Node) -> Rewritten:
    rank = node.result.type.rank
    axis = node.attrs["axis"] % rank
    parts: list[Value] = []
    for value in node.operands:
        inner = _made_by(value, "concat")
        merges = inner is not None and len(value.uses) == 1 and inner.attrs["axis"] % rank == axis
        parts.extend(inner.operands if merges and inner is not None else [value])
    return None if len(parts) == len(node.operands) else b.concat(*parts, axis=axis)


@rule("empty_pad", "pad")
def _empty_pad(b: Builder, node: Node) -> Rewritten:
    widths = (*node.attrs["low"], *node.attrs["high"])
    return node.operands[0] if all(w == 0 for w in widths) and keeps_type(node, 0) else None


@rule("flip_of_ones", "flip")
def _flip_of_ones(b: Builder, node: Node) -> Rewritten:
    x = node.operands[0]
    return x if all(x.shape[a % x.type.rank] == 1 for a in node.attrs["axes"]) and keeps_type(node, 0) else None


@rule("reduce_nothing", "reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_any", "reduce_all")
def _reduce_nothing(b: Builder, node: Node) -> Rewritten:
    x = node.operands[0]
    axes = [a % x.type.rank for a in node.attrs["axes"]] if node.attrs["axes"] else list(range(x.type.rank))
    if any(x.shape[a] != 1 for a in axes) or x.dtype != node.result.dtype:
        return None
    return x if x.type == node.result.type else b.reshape(x, shape=node.result.shape)


VIEWS = (
    _same_shape, _merge_reshapes, _merge_transposes, _transpose_of_ones, _view_of_one_number,
    _merge_broadcasts, _broadcast_by_the_op, _whole_slice, _merge_slices, _gather_of_a_range, _single_concat,
    _merge_concats, _empty_pad, _flip_of_ones, _reduce_nothing,
)  # fmt: skip
