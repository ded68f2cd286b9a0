"""Common subexpressions: of two nodes that compute the same, the first serves both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dhc.ir.compare import node_key
from dhc.ir.graph import Graph, Node
from dhc.ir.text.formats import format_type
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import merge_results, replace_node


@register_pass
@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Merges equal pure nodes (same op, operands and attributes); constants by content.

    Operands of commutative ops may be swapped. Nodes that define sizes are never equal to others: each names its own.
    """

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph) -> PassResult:
        """One walk suffices: operands are merged before their users are looked at."""
        result = PassResult()
        seen: dict[Hashable, Node] = {}
        constants: dict[Hashable, list[Node]] = {}
        for node in graph:
            for region in node.regions:
                merge_results(result, self.run(region))
            if not node.op.pure:
                continue
            first = (
                _equal_constant(node, constants) if node.op.name == "constant" else seen.setdefault(_key(node), node)
            )
            if first is not node:
                replace_node(node, first.results)
                result.count("merged")
        return result


def _key(node: Node) -> Hashable:
    key = node_key(node)
    if node.op.commutative and isinstance(key, tuple):
        return tuple(frozenset(Counter(part).items()) if part is node.operands else part for part in key)
    return key


def _equal_constant(node: Node, constants: dict[Hashable, list[Node]]) -> Node:
    """The first constant of the same type and bits. Weights are large: only those that look alike are compared."""
    array = np.asarray(node.attrs["value"])
    if array.dtype == object:
        sample: Hashable = tuple(map(repr, array.flat))
    else:
        flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
        sample = flat[:: max(1, flat.size // 16)].tobytes()
    key = (format_type(node.result.type), node.device, array.dtype.str, array.shape, sample)
    alike = constants.setdefault(key, [])
    for other in alike:
        if array.dtype == object or _same_bits(array, other.attrs["value"]):
            return other
    alike.append(node)
    return node


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit: 0.0 is not -0.0, NaN is the same NaN."""
    if a is b or a.size <= 16:
        return True
    left, right = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    step = 2**20  # in parts: most arrays that differ do so soon
    return all(np.array_equal(left[i : i + step], right[i : i + step]) for i in range(0, left.size, step))
