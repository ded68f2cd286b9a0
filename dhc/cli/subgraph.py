"""Parts of graphs: intermediate values as outputs, and the smallest part that still shows a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dhc.ir.copying import copy_node
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.types import TensorType

Check = Callable[[Graph, dict[str, Any]], bool]
_TRIES = 64


def tapped(graph: Graph) -> tuple[Graph, dict[str, Node]]:
    """A copy whose outputs are all tensors that nodes of the outermost graph make (constants left out).

    Returns:
        The copy, and the node of ``graph`` that makes each output, in topological order, by name of the output.
    """
    copy = Graph(graph.name)
    mapping: dict[Value, Value] = {v: copy.add_input(v.name, v.type) for v in graph.inputs}
    outputs = dict(zip(graph.outputs, graph.output_names))
    makers: dict[str, Node] = {}
    taken = set(graph.output_names)
    for node in graph:
        copy_node(node, copy, mapping)
        if node.op.name == "constant":
            continue
        for index, value in enumerate(node.results):
            if not isinstance(value.type, TensorType) or value.dtype.kind == "s":
                continue
            name = outputs.get(value)
            if name is None:
                base = value.name or f"{node.op.name}_{len(makers)}_{index}"
                name, n = base, 1
                while name in taken:
                    name, n = f"{base}_{n}", n + 1
                taken.add(name)
            makers[name] = node
            copy.output(mapping[value], names=[name])
    return copy, makers


def extract(graph: Graph, nodes: Iterable[Node]) -> tuple[Graph, dict[str, Value]]:
    """The graph of some nodes; what they take from others becomes inputs, constants come along.

    Args:
        graph: the whole.
        nodes: nodes of its outermost level.

    Returns:
        The part, and the value of ``graph`` behind each of its inputs.
    """
    chosen = set(nodes)
    part = Graph(graph.name + "_part")
    mapping: dict[Value, Value] = {}
    behind: dict[str, Value] = {}
    for node in graph:
        if node not in chosen:
            continue
        for value in node.operands:
            if value in mapping:
                continue
            maker = value.producer
            if maker is not None and maker.op.name == "constant":
                copy_node(maker, part, mapping)
                continue
            base = value.name or f"value{len(behind)}"
            name, n = base, 1
            while name in behind:
                name, n = f"{base}_{n}", n + 1
            behind[name] = value
            mapping[value] = part.add_input(name, value.type)
        copy_node(node, part, mapping)
    for node in graph:
        if node in chosen:
            ends = [v for v in node.results if not any(u in chosen for u in v.users)]
            part.output(*(mapping[v] for v in ends))
    return part, behind


def smallest_failure(
    graph: Graph, culprit: Node, values: Mapping[Value, Any], fails: Check
) -> tuple[Graph, dict[str, Any]] | None:
    """Looks for the smallest part of a graph, ending at a node, that still fails.

    The part grows backwards from the node until it fails, then loses nodes as long as it does.

    Args:
        graph: the whole, with known sizes.
        culprit: the first node whose result is wrong.
        values: right values of everything the part may take as inputs.
        fails: runs a part on inputs and says whether it fails.

    Returns:
        The part and its inputs; None when no part fails by itself.
    """
    tries = 0

    def attempt(nodes: Sequence[Node]) -> tuple[Graph, dict[str, Any]] | None:
        nonlocal tries
        tries += 1
        part, behind = extract(graph, nodes)
        if any(value not in values for value in behind.values()):
            return None
        inputs = {name: values[value] for name, value in behind.items()}
        return (part, inputs) if fails(part, inputs) else None

    cone: list[Node] = [culprit]
    found = attempt(cone)
    depth = 1
    while found is None and tries < _TRIES:
        wider = _cone(culprit, depth)
        if len(wider) == len(cone):
            return None
        cone, depth = wider, depth * 2
        found = attempt(cone)
    if found is None:
        return None
    for node in [n for n in cone if n is not culprit]:
        if tries >= _TRIES:
            break
        smaller = [n for n in cone if n is not node]
        reduced = attempt(smaller)
        if reduced is not None:
            cone, found = smaller, reduced
    return found


def _cone(culprit: Node, depth: int) -> list[Node]:
    """A node and what it depends on, up to ``depth`` steps back."""
    chosen: dict[Node, None] = {culprit: None}
    level = [culprit]
    for _ in range(depth):
        before = [v.producer for node in level for v in node.operands if v.producer is not None]
        level = [n for n in dict.fromkeys(before) if n.op.name != "constant" and n not in chosen]
        chosen.update(dict.fromkeys(level))
    return list(chosen)
