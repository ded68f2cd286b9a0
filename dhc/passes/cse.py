"""Common subexpressions: of two nodes that compute the same, the first serves both."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dhc.ir.graph import Graph, Node
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import replace_node


@register_pass
@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Merges equal pure nodes (same op, operands and attributes); constants by content."""

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph) -> PassResult:
        """One walk suffices: operands are merged before their users are looked at."""
        result = PassResult()
        seen: dict[Hashable, Node] = {}
        for node in graph:
            for region in node.regions:
                result.count("merged", self.run(region).statistics.get("merged", 0))
            if not node.op.pure or node.regions or any(a.kind == "symbol" for a in node.op.attrs):
                continue
            if node.attrs.get("symbols"):
                continue
            key = _key(node)
            first = seen.setdefault(key, node)
            if first is not node:
                replace_node(node, first.results)
                result.count("merged")
        return result


def _key(node: Node) -> Hashable:
    attrs = tuple((name, _freeze(value)) for name, value in sorted(node.attrs.items()))
    operands = tuple(id(v) for v in node.operands)
    if node.op.commutative:
        operands = tuple(sorted(operands))
    return (node.op.name, operands, attrs, tuple(r.type for r in node.results), node.device)


def _freeze(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return ("objects", value.shape, tuple(map(repr, value.flat)))
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", np.float64(value).tobytes())  # 0.0 and -0.0 differ, NaN equals itself
    if isinstance(value, tuple):
        return tuple(_freeze(v) for v in value)
    return (type(value).__name__, value)
