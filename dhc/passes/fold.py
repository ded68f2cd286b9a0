"""Evaluates what is known at compile time, within a budget of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node
from dhc.ir.kinds import Composite, Structural
from dhc.ir.op import Call
from dhc.ir.types import TensorType
from dhc.passes.base import Pass, PassResult, Refusal, register_pass
from dhc.passes.rewrite import replace_node


@register_pass
@dataclass(frozen=True)
class Fold(Pass):
    """Replaces nodes whose operands are all constants by constants.

    Attributes:
        budget: bytes that folded results may add to the graph beyond the constants they replace.
        largest: a single result never adds more than this many bytes.
    """

    name: ClassVar[str] = "fold"
    budget: int = 256 * 2**20
    largest: int = 64 * 2**20

    def run(self, graph: Graph) -> PassResult:
        """Folds in one walk; nested graphs too."""
        result = PassResult()
        self._fold(graph, self.budget, result)
        return result

    def _fold(self, graph: Graph, left: int, result: PassResult, in_group: bool = False) -> int:
        # A group is one kernel: constants of one element are its literals, larger ones could only be its operands.
        for node in graph:
            for region in node.regions:
                left = self._fold(region, left, result, in_group or node.op.kind == Structural("group"))
            if not _is_foldable(node) or (in_group and any(r.type.numel != 1 for r in node.results)):
                continue
            needed = sum(int(r.type.nbytes) for r in node.results)
            freed = sum(int(v.type.nbytes) for v in node.operands if len(v.uses) == 1)
            if needed - freed > min(self.largest, left):
                result.refusals.append(Refusal.at(self.name, node, f"the result would take {needed} bytes"))
                continue
            call = Call.of(node)
            arrays = [v.producer.attrs["value"] for v in node.operands if v.producer is not None]
            try:
                with np.errstate(all="ignore"):
                    outcome = node.op.reference(call, *arrays)
            except (DhcError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
                # The node would fail at run time: it stays, so that the error shows where the user expects it.
                result.refusals.append(Refusal.at(self.name, node, str(error)))
                continue
            values = outcome if isinstance(outcome, tuple) else (outcome,)
            with graph.insertion_before(node):
                b = Builder(graph, node.location)
                replaced = [
                    b.constant(np.asarray(array), old.type.dtype, name=old.name)
                    for array, old in zip(values, node.results, strict=True)
                ]
            replace_node(node, replaced)
            result.count("folded")
            left -= max(needed - freed, 0)
        return left


def _is_foldable(node: Node) -> bool:
    if not node.op.pure or node.regions or isinstance(node.op.kind, Structural):
        return False
    if isinstance(node.op.kind, Composite) and not node.operands:
        return False
    if any(not isinstance(r.type, TensorType) or not r.type.is_static for r in node.results):
        return False
    if not node.operands and getattr(node.op.kind, "role", "") != "generate":
        return False
    if not _has_static_attrs(node):
        return False
    return all(v.producer is not None and v.producer.op.name == "constant" for v in node.operands)


def _has_static_attrs(node: Node) -> bool:
    """False for sizes in attributes that only a run tells: the result's shape may be known even then."""
    dims = [node.attrs[a.name] for a in node.op.attrs if a.kind in ("dim", "dims")]
    flat = [d for entry in dims for d in (entry if isinstance(entry, tuple) else (entry,))]
    return all(d is None or isinstance(d, int) for d in flat)
