"""Finds attention: softmax(scale · q kᵀ + more) v, written with two matrix products, and makes it one group.

A kernel for the group keeps a block of scores in cache and never writes the matrix of all of them. Transposes, slices
and scalings before the products and a transpose after them join the group: the kernel reads and writes in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dhc.ir.dtypes import boolean, f32
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.symbols import Dim, contiguous_strides
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.fuse import outline
from dhc.passes.rewrite import run_inside
from dhc.passes.strided import VIEWS, StridedView, refined_strides, viewed

MAX_BATCH_AXES = 4
_BETWEEN = ("add", "sub", "mul", "div", "where")


@dataclass(frozen=True)
class Attention:
    """An attention in a graph.

    Attributes:
        scores: the first matrix product.
        between: element-wise nodes from the scores to what the softmax takes, in order; reshapes that split and join
            batch axes among them.
        frame: the batch axes in their finest split; the views below have them.
        mixed: the second matrix product.
        q: the queries ``[batch..., m, d]``, before their scaling.
        k: the keys transposed, ``[batch..., d, n]``.
        v: the values ``[batch..., n, e]``.
        factor: product of the scalings of queries and keys.
        out: what is written: the mixed values, or their transpose.
        perm: axes of the transpose; None when there is none.
        nodes: all of it.
    """

    scores: Node
    between: tuple[Node, ...]
    frame: tuple[Dim, ...]
    mixed: Node
    q: StridedView
    k: StridedView
    v: StridedView
    factor: float
    out: Value
    perm: tuple[int, ...] | None
    nodes: frozenset[Node]


@register_pass
@dataclass(frozen=True)
class FuseAttention(Pass):
    """Puts each attention into a `fused` node."""

    name: ClassVar[str] = "fuse_attention"

    def run(self, graph: Graph) -> PassResult:
        """Groups the attentions of the graph and of the bodies of its control flow."""
        result = run_inside(self, graph)
        order = {node: position for position, node in enumerate(graph)}
        for node in graph.nodes:
            if node.graph is not graph or node.op.name != "matmul":
                continue
            found = find_attention(node)
            if found is None:
                continue
            members = sorted(found.nodes, key=order.__getitem__)
            outline(graph, members)
            result.count("attentions")
        return result


def find_attention(mixed: Node) -> Attention | None:
    """The attention whose second matrix product is given; None when there is none."""
    if mixed.op.name != "matmul" or mixed.result.dtype != f32 or any(v.dtype != f32 for v in mixed.operands):
        return None
    weights, values = mixed.operands
    softmax = _softmax(weights)
    if softmax is None:
        return None
    entering, softmax_nodes = softmax
    chain = _between(entering)
    if chain is None:
        return None
    scores, between = chain
    core = {mixed, scores, *between, *softmax_nodes}
    core |= {v.producer for n in between for v in n.operands if _is_literal(v) and v.producer is not None}
    batches = [tuple(n.result.shape[:-2]) for n in (scores, *between, mixed)]
    frame = max(batches, key=len)
    if len(frame) > MAX_BATCH_AXES or any(refined_strides(b, contiguous_strides(b), frame) is None for b in batches):
        return None
    if tuple(entering.shape[:-2]) != batches[-1] or any(
        n.result.shape[-2:] != scores.result.shape[-2:] for n in between
    ):
        return None
    if any(
        u not in core for n in core if n is not mixed and n.op.name != "constant" for v in n.results for u in v.users
    ):
        return None
    if any(v.is_output for n in core if n is not mixed for v in n.results):
        return None
    return _with_views(scores, between, frame, mixed, core, values)


def _with_views(
    scores: Node, between: tuple[Node, ...], frame: tuple[Dim, ...], mixed: Node, core: set[Node], values: Value
) -> Attention | None:
    """Adds the views and scalings before the products, and the transpose after them."""
    allowed: set[Node] = set()
    for value in (*scores.operands, values):
        _collect(value, allowed)
    while True:
        # What is used elsewhere too has to lie in memory anyway.
        inside = core | allowed
        outside = {n for n in allowed if any(v.is_output or any(u not in inside for u in v.users) for v in n.results)}
        if not outside:
            break
        allowed -= outside
    seen = [_look_through(scores.operands[0], allowed), _look_through(scores.operands[1], allowed)]
    seen.append(_look_through(values, {n for n in allowed if n.op.name in VIEWS}))
    batches = [tuple(n.result.shape[:-2]) for n in (scores, scores, mixed)]
    whole = [view.broadcast((*batch, *view.shape[-2:])) for (view, _, _), batch in zip(seen, batches)]
    views = [None if view is None else view.refined(frame) for view in whole]
    if any(view is None for view in views):
        return None
    q, k, v = (view for view in views if view is not None)
    if q.steps[-1] not in (0, 1) or v.steps[-1] not in (0, 1) or not {0, 1} & set(k.steps[-2:]):
        return None
    used = core.union(*(nodes for _, _, nodes in seen))
    if any(view.base.producer in used for view in (q, k, v)):
        return None
    out, perm = mixed.result, None
    users = out.users
    if len(users) == 1 and not out.is_output and users[0].op.name == "transpose":
        order = tuple(users[0].attrs["perm"])
        if order[-1] == out.type.rank - 1:
            out, perm = users[0].result, order
            used.add(users[0])
    return Attention(scores, between, frame, mixed, q, k, v, seen[0][1] * seen[1][1], out, perm, frozenset(used))


def _softmax(weights: Value) -> tuple[Value, set[Node]] | None:
    """What a softmax over the last axis takes, and its nodes."""
    div = weights.producer
    if div is None or div.op.name != "div":
        return None
    exp, total = (v.producer for v in div.operands)
    if exp is None or exp.op.name != "exp" or total is None or total.op.name != "reduce_sum":
        return None
    sub = exp.operands[0].producer
    if sub is None or sub.op.name != "sub" or total.operands[0] is not exp.result:
        return None
    top = sub.operands[1].producer
    if top is None or top.op.name != "reduce_max" or top.operands[0] is not sub.operands[0]:
        return None
    last = sub.result.type.rank - 1
    for node in (top, total):
        axes = tuple(axis % (last + 1) for axis in node.attrs["axes"])
        if axes != (last,) or not node.attrs["keepdims"]:
            return None
    return sub.operands[0], {div, exp, total, sub, top}


def _between(entering: Value) -> tuple[Node, tuple[Node, ...]] | None:
    """The matrix product of the scores and the element-wise nodes after it."""
    chain: list[Node] = []
    value = entering
    while len(chain) < 8:
        node = value.producer
        if node is None or value.dtype != f32:
            return None
        if node.op.name == "matmul":
            return (node, tuple(chain[::-1])) if all(v.dtype == f32 for v in node.operands) else None
        if node.op.name == "reshape" and node.result.shape[-2:] == node.operands[0].shape[-2:]:
            chain.append(node)
            value = node.operands[0]
            continue
        if node.op.name not in _BETWEEN:
            return None
        from_scores = [v for v in node.operands if v.producer is not None and _leads(v, 8 - len(chain))]
        if len(from_scores) != 1 or any(not _is_row(v, node.result) for v in node.operands if v is not from_scores[0]):
            return None
        chain.append(node)
        value = from_scores[0]
    return None


def _leads(value: Value, limit: int) -> bool:
    """Whether a value of the scores' kind: a matrix product, or element-wise nodes over one that is used here alone."""
    node = value.producer
    if node is None or limit == 0 or len(value.users) > 2:
        return False
    if node.op.name == "matmul":
        return True
    if node.op.name == "reshape":
        return node.result.shape[-2:] == node.operands[0].shape[-2:] and _leads(node.operands[0], limit - 1)
    return node.op.name in _BETWEEN and any(_leads(v, limit - 1) for v in node.operands)


