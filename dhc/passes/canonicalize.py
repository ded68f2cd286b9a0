"""Local simplifications that never change a bit of the result: one form for each meaning, fewer nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dhc.ir.graph import Graph
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import apply_rules, merge_results
from dhc.passes.rules.arithmetic import ARITHMETIC
from dhc.passes.rules.control import CONTROL, constants_inwards
from dhc.passes.rules.sizes import SIZES
from dhc.passes.rules.views import VIEWS
from dhc.passes.rules.windows import WINDOWS

RULES = (*VIEWS, *WINDOWS, *ARITHMETIC, *CONTROL, *SIZES)


@register_pass
@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies bit-exact local simplifications until none is left."""

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph) -> PassResult:
        """Rewrites the graph and nested graphs."""
        result = PassResult()
        result.count("constants_inwards", constants_inwards(graph))
        merge_results(result, apply_rules(graph, RULES))
        return result
