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
