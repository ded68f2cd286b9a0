"""Groups of whole rows: normalisations over the last axes, whose reductions and results share one shape.

A kernel goes through one row after the other, several times each, while the row stays in the first-level cache: memory
is read once and written once, and nothing in between is stored. What several passes need is computed in each, so only
cheap ops may be needed twice: a softmax, which needs its exponentials twice, stays as it is.
"""

from __future__ import annotations

from dhc.ir.dtypes import f32, f64
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Elementwise, Reduce
from dhc.ir.symbols import Shape, product

SHORTEST, LONGEST = 32, 4096
"""Elements of a row: a few vectors at least, and no more than several passes over it find in the cache."""
_CHEAP = ("add", "sub", "mul", "neg", "abs", "copy", "relu")


def row_group(root: Node, max_nodes: int) -> list[Node]:
    """The nodes that join `root` over rows; `root` alone when there is no reduction of rows among them.

    Args:
        root: an element-wise node.
        max_nodes: limit on the nodes of a group.
    """
    if not isinstance(root.op.kind, Elementwise) or len(root.results) != 1 or root.result.dtype not in (f32, f64):
        return [root]
    whole = tuple(root.result.shape)
    for axes in range(1, len(whole) + 1):
        length = product(whole[len(whole) - axes :])
        if not isinstance(length, int) or length > LONGEST:
            break
        if length < SHORTEST:
            continue
        found = _grown(root, whole, axes, max_nodes)
        if any(isinstance(n.op.kind, Reduce) for n in found):
            return found if _pays(found, root) else [root]
    return [root]


def _pays(group: list[Node], root: Node) -> bool:
    """Whether nothing is empty, and what is needed in several passes over a row costs little."""
    if any(v.type.numel == 0 for n in group for v in n.results):
        return False
    return all(
        len(n.result.uses) == 1 or n.op.name in _CHEAP
        for n in group
        if isinstance(n.op.kind, Elementwise) and n is not root and n.result.shape == root.result.shape
    )


def _grown(root: Node, whole: Shape, axes: int, max_nodes: int) -> list[Node]:
    reduced = (*whole[: len(whole) - axes], *(1,) * axes)
    chosen: dict[Node, None] = {root: None}
    pending = [root]
    while pending:
        node = pending.pop()
        for value in node.operands:
            producer = value.producer
            if producer is None or producer in chosen or len(chosen) >= max_nodes:
                continue
            if _joins(producer, value, whole, reduced) and all(use.user in chosen for use in value.uses):
                chosen[producer] = None
                pending.append(producer)
    return list(chosen)


def _joins(producer: Node, value: Value, whole: Shape, reduced: Shape) -> bool:
    if len(producer.results) != 1 or value.dtype not in (f32, f64):
        return False
    if isinstance(producer.op.kind, Elementwise):
        return tuple(value.shape) in (whole, reduced)
    if producer.op.name not in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min"):
        return False
    rank = len(whole)
    last = {axis % rank for axis in producer.attrs["axes"]} if producer.attrs["axes"] else set(range(rank))
    kept = len([d for d in reduced if d == 1])
    trailing = set(range(rank - len(last), rank)) == last and kept >= len(last)
    return trailing and tuple(value.shape) == reduced and tuple(producer.operands[0].shape) == whole
