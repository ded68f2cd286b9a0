"""Replaces composite ops (softmax, normalisations, ...) by their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dhc.ir.builder import Builder
from dhc.ir.dtypes import f32
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Composite
from dhc.ir.op import Call
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import Rewritten, Rule, apply_rules


@register_pass
@dataclass(frozen=True)
class Decompose(Pass):
    """Rewrites composites until only primitive kinds are left.

    Attributes:
        keep: names of composites to leave alone, separated by ``+`` (a backend with a kernel of its own keeps them).
            Those with tensors of another element type than f32 are replaced all the same.
    """

    name: ClassVar[str] = "decompose"
    keep: str = ""

    def run(self, graph: Graph) -> PassResult:
        """Expands every composite, also in nested graphs."""
        kept = frozenset(filter(None, self.keep.split("+")))

        def expand(b: Builder, node: Node) -> Rewritten:
            if not isinstance(node.op.kind, Composite) or (node.op.name in kept and _is_single(node)):
                return None
            # One value or several: ops of third parties may return either.
            parts: Any = node.op.kind.build(b, node.operands, Call.of(node))
            return [parts] if isinstance(parts, Value) else list(parts)

        return apply_rules(graph, [Rule("decomposed", (), expand)])


def _is_single(node: Node) -> bool:
    return all(v.dtype == f32 for v in (*node.operands, *node.results))
