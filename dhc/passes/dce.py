"""Removes nodes whose results nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dhc.ir.graph import Graph
from dhc.ir.symbols import free_symbols
from dhc.ir.types import TensorType
from dhc.passes.base import Pass, PassResult, register_pass


@register_pass
@dataclass(frozen=True)
class DeadCode(Pass):
    """Erases unused pure nodes, also in nested graphs. Graph inputs stay: they are the signature."""

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph) -> PassResult:
        """Walks backwards once; erasing a node may free the ones before it."""
        result = PassResult()
        needed = _symbols_in_use(graph)
        for node in reversed(graph):
            for region in node.regions:
                result.count("removed", self.run(region).statistics.get("removed", 0))
            if any(v.uses for v in node.results):
                continue
            defines = {*node.attrs.get("names", ()), *node.attrs.get("symbols", ())}
            defines |= {node.attrs[a.name] for a in node.op.attrs if a.kind == "symbol"}
            if defines & needed or (not node.op.pure and not defines):
                continue
            node.erase()
            result.count("removed")
        return result


def _symbols_in_use(graph: Graph) -> set[str]:
    """Symbols that occur in a type or attribute of a node other than the one that defines them."""
    used: set[str] = set()
    for node in graph.walk():
        own = {*node.attrs.get("names", ()), *node.attrs.get("symbols", ())}
        own |= {node.attrs[a.name] for a in node.op.attrs if a.kind == "symbol"}
        found: set[str] = set()
        for value in (*node.operands, *node.results):
            if isinstance(value.type, TensorType):
                for dim in value.type.shape:
                    found.update(free_symbols(dim))
        for spec in node.op.attrs:
            if spec.kind in ("dim", "dims"):
                dims = node.attrs[spec.name] if spec.kind == "dims" else (node.attrs[spec.name],)
                for dim in dims:
                    found.update(free_symbols(dim))
        used |= found - own
    for value in graph.outputs:
        if isinstance(value.type, TensorType):
            for dim in value.type.shape:
                used.update(free_symbols(dim))
    return used
