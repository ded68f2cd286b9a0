"""Estimates of work, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping

from dhc.ir import symbols
from dhc.ir.graph import Node
from dhc.ir.kinds import Structural
from dhc.ir.symbols import Dim


def known(dim: Dim, assume: int = 1) -> int:
    """A dim as a number; unknown symbols count as `assume`."""
    return symbols.evaluate(dim, dict.fromkeys(symbols.free_symbols(dim), assume))


def operations(node: Node, assume: int = 1) -> int:
    """Arithmetic operations of a node (of a fused group: of all its nodes)."""
    return max(known(_operations(node), assume), 0)


def operations_at(node: Node, sizes: Mapping[str, int]) -> int | None:
    """Like `operations`, for given values of the symbols; None where these do not tell."""
    count = _operations(node)
    if not set(symbols.free_symbols(count)) <= set(sizes):
        return None
    return max(symbols.evaluate(count, dict(sizes)), 0)


def _operations(node: Node) -> Dim:
    if not node.regions:
        return 0 if isinstance(node.op.kind, Structural) else node.op.cost_of(node).flops
    total: Dim = 0
    for region in node.regions:
        for inner in region:
            total = total + _operations(inner)
    return total


def moved_bytes(node: Node, assume: int = 1) -> int:
    """Bytes that a node reads and writes."""
    if isinstance(node.op.kind, Structural) and node.op.kind.name == "constant":
        return 0
    return max(known(node.op.cost_of(node).bytes, assume), 0)


def nanoseconds(node: Node) -> Dim:
    """Rough time of a node on one CPU core, symbolic: 40 operations and 10 bytes a nanosecond."""
    inner = [n for region in node.regions for n in region] or [node]
    flops: Dim = 0
    for n in inner:
        flops = flops + n.op.cost_of(n).flops
    moved: Dim = 0
    for value in (*node.operands, *node.results):
        moved = moved + value.type.nbytes
    return symbols.floordiv(flops + moved * 4, 40)