def _is_row(value: Value, result: Value) -> bool:
    """Whether a kernel can read rows of an operand: of the scores' last size, or one element repeated."""
    if value.dtype not in (f32, boolean) or value.type.rank > result.type.rank:
        return False
    sizes = (1,) * (result.type.rank - value.type.rank) + tuple(value.shape)
    return all(have in (1, want) for have, want in zip(sizes, result.shape))


def _is_literal(value: Value) -> bool:
    producer = value.producer
    return producer is not None and producer.op.name == "constant" and value.type.numel == 1


def literal(value: Value) -> float | None:
    """The number that a constant of one element holds."""
    if not _is_literal(value) or value.producer is None or value.dtype != f32:
        return None
    return float(value.producer.attrs["value"].reshape(-1)[0])


def _scaling(node: Node) -> tuple[Value, float] | None:
    """What a node multiplies by a number, and the number."""
    if node.op.name not in ("mul", "div"):
        return None
    for index in (1, 0) if node.op.name == "mul" else (1,):
        factor = literal(node.operands[index])
        other = node.operands[1 - index]
        if factor is not None and factor != 0 and other.shape == node.result.shape:
            return other, factor if node.op.name == "mul" else 1 / factor
    return None


def _collect(value: Value, nodes: set[Node]) -> None:
    """Views and scalings before a value."""
    node = value.producer
    if node is None:
        return
    scaling = _scaling(node)
    if node.op.name in VIEWS or scaling is not None:
        nodes.add(node)
        _collect(node.operands[0] if scaling is None else scaling[0], nodes)


def _look_through(value: Value, allowed: set[Node]) -> tuple[StridedView, float, set[Node]]:
    """A value as a view of what lies in memory, times a factor; and the nodes in between."""
    node = value.producer
    if node is None or node not in allowed:
        return StridedView.whole(value), 1.0, set()
    scaling = _scaling(node)
    view, factor, nodes = _look_through(node.operands[0] if scaling is None else scaling[0], allowed)
    if scaling is not None:
        literals = {v.producer for v in node.operands if _is_literal(v) and v.producer is not None}
        return view, factor * scaling[1], nodes | literals | {node}
    seen = viewed(view, node)
    return (StridedView.whole(value), 1.0, set()) if seen is None else (seen, factor, nodes | {node})
