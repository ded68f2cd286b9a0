"""Estimates of work, before anything is measured."""

from __future__ import annotations

from dhc.ir import symbols
from dhc.ir.graph import Node
from dhc.ir.kinds import Structural
from dhc.ir.symbols import Dim


def known(dim: Dim, assume: int = 1) -> int:
    """A dim as a number; unknown symbols count as `assume`."""
    return symbols.evaluate(dim, dict.fromkeys(symbols.free_symbols(dim), assume))


def operations(node: Node, assume: int = 1) -> int:
    """Arithmetic operations of a node (of a fused group: of all its nodes)."""
    if node.regions:
        return sum(operations(inner, assume) for region in node.regions for inner in region)
    if isinstance(node.op.kind, Structural):
        return 0
    return max(known(node.op.cost_of(node).flops, assume), 0)


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
