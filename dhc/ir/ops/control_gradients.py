"""Gradients of control flow: a branch of gradients for each branch, a scan backwards for each loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhc_runtime.errors import DhcError

from dhc.ir.autodiff import carries_gradient, region_gradient
from dhc.ir.builder import Builder
from dhc.ir.copying import inline
from dhc.ir.dtypes import boolean, i64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.op import Call
from dhc.ir.ops.control import scan_layout
from dhc.ir.types import TensorType

_LONGEST = 2**31 - 1


def if_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> list[Value | None]:
    """An `if` whose branches are the gradients of the branches."""
    condition, *captures = node.operands
    wanted = [i for i, v in enumerate(captures) if carries_gradient(v)]
    seeds = [i for i, g in enumerate(cotangents) if g is not None]
    graphs: list[Graph] = []
    found: list[list[Value | None]] = []
    for region in node.regions:
        graph = Graph(f"{region.name}_gradient", parent=b.graph)
        inputs = [graph.add_input(v.name, v.type) for v in region.inputs]
        given: list[Value | None] = [None] * len(cotangents)
        for i in seeds:
            given[i] = graph.add_input("", region.outputs[i].type)
        found.append(region_gradient(Builder(graph, node.location), region, inputs, given))
        graphs.append(graph)
    wanted = [i for i in wanted if any(gradients[i] is not None for gradients in found)]
    result: list[Value | None] = [None] * len(node.operands)
    if not wanted:
        return result
    for graph, gradients in zip(graphs, found):
        writer = Builder(graph, node.location)
        for i in wanted:
            g = gradients[i]
            graph.output(writer.zeros_like(graph.inputs[i]) if g is None else g)
    operands = [condition, *captures, *(cotangents[i] for i in seeds)]
    outputs = _call(b, "if", operands, {}, graphs)
    for i, g in zip(wanted, outputs):
        result[1 + i] = g
    return result


def _call(
    b: Builder, op: str, operands: Sequence[Value | None], attrs: dict[str, object], regions: Sequence[Graph]
) -> tuple[Value, ...]:
    results = b.call(op, *operands, attrs=attrs, regions=regions)
    return results if isinstance(results, tuple) else (results,)


@dataclass
class _Scan:
    """A scan taken apart.

    Attributes:
        body: its body.
        initial: carried values before the first step.
        scanned: values that are cut into slices.
        captures: values that every step sees.
        in_axes, in_reverse, out_axes, out_reverse: axis and direction of slices and of stacked elements.
    """

    body: Graph
    initial: tuple[Value, ...]
    scanned: tuple[Value, ...]
    captures: tuple[Value, ...]
    in_axes: list[int]
    in_reverse: list[bool]
    out_axes: list[int]
    out_reverse: list[bool]


def scan_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> list[Value | None]:
    """A scan that saves the carried values, then one from the last step to the first."""
    carried, scanned = node.attrs["carried"], node.attrs["scanned"]
    operands = node.operands
    parts = _Scan(
        node.regions[0],
        operands[:carried],
        operands[carried : carried + scanned],
        operands[carried + scanned :],
        *scan_layout(Call.of(node)),
    )
    return _backwards(b, parts, cotangents)


def _backwards(b: Builder, scan: _Scan, cotangents: Sequence[Value | None]) -> list[Value | None]:
    """Cotangents of the initial values, the scanned ones and the captures.

    The backward body computes the step again from its saved carried values and takes its gradient. It carries the
    cotangents of the carried values and the sums of those of the captures, and stacks those of the slices.
    """
    body, count = scan.body, len(scan.initial)
    saved = _saved_states(b, scan)
    back = Graph(f"{body.name}_gradient", parent=b.graph)
    states = body.inputs[:count]
    slices = body.inputs[count : count + len(scan.scanned)]
    captured = body.inputs[count + len(scan.scanned) :]

    flowing = [i for i, v in enumerate(states) if carries_gradient(v)]
    summed = [i for i, v in enumerate(captured) if carries_gradient(v)]
    stacked = [i for i, v in enumerate(slices) if carries_gradient(v)]
    seeds = [i for i, g in enumerate(cotangents) if i >= count and g is not None]

    flow = {i: back.add_input("", states[i].type) for i in flowing}
    sums = {i: back.add_input("", captured[i].type) for i in summed}
    operands = [back.add_input("", v.type) for v in (*states, *slices)]
    given = {i: back.add_input("", body.outputs[i].type) for i in seeds}
    operands += [back.add_input("", v.type) for v in captured]

    writer = Builder(back, b.location)
    seeding: list[Value | None] = [flow.get(i) for i in range(count)]
    seeding += [given.get(i) for i in range(count, len(body.outputs))]
    found = region_gradient(writer, body, operands, seeding)
    for i in flowing:
        g = found[i]
        back.output(writer.zeros_like(flow[i]) if g is None else g)
    for i in summed:
        g = found[count + len(slices) + i]
        back.output(sums[i] if g is None else writer.add(sums[i], g))
    for i in stacked:
        g = found[count + i]
        back.output(writer.zeros_like(operands[count + i]) if g is None else g)

    starts = [cotangents[i] for i in flowing] + [b.zeros_like(scan.captures[i]) for i in summed]
    attrs: dict[str, object] = {
        "carried": len(starts),
        "scanned": len(saved) + len(scan.scanned) + len(seeds),
        "in_axes": [0] * len(saved) + scan.in_axes + [scan.out_axes[i - count] for i in seeds],
        "in_reverse": [1] * len(saved)
        + [int(not r) for r in scan.in_reverse]
        + [int(not scan.out_reverse[i - count]) for i in seeds],
        "out_axes": [scan.in_axes[i] for i in stacked],
        "out_reverse": [int(not scan.in_reverse[i]) for i in stacked],
    }
    sources = [*saved, *scan.scanned, *(cotangents[i] for i in seeds)]
    total = len(starts) + len(stacked)
    results = iter(_call(b, "scan", [*starts, *sources, *scan.captures], attrs, [back]) if total else ())
    gradients: list[Value | None] = [None] * (count + len(slices) + len(captured))
    for i in [*flowing, *(count + len(slices) + i for i in summed), *(count + i for i in stacked)]:
        gradients[i] = next(results)
    return gradients


def _saved_states(b: Builder, scan: _Scan) -> tuple[Value, ...]:
    """The carried values before each step, stacked in the order of the steps."""
    count = len(scan.initial)
    if not count:
        return ()
    body = scan.body.clone(f"{scan.body.name}_saving")
    body.parent = b.graph
    carried = body.outputs[:count]
    body.clear_outputs()
    body.output(*carried, *body.inputs[:count])
    attrs: dict[str, object] = {
        "carried": count,
        "scanned": len(scan.scanned),
        "in_axes": scan.in_axes,
        "in_reverse": [int(r) for r in scan.in_reverse],
    }
    return _call(b, "scan", [*scan.initial, *scan.scanned, *scan.captures], attrs, [body])[count:]


def loop_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> list[Value | None]:
    """The gradient of the scan that a loop with a known number of runs is.

    Raises:
        DhcError: the number of runs is not known when the gradient is taken, or sizes change from run to run.
    """
    trip, condition, *values = node.operands
    carried, body = node.attrs["carried"], node.regions[0]
    runs = _constant(trip)
    if runs is None or _constant(condition) is None or not _goes_on(body):
        raise DhcError(
            "the gradient of a loop needs a number of runs that is known beforehand: a constant count and no condition",
            where=str(node.location),
            hint="write it as a scan",
        )
    if runs > _LONGEST:
        raise DhcError(f"a loop of {runs} runs has no gradient: its values cannot be kept", where=str(node.location))
    runs = max(0, runs) if _constant(condition) else 0
    if any(r.type.shape != v.type.shape for r, v in zip(node.results[:carried], values)):
        raise DhcError(
            "the gradient of a loop needs carried values that keep their size",
            where=str(node.location),
            hint="preallocate and write with dynamic_update_slice",
        )
    step = Graph(body.name, parent=b.graph)
    states = [step.add_input(v.name, v.type) for v in body.inputs[2 : 2 + carried]]
    number = step.add_input("", TensorType(i64))
    captured = [step.add_input(v.name, v.type) for v in body.inputs[2 + carried :]]
    always = Builder(step, node.location).constant(True, boolean)
    step.output(*inline(body, step, [number, always, *states, *captured])[1:])
    stacks = len(node.results) - carried
    scan = _Scan(
        step,
        tuple(values[:carried]),
        (b.iota(shape=(runs,), axis=0, dtype=i64),),
        tuple(values[carried:]),
        [0],
        [False],
        [0] * stacks,
        [False] * stacks,
    )
    gradients = _backwards(b, scan, cotangents)
    return [None, None, *gradients[:carried], *gradients[carried + 1 :]]


def _constant(value: Value) -> int | None:
    """The number that a value always is, None when that is not known."""
    producer = value.producer
    if producer is None or producer.op.name != "constant":
        return None
    return int(producer.attrs["value"])


def _goes_on(body: Graph) -> bool:
    """True when the body never ends its loop."""
    again = body.outputs[0]
    return again is body.inputs[1] or bool(_constant(again))
