"""Groups nodes that run as one kernel.

A group has one result. It grows from its last node towards the inputs: a producer joins when every use of it is in
the group already, so that nothing is computed twice and no cycle can arise. What may join:

* element-wise nodes of the root's shape, and cheap generators and broadcasts;
* before a reduction: element-wise nodes of the shape that is reduced;
* one reduction whose result has the root's shape: the element-wise nodes after it are its epilogue.

A contraction takes the chain of element-wise nodes that follow it as its epilogue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from dhc.ir import registry
from dhc.ir.graph import Graph, Node, Value, copy_node
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce
from dhc.ir.location import Location
from dhc.passes.base import Pass, PassResult, register_pass

_CHEAP_MAPS = ("broadcast_to", "iota")


@register_pass
@dataclass(frozen=True)
class Fuse(Pass):
    """Puts groups of nodes into `fused` nodes.

    Attributes:
        max_nodes: limit on the nodes of a group, which bounds the time to compile its kernel.
        contractions: whether element-wise nodes join the contraction before them.
    """

    name: ClassVar[str] = "fuse"
    max_nodes: int = 48
    contractions: bool = True

    def run(self, graph: Graph) -> PassResult:
        """Groups the nodes of the graph and of the bodies of its control flow."""
        result = PassResult()
        for node in graph:
            for region in node.regions if node.op.name != "fused" else ():  # groups do not nest
                for what, n in self.run(region).statistics.items():
                    result.count(what, n)
        if self.contractions:
            # Contractions first: an epilogue saves a pass over memory, which grouping its ops elsewhere would not.
            self._outline_all(graph, graph.nodes, self._epilogue, result)
        self._outline_all(graph, graph.nodes[::-1], self._group, result)
        return result

    def _outline_all(
        self, graph: Graph, nodes: list[Node], choose: Callable[[Node], list[Node]], result: PassResult
    ) -> None:
        for node in nodes:
            if node.graph is not graph or node.op.name == "fused":
                continue
            group = choose(node)
            if len(group) > 1:
                _outline(graph, group)
                result.count("groups")
                result.count("nodes", len(group))

    def _epilogue(self, contraction: Node) -> list[Node]:
        """A contraction and the chain of element-wise nodes that follow it."""
        if not isinstance(contraction.op.kind, Contract) or len(contraction.results) != 1:
            return [contraction]
        chain = [contraction]
        while len(chain) < self.max_nodes:
            value = chain[-1].result
            users = value.users
            if len(users) != 1 or value.is_output or len(users[0].results) != 1:
                break
            user = users[0]
            if not isinstance(user.op.kind, Elementwise) or user.result.shape != value.shape:
                break
            chain.append(user)
        return self._with_literals(chain)

    def _with_literals(self, nodes: list[Node]) -> list[Node]:
        """The nodes in graph order, with constants of one element, which become literals of the kernel."""
        chosen = dict.fromkeys(nodes)
        for node in nodes:
            for value in node.operands:
                producer = value.producer
                if producer is not None and producer.op.name == "constant" and value.type.numel == 1:
                    chosen[producer] = None
        ordered = sorted(chosen, key=_positions(nodes[0]).__getitem__)
        return ordered if len(nodes) > 1 else nodes

    def _group(self, root: Node) -> list[Node]:
        """Nodes that join `root`, in graph order."""
        if not isinstance(root.op.kind, (Elementwise, Reduce)) or len(root.results) != 1:
            return [root]
        chosen: dict[Node, None] = {root: None}
        anchor = root if isinstance(root.op.kind, Reduce) else None
        shapes = {root.result.shape} if anchor is None else {v.shape for v in root.operands}
        pending = [root]
        while pending and len(chosen) < self.max_nodes:
            node = pending.pop()
            for value in node.operands:
                producer = value.producer
                if producer is None or producer in chosen or len(producer.results) != 1 or value.is_output:
                    continue
                if any(user not in chosen for user in value.users) or len(chosen) >= self.max_nodes:
                    continue
                if self._joins(producer, value, shapes, anchor, root):
                    chosen[producer] = None
                    pending.append(producer)
                    if isinstance(producer.op.kind, Reduce):
                        anchor = producer
                        shapes = shapes | {v.shape for v in producer.operands}
        if anchor is not None and len(chosen) > 1 and any(v.type.numel == 0 for n in chosen for v in n.results):
            return [root]
        return self._with_literals(list(chosen))

    def _joins(
        self, producer: Node, value: Value, shapes: set[tuple[object, ...]], anchor: Node | None, root: Node
    ) -> bool:
        kind = producer.op.kind
        if isinstance(kind, Elementwise):
            return value.shape in shapes
        if isinstance(kind, Map):
            return producer.op.name in _CHEAP_MAPS and value.shape in shapes
        if isinstance(kind, Reduce):
            return anchor is None and value.shape == root.result.shape
        return False


def _positions(node: Node) -> dict[Node, int]:
    """Order of the nodes around `node`."""
    graph = node.graph
    assert graph is not None
    return {n: i for i, n in enumerate(graph)}


def _outline(graph: Graph, group: list[Node]) -> Node:
    """Moves a group into the nested graph of a new `fused` node."""
    root = group[-1] if group[-1].op.name != "constant" else next(n for n in reversed(group) if n.op.name != "constant")
    members = set(group)
    body = Graph("group", parent=graph)
    mapping: dict[Value, Value] = {}
    operands: list[Value] = []
    for node in group:
        for value in node.operands:
            if value in mapping or value.producer in members:
                continue
            mapping[value] = body.add_input(f"a{len(operands)}", value.type)
            operands.append(value)
        copy_node(node, body, mapping)
    body.output(*(mapping[v] for v in root.results))
    anchor = next((n for n in group if isinstance(n.op.kind, (Contract, Reduce))), root)
    location = anchor.location if anchor.location != Location() else root.location
    with graph.insertion_before(root):
        fused = graph.create(
            registry.get("fused"), operands, {}, [body], location, [r.name for r in root.results],
            [r.type for r in root.results],
        )  # fmt: skip
    fused.device = root.device
    for old, new in zip(root.results, fused.results):
        old.replace_all_uses_with(new)
    for node in reversed(group):
        if not any(v.uses for v in node.results):
            node.erase()
    return fused
