"""Which contractions have results that become integers: their roundings decide between neighbouring steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Contract


def become_integers(tail: Iterable[Node], results: Iterable[Value]) -> bool:
    """Whether values turn into integers before the next contraction, as between the layers of a quantized model.

    A sum that lies near the middle between two steps falls to either side by its rounding errors, and what follows
    moves by a whole step. Such sums are taken by methods that change nothing but the order of summation.

    Args:
        tail: the nodes that follow the contraction in its group.
        results: the values of the graph that the group computes.
    """
    if any(_makes_integers(n) for n in tail):
        return True
    waiting, seen = list(results), set[Node]()
    while waiting:
        for user in waiting.pop().users:
            if user in seen:
                continue
            seen.add(user)
            inner = list(inside(user))
            if any(_makes_integers(n) for n in inner):
                return True
            if not any(isinstance(n.op.kind, Contract) for n in inner):
                waiting.extend(user.results)
    return False


def inside(node: Node) -> Iterator[Node]:
    """A node, or the nodes of a fused group."""
    if node.op.name == "fused":
        yield from node.regions[0]
    else:
        yield node


def _makes_integers(node: Node) -> bool:
    if node.op.name not in ("cast", "quantize"):
        return False
    dtype = node.result.dtype
    return node.operands[0].dtype.is_float and dtype.is_integer
