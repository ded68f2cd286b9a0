"""Groups nodes that run as one kernel.

A group has one result. It grows from its last node towards the inputs: a producer joins when every use of it is in
the group already, so that nothing is computed twice and no cycle can arise. What may join:

* element-wise nodes of the root's shape, and cheap generators, broadcasts and slices;
* before a reduction: element-wise nodes of the shape that is reduced (before overlapping windows: cheap ones only);
* one reduction whose result has the root's shape: the element-wise nodes after it are its epilogue.

A contraction, a resize or a normalisation over space takes the element-wise nodes that follow it as its epilogue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from dhc.ir import registry
from dhc.ir.copying import copy_node
from dhc.ir.dtypes import f32, f64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce
from dhc.ir.location import Location
from dhc.ir.op import Call
from dhc.ir.symbols import Dim, Shape, free_symbols, product, substitute
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.fuse_rows import row_group
from dhc.passes.rewrite import run_inside

_CHEAP_MAPS = ("broadcast_to", "iota", "eye", "slice", "flip")
_CHEAP = frozenset(
    "add sub mul neg abs relu minimum maximum clamp where cast copy eq ne lt le gt ge logical_and logical_or "
    "logical_xor logical_not bit_and bit_or bit_xor bit_not sign round floor ceil trunc leaky_relu real imag".split()
)
"""Element-wise ops of a few instructions: computing them again costs less than writing and reading their result."""
_ANCHORS = ("group_norm", "instance_norm", "resize")
"""Ops besides contractions for which a backend may have a kernel that also computes what follows."""
_LOOK_AHEAD = 12
"""Nodes that are looked at behind a value with several uses, to find where the ways meet."""
_TYPICAL_SIZE = 64
"""Stands for symbols where costs are compared."""


@register_pass
@dataclass(frozen=True)
class Fuse(Pass):
    """Puts groups of nodes into `fused` nodes.

    Attributes:
        max_nodes: limit on the nodes of a group, which bounds the time to compile its kernel.
        contractions: whether element-wise nodes join the contraction before them.
        recompute: how often a cheap element may be computed for windows that overlap (pooling) to join them.
    """

    name: ClassVar[str] = "fuse"
    max_nodes: int = 48
    contractions: bool = True
    recompute: int = 4

    def run(self, graph: Graph) -> PassResult:
        """Groups the nodes of the graph and of the bodies of its control flow."""
        result = run_inside(self, graph)
        order = {node: position for position, node in enumerate(graph)}
        if self.contractions:
            # Contractions first: an epilogue saves a pass over memory, which grouping its ops elsewhere would not.
            self._outline_all(graph, graph.nodes, self._epilogue, order, result)
        self._outline_all(graph, graph.nodes[::-1], lambda node: row_group(node, self.max_nodes), order, result)
        self._outline_all(graph, graph.nodes[::-1], self._group, order, result)
        return result

    def _outline_all(
        self,
        graph: Graph,
        nodes: list[Node],
        choose: Callable[[Node], list[Node]],
        order: dict[Node, int],
        result: PassResult,
    ) -> None:
        for node in nodes:
            if node.graph is not graph or node.op.name == "fused":
                continue
            group = choose(node)
            if len(group) > 1:
                group = sorted(_with_literals(group), key=order.__getitem__)
                outline(graph, group)
                result.count("groups")
                result.count("nodes", len(group))

    def _epilogue(self, contraction: Node) -> list[Node]:
        """An anchor and the element-wise nodes that follow it, as far as one value leads on from them.

        A value may be used several times on the way (``x * sigmoid(x)``) when the ways meet again within a few nodes.
        """
        kind, name = contraction.op.kind, contraction.op.name
        if not (isinstance(kind, Contract) or name in _ANCHORS) or len(contraction.results) != 1:
            return [contraction]
        shape = contraction.result.shape
        chosen: dict[Node, None] = {contraction: None}
        closed = 1  # how many of the chosen nodes make a group with one result
        while len(chosen) < min(self.max_nodes, closed + _LOOK_AHEAD):
            leading = [n.result for n in chosen if n.result.is_output or any(u not in chosen for u in n.result.users)]
            if len(leading) == 1:
                closed = len(chosen)
            following = (u for v in leading for u in v.users if u not in chosen and u.graph is contraction.graph)
            # What nothing uses would end the group beside the value that leads on.
            joining = next((u for u in following if _is_pointwise(u, shape) and u.result.uses), None)
            if joining is None:
                break
            chosen[joining] = None
        return [*_turned(contraction), *list(chosen)[:closed]]

    def _group(self, root: Node) -> list[Node]:
        """Nodes that join `root`."""
        if not isinstance(root.op.kind, (Elementwise, Reduce)) or len(root.results) != 1:
            return [root]
        chosen: dict[Node, None] = {root: None}
        anchor = root if isinstance(root.op.kind, Reduce) else None
        shapes = {root.result.shape} if anchor is None else {v.shape for v in root.operands}
        pending = [root]
        while pending and len(chosen) < self.max_nodes:
            node = pending.pop()
            for value in dict.fromkeys(node.operands):
                producer = value.producer
                if producer is None or producer in chosen or len(producer.results) != 1:
                    continue
                if not self._joins(producer, value, shapes, anchor, root):
                    continue
                if len(chosen) >= self.max_nodes or any(use.user not in chosen for use in value.uses):
                    continue
                chosen[producer] = None
                pending.append(producer)
                if isinstance(producer.op.kind, Reduce):
                    anchor = producer
                    shapes = shapes | {v.shape for v in producer.operands}
        if anchor is not None and len(chosen) > 1 and any(v.type.numel == 0 for n in chosen for v in n.results):
            return [root]
        return list(chosen)

    def _joins(
        self, producer: Node, value: Value, shapes: set[tuple[object, ...]], anchor: Node | None, root: Node
    ) -> bool:
        kind = producer.op.kind
        if isinstance(kind, (Elementwise, Map)):
            if value.shape not in shapes or (isinstance(kind, Map) and producer.op.name not in _CHEAP_MAPS):
                return False
            return anchor is None or value.shape == root.result.shape or self._may_repeat(producer, value, anchor)
        if isinstance(kind, Reduce):
            return anchor is None and value.shape == root.result.shape
        return False

    def _may_repeat(self, producer: Node, value: Value, anchor: Node) -> bool:
        """Overlapping windows read an element several times: what joins before them is computed each time."""
        if not isinstance(anchor.op.kind, Reduce) or anchor.op.kind.role != "window":
            return True
        domain = anchor.op.kind.spec(Call.of(anchor)).domain
        reads = _typical(anchor.results[0].type.numel) * _typical(product(domain))
        elements = _typical(value.type.numel)
        if reads <= elements:
            return True
        return producer.op.name in _CHEAP and reads <= self.recompute * elements


def _is_pointwise(node: Node, shape: Shape) -> bool:
    return isinstance(node.op.kind, Elementwise) and len(node.results) == 1 and node.result.shape == shape


def _turned(contraction: Node) -> list[Node]:
    """Transposes before a matrix product alone: its kernel reads rows or columns."""
    if contraction.op.name != "matmul" or contraction.result.dtype not in (f32, f64):
        return []
    return list(dict.fromkeys(v.producer for v in contraction.operands if v.producer is not None and is_turned(v)))


def is_turned(value: Value) -> bool:
    """Whether a value is a transpose of matrices that one node uses, once."""
    node = value.producer
    if node is None or node.op.name != "transpose" or len(value.uses) != 1 or value.is_output:
        return False
    rank = value.type.rank
    return tuple(node.attrs["perm"]) == (*range(rank - 2), rank - 1, rank - 2)


def _typical(dim: Dim) -> int:
    found = substitute(dim, dict.fromkeys(free_symbols(dim), _TYPICAL_SIZE))
    return found if isinstance(found, int) else 0


def _with_literals(nodes: list[Node]) -> list[Node]:
    """The nodes and the constants of one element that they use, which become literals of the kernel."""
    chosen = dict.fromkeys(nodes)
    for node in nodes:
        for value in node.operands:
            producer = value.producer
            if producer is not None and producer.op.name == "constant" and value.type.numel == 1:
                chosen[producer] = None
    return list(chosen)


def outline(graph: Graph, group: list[Node]) -> Node:
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
