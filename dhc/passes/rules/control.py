"""Control flow whose way is known: branches and single runs are inlined, constants move into nested graphs."""

from __future__ import annotations

from dhc.ir.builder import Builder
from dhc.ir.copying import copy_node, inline
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.symbols import Dim, free_symbols, sym
from dhc.ir.types import TensorType
from dhc.passes.base import Refusal
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of
from dhc.passes.rules.sizes import replace_symbols


def _known_branch(condition: Value) -> bool | None:
    array = constant_of(condition)
    return None if array is None else bool(array.reshape(-1)[0])


@rule("branch_known", "if")
def _branch_known(b: Builder, node: Node) -> Rewritten:
    condition = _known_branch(node.operands[0])
    if condition is None:
        return None
    region = node.regions[0 if condition else 1]
    return _inlined(b, node, region, list(node.operands[1:]), list(region.outputs), "branch_known")


@rule("loop_never_runs", "loop")
def _loop_never_runs(b: Builder, node: Node) -> Rewritten:
    trips = constant_of(node.operands[0])
    never = (trips is not None and int(trips) <= 0) or _known_branch(node.operands[1]) is False
    carried = node.attrs["carried"]
    if not never or node.attrs["symbols"] or len(node.results) != carried:
        return None
    initial = node.operands[2 : 2 + carried]
    return initial if all(v.type == r.type for v, r in zip(initial, node.results)) else None


@rule("loop_runs_once", "loop")
def _loop_runs_once(b: Builder, node: Node) -> Rewritten:
    trips = constant_of(node.operands[0])
    if trips is None or int(trips) != 1 or _known_branch(node.operands[1]) is not True:
        return None
    (body,) = node.regions
    carried = node.attrs["carried"]
    if len(node.results) != carried:
        return Refusal.at("loop_runs_once", node, "it stacks results")
    zero = b.constant(0, "i64")
    values = [zero, *node.operands[1:]]
    outcome = _inlined(b, node, body, values, list(body.outputs[1:]), "loop_runs_once")
    if isinstance(outcome, Refusal) and zero.producer is not None:
        zero.producer.erase()
    return outcome


def _inlined(
    b: Builder, node: Node, region: Graph, operands: list[Value], outputs: list[Value], name: str
) -> list[Value] | Refusal:
    """Copies a nested graph to where it stands; sizes that only its runs knew get the names they have inside."""
    if any(v.type != o.type for v, o in zip(region.inputs, operands)):
        return Refusal.at(name, node, "the nested graph is written for more general sizes")
    inside = {s for v in region.inputs if isinstance(v.type, TensorType) for d in v.shape for s in free_symbols(d)}
    bindings: dict[str, Dim] = {}
    new = set(node.attrs["symbols"])
    for result, output in zip(node.results, outputs):
        if not isinstance(result.type, TensorType) or result.type == output.type:
            continue
        for dim, within in zip(result.shape, output.shape):
            for symbol in new:
                if dim == sym(symbol):
                    bindings[symbol] = within
        if any(not set(free_symbols(d)) <= inside for d in output.shape):
            return Refusal.at(name, node, "sizes of its results depend on data")
    if set(bindings) != new:
        return Refusal.at(name, node, "sizes of its results are not those of the nested graph")
    if bindings:
        problem = replace_symbols(b.graph, bindings)
        if problem is not None:
            return Refusal.at(name, node, problem)
    mapping = inline(region, b.graph, operands)
    positions = {v: i for i, v in enumerate(region.outputs)}
    return [mapping[positions[v]] for v in outputs]


def constants_inwards(graph: Graph) -> int:
    """Gives nested graphs of control flow copies of the constants that they capture, so that rules there see them.

    Returns:
        How many captures are no longer used; `dce` drops them.
    """
    moved = 0
    for node in graph:
        first = {"if": 0, "loop": 2, "scan": 0}.get(node.op.name)
        if first is not None:
            first += node.attrs.get("carried", 0) + node.attrs.get("scanned", 0)
            offset = 1 if node.op.name == "if" else 0
            for region in node.regions:
                for value, operand in list(zip(region.inputs, node.operands[offset:]))[first:]:
                    if value.uses and constant_of(operand) is not None and value.type == operand.type:
                        _copy_in(region, value, operand)
                        moved += 1
        for region in node.regions:
            moved += constants_inwards(region)
    return moved


def _copy_in(region: Graph, value: Value, operand: Value) -> None:
    assert operand.producer is not None
    mapping: dict[Value, Value] = {}
    with region.insertion_before(next(iter(region), None)):
        copy_node(operand.producer, region, mapping)
    value.replace_all_uses_with(mapping[operand])


CONTROL = (_branch_known, _loop_never_runs, _loop_runs_once)
