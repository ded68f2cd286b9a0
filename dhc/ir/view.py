"""Views of a graph for analysis and drawing: networkx, the critical path, Graphviz. Never a way to store graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dhc_runtime.errors import UsageError

from dhc.ir import symbols
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

_FLOPS_PER_SECOND = 5e10
_BYTES_PER_SECOND = 1e10


def to_networkx(graph: Graph) -> Any:
    """A `networkx.MultiDiGraph` of the outermost graph.

    Nodes are the graph's `Node` objects, its input `Value` objects and ``("output", name)``; all have `label` and
    `kind` (``input``, ``node``, ``output``), those of nodes also `op`, `device`, `flops` and `bytes`. Edges have the
    `value` they carry and its `bytes`. Sizes may be symbolic.
    """
    import networkx

    view = networkx.MultiDiGraph(name=graph.name)
    for value in graph.inputs:
        view.add_node(value, label=f"%{value.name}: {value.type}", kind="input")
    for node in graph:
        cost = node.op.cost_of(node)
        view.add_node(
            node,
            label=node.op.name,
            kind="node",
            op=node.op.name,
            device=node.device,
            flops=cost.flops,
            bytes=cost.bytes,
        )
        for operand in node.operands:
            view.add_edge(_source(operand), node, value=operand, bytes=value_bytes(operand))
    for name, value in zip(graph.output_names, graph.outputs):
        view.add_node(("output", name), label=name, kind="output")
        view.add_edge(_source(value), ("output", name), value=value, bytes=value_bytes(value))
    return view


def _source(value: Value) -> Node | Value:
    return value if value.producer is None else value.producer


def value_bytes(value: Value) -> Dim:
    """Bytes of a tensor value; 0 for others."""
    return value.type.nbytes if isinstance(value.type, TensorType) else 0


def seconds(node: Node, bindings: Mapping[str, int] | None = None) -> float:
    """A rough time: the longer of computing and moving on a nominal machine (50 GFLOP/s, 10 GB/s).

    Raises:
        UsageError: a symbol has no size.
    """
    cost = node.op.cost_of(node)
    try:
        flops, moved = (symbols.evaluate(d, bindings or {}) for d in (cost.flops, cost.bytes))
    except KeyError as error:
        raise UsageError(
            f"the cost of {node!r} depends on the size {error.args[0]}",
            where=str(node.location),
            hint=f"give its size: bindings={{{error.args[0]!r}: 1}}",
        ) from None
    return max(flops / _FLOPS_PER_SECOND, moved / _BYTES_PER_SECOND)


def critical_path(
    graph: Graph, cost: Callable[[Node], float] | None = None, bindings: Mapping[str, int] | None = None
) -> tuple[list[Node], float]:
    """The chain of nodes that bounds the time however many devices there are, and its cost.

    Args:
        graph: the graph.
        cost: cost of one node, not negative; by default `seconds` with the bindings.
        bindings: sizes of symbols.
    """
    price = cost if cost is not None else lambda node: seconds(node, bindings)
    total: dict[Node, float] = {}
    before: dict[Node, Node | None] = {}
    last: Node | None = None
    for node in graph:
        producers = [v.producer for v in node.operands if v.producer is not None]
        longest = max(producers, key=lambda p: total[p], default=None)
        before[node] = longest
        total[node] = price(node) + (total[longest] if longest is not None else 0.0)
        if last is None or total[node] > total[last]:
            last = node
    path: list[Node] = []
    at = last
    while at is not None:
        path.append(at)
        at = before[at]
    return path[::-1], total[last] if last is not None else 0.0


def to_dot(graph: Graph, constants: bool = False) -> str:
    """The graph in Graphviz' language: ``dot -Tsvg``. Edges show types; constants are left out unless asked for."""
    lines = [f"digraph {_quote(graph.name)} {{", "  node [shape=box, fontname=monospace];"]
    names: dict[Value, str] = {}
    for index, value in enumerate(graph.inputs):
        names[value] = f"in{index}"
        lines.append(f"  in{index} [shape=ellipse, label={_quote(f'%{value.name}')}];")
    for index, node in enumerate(graph):
        if node.op.name == "constant" and not constants:
            continue
        label = node.op.name + (f"\n@{node.device}" if node.device else "")
        lines.append(f"  n{index} [label={_quote(label)}];")
        for operand in node.operands:
            if operand in names:
                lines.append(f"  {names[operand]} -> n{index} [label={_quote(str(operand.type))}];")
        names.update(dict.fromkeys(node.results, f"n{index}"))
    for index, (name, value) in enumerate(zip(graph.output_names, graph.outputs)):
        lines.append(f"  out{index} [shape=ellipse, label={_quote(name)}];")
        if value in names:
            lines.append(f"  {names[value]} -> out{index} [label={_quote(str(value.type))}];")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
