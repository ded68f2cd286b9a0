"""What `--precision` means, as a graph: conversions written where layers round the factors of their products.

The interpreter on that graph is the law for kernels that multiply in bf16, as it is for all others on the graph as it
stands. Products are summed in f32 either way.
"""

from __future__ import annotations

from collections.abc import Mapping

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.graph import Graph, Node
from dhc.ir.kinds import Contract


def round_factors(graph: Graph, dtype: DType, layers: Mapping[str, bool]) -> int:
    """Rounds the weights of contractions to a type and back, and where asked for the other factor too, in place.

    Args:
        graph: a graph in f32, fused or not.
        dtype: bf16 or f16.
        layers: locations of layers, as the report of a compilation names them -> whether both factors are rounded.

    Returns:
        How many contractions were found.
    """
    found = 0
    for node in list(graph):
        both = layers.get(str(node.location))
        if both is None:
            continue
        body = node.regions[0] if node.op.name == "fused" else graph
        for inner in list(body) if node.op.name == "fused" else [node]:
            if isinstance(inner.op.kind, Contract):
                _round(inner, body, dtype, both)
                found += 1
    return found


def _round(node: Node, graph: Graph, dtype: DType, both: bool) -> None:
    for index in (0, 1) if both else (1,):
        value = node.operands[index]
        with graph.insertion_before(node):
            b = Builder(graph, node.location)
            node.set_operand(index, b.cast(b.cast(value, dtype=dtype), dtype=value.dtype))
