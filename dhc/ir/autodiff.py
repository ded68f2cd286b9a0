"""Reverse-mode differentiation of graphs.

A gradient rule (`OpDef.grad`) turns the cotangents of a node's results into cotangents of its operands by writing
ordinary ops, so gradients run wherever the ops do and can be differentiated again. Cotangents have the dtype and shape
of their values. Only float and complex values carry one: for results of other types a rule gets None in their place.
Composite ops without a rule of their own are differentiated through their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dhc_runtime.errors import DhcError, TypeMismatchError

from dhc.ir.builder import Builder
from dhc.ir.copying import inline
from dhc.ir.dtypes import COMPLEX, FLOATS
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Composite
from dhc.ir.op import Call, NotDifferentiable
from dhc.ir.types import TensorType


def carries_gradient(value: Value) -> bool:
    """True for tensors of the floats that ops compute with (not those for storage only) and of complex numbers."""
    return isinstance(value.type, TensorType) and value.type.dtype in FLOATS | COMPLEX


def gradient(graph: Graph, wrt: Sequence[str] | None = None, with_outputs: bool = False) -> Graph:
    """The graph that computes vector-Jacobian products of `graph`.

    Args:
        graph: the function; it is left as it is.
        wrt: names of the inputs to differentiate by; None: every float input.
        with_outputs: also return the outputs of `graph`, before the gradients.

    Returns:
        A graph with the inputs of `graph`, then one input ``d_<output>`` for each float output (its cotangent). Its
        outputs ``grad_<input>`` have the types of the inputs that they belong to.

    Raises:
        DhcError: an op between an input and an output is not differentiable; the message names it and its place.
        TypeMismatchError: `wrt` names an unknown input or one that is not of floating type.
    """
    result = graph.clone(f"{graph.name}_gradient")
    by_name = {v.name: v for v in result.inputs}
    names = [v.name for v in result.inputs if carries_gradient(v)] if wrt is None else list(wrt)
    for name in names:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise TypeMismatchError(f"graph {graph.name!r} has no input {name!r} to differentiate by (it has: {known})")
        if not carries_gradient(by_name[name]):
            raise TypeMismatchError(f"cannot differentiate by input {name!r} of type {by_name[name].type}")
    outputs, output_names = result.outputs, list(result.output_names)
    seeds: list[Value | None] = []
    for value, name in zip(outputs, output_names):
        seeds.append(_cotangent_input(result, name, value) if carries_gradient(value) else None)
    targets = [by_name[name] for name in names]
    builder = Builder(result)
    found = _backpropagate(builder, result.nodes, outputs, seeds, targets)
    gradients = [builder.zeros_like(v) if g is None else g for v, g in zip(targets, found)]
    result.clear_outputs()
    if with_outputs:
        result.output(*outputs, names=output_names)
    result.output(*gradients, names=[f"grad_{name}" for name in names])
    _erase_unused(result)
    return result


def region_gradient(
    b: Builder, region: Graph, operands: Sequence[Value], cotangents: Sequence[Value | None]
) -> list[Value | None]:
    """Writes the gradient of a nested graph, applied to `operands`, into the graph of `b`.

    The body is copied in, so what it computed is computed again; later passes merge it with the first time.

    Args:
        b: where to write.
        region: the nested graph.
        operands: values of the graph of `b`, one per input of `region`.
        cotangents: one per output of `region`; None for integers and for outputs that nothing depends on.

    Returns:
        One cotangent per operand, None where none arrives.

    Raises:
        DhcError: an op on the way is not differentiable.
    """
    before = set(b.graph)
    # Stand-ins for the operands: the same value may be given twice, and each place has its own cotangent.
    places = [b.copy(v) if carries_gradient(v) and list(operands).count(v) > 1 else v for v in operands]
    outputs = inline(region, b.graph, places)
    nodes = [node for node in b.graph if node not in before]
    return _backpropagate(b, nodes, outputs, cotangents, places)


def _cotangent_input(graph: Graph, output: str, value: Value) -> Value:
    name, taken = f"d_{output}", {v.name for v in graph.inputs}
    while name in taken:
        name += "_"
    return graph.add_input(name, TensorType(value.type.dtype, value.type.shape))


def _backpropagate(
    b: Builder, nodes: Sequence[Node], outputs: Sequence[Value], seeds: Sequence[Value | None], targets: Sequence[Value]
) -> list[Value | None]:
    """Carries the seeds of `outputs` back through `nodes` (in order) to `targets`."""
    active = _depending_on(targets, nodes)
    totals: dict[Value, Value] = {}
    for output, seed in zip(outputs, seeds):
        if seed is not None and output in active:
            _accumulate(b, totals, output, seed)
    for node in reversed(nodes):
        if not any(v in active and carries_gradient(v) for v in node.operands):
            continue
        arrived = [totals.get(r) for r in node.results]
        if all(g is None for g in arrived):
            continue
        local = Builder(b.graph, node.location)
        filled = [
            g if g is not None or not carries_gradient(r) else local.zeros_like(r)
            for r, g in zip(node.results, arrived)
        ]
        for operand, g in zip(node.operands, _apply_rule(local, node, filled), strict=True):
            if g is not None and operand in active and carries_gradient(operand):
                _accumulate(local, totals, operand, g)
    return [totals.get(v) for v in targets]


def _depending_on(sources: Iterable[Value], nodes: Sequence[Node]) -> set[Value]:
    """The sources and what is computed from them through float values."""
    active = set(sources)
    for node in nodes:
        if any(v in active and carries_gradient(v) for v in node.operands):
            active.update(node.results)
    return active


def _accumulate(b: Builder, totals: dict[Value, Value], value: Value, g: Value) -> None:
    if g.dtype != value.dtype or g.type.rank != value.type.rank:
        raise DhcError(f"the gradient rule gave {g.type} for a value of type {value.type}", where=str(b.location))
    if g.shape != value.shape:  # equal sizes under different symbols
        g = b.reshape(g, shape=value.shape)
    totals[value] = b.add(totals[value], g) if value in totals else g


def _apply_rule(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    rule = node.op.grad
    if isinstance(rule, NotDifferentiable):
        raise DhcError(
            f"{node.op.name} is not differentiable: {rule.reason}",
            where=str(node.location),
            hint="differentiate by fewer inputs, or leave the op out of the path to the output",
        )
    if rule is not None:
        return list(rule(b, node, *cotangents))
    if isinstance(node.op.kind, Composite):
        return region_gradient(b, parts_of(node), node.operands, cotangents)
    raise DhcError(f"{node.op.name} has no gradient rule", where=str(node.location))


def parts_of(node: Node) -> Graph:
    """The parts of a composite node as a graph of their own."""
    assert isinstance(node.op.kind, Composite)
    parts = Graph(node.op.name, parent=node.graph)
    inputs = [parts.add_input(f"operand{i}", v.type) for i, v in enumerate(node.operands)]
    parts.output(*node.op.kind.build(Builder(parts, node.location), inputs, Call.of(node)))
    return parts


def _erase_unused(graph: Graph) -> None:
    """Removes what rules wrote for operands that nobody asked about."""
    for node in reversed(graph):
        if node.op.pure and not any(r.uses for r in node.results):
            node.erase()


__all__ = ["carries_gradient", "gradient", "parts_of", "region_gradient"]
