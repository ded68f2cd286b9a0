"""If, Loop and Scan: bodies become closed nested graphs, what they use from outside becomes operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dhc.frontend.onnx.containers import TENSOR, Layout, put_together, take_apart
from dhc.frontend.onnx.context import NodeContext, Scope, known_array
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import boolean, i64
from dhc.ir.graph import Graph, Value
from dhc.ir.ops.control import if_symbols, loop_symbols
from dhc.ir.symbols import SymExpr
from dhc.ir.types import TensorType, joined

MAX_CHANGING_DEPTH = 6
"""Each loop whose sizes change is imported at least twice, with all loops inside: work that doubles with depth."""
MAX_UNROLLED_BATCH = 64
"""Scans of opset 8 are written out once for each batch element, up to this many."""
MAX_UNROLLED_LOOP = 256
"""Loops that carry sequences are written out when they run at most this often."""


def import_body(n: NodeContext, proto: Any, name: str, types: list[Any]) -> tuple[Graph, Scope]:
    """Imports a nested GraphProto with inputs of the given types; captures follow as further inputs."""
    graph = Graph(name, parent=n.scope.graph)
    scope = Scope(graph, n.scope)
    if len(proto.input) != len(types):
        n.invalid(f"a nested graph takes {len(proto.input)} values, {len(types)} are given")
    for info, type_ in zip(proto.input, types):
        scope.names[info.name] = n.importer.add_input(graph, info.name, type_)
    n.importer.import_initializers(proto, scope)
    n.importer.import_nodes(proto, scope)
    n.importer.import_outputs(proto, scope)
    return graph, scope


def align_captures(bodies: list[tuple[Graph, Scope]]) -> list[Value]:
    """Gives all bodies the same captures in the same order and returns the captured values."""
    captured: dict[Value, str] = {}
    for _, scope in bodies:
        for name, value in scope.captures.items():
            captured.setdefault(value, name)
    if len(bodies) > 1:
        for position, (graph, scope) in enumerate(bodies):
            bodies[position] = (_with_captures(graph, scope, captured), scope)
    return list(captured)


def _with_captures(graph: Graph, scope: Scope, captured: dict[Value, str]) -> Graph:
    """The same body taking exactly `captured`, in that order."""
    from dhc.ir.copying import copy_node

    own = {scope.captures[v.name]: v for v in graph.inputs if v.name in scope.captures}
    rebuilt = Graph(graph.name, parent=graph.parent)
    mapping: dict[Value, Value] = {}
    for value, name in captured.items():
        made = rebuilt.add_input(name, value.type)
        if value in own:
            mapping[own[value]] = made
    for node in graph:
        copy_node(node, rebuilt, mapping)
    rebuilt.output(*(mapping[v] for v in graph.outputs), names=graph.output_names)
    return rebuilt


@onnx_op("If")
def conditional(n: NodeContext) -> Any:
    """One of two graphs runs; when the condition is known at import, only that one is imported."""
    known = n.const(0)
    if known is not None:
        chosen = n.require_attr("then_branch" if bool(known.reshape(-1)[0]) else "else_branch")
        return imported_inline(n, chosen, Scope(n.scope.graph, n.scope))
    condition = n.value(0)
    if condition.type.rank:
        condition = n.b.reshape(condition, shape=())
    bodies = [import_body(n, n.require_attr(f"{name}_branch"), name, []) for name in ("then", "else")]
    if len({len(graph.outputs) for graph, _ in bodies}) > 1:
        n.invalid("the branches differ in the number of their outputs")
    layouts = _return_tensors([graph for graph, _ in bodies])
    captures = align_captures(bodies)
    regions = [graph for graph, _ in bodies]
    for a, b in zip(regions[0].outputs, regions[1].outputs):
        if isinstance(a.type, TensorType) and isinstance(b.type, TensorType) and a.type.rank != b.type.rank:
            n.needs(0, "the branches give tensors of different rank")
    count = if_symbols([v.type for v in captures], regions[0], regions[1])
    attrs = {"symbols": n.fresh_symbols(count)}
    found = n.b.call("if", condition, *captures, attrs=attrs, regions=regions)
    leaves = iter(found if isinstance(found, tuple) else (found,))
    return [put_together(n.b, layout, leaves) for layout in layouts]


def _return_tensors(branches: list[Graph]) -> list[Layout]:
    """Makes branches return the tensors of containers that both write out in the same way; how they make these up."""
    layouts: list[Layout] = []
    leaves: list[list[Value]] = [[] for _ in branches]
    for values in zip(*(graph.outputs for graph in branches)):
        found = [take_apart(value) for value in values]
        first = found[0]
        same = first is not None and all(
            other is not None and other[0] == first[0] and _same_ranks(first[1], other[1]) for other in found
        )
        for own, value, inner in zip(leaves, values, found):
            own.extend(inner[1] if same and inner is not None else [value])
        layouts.append(first[0] if same and first is not None else TENSOR)
    if any(layout != TENSOR for layout in layouts):
        for graph, own in zip(branches, leaves):
            graph.clear_outputs()
            graph.output(*own)
    return layouts


def _same_ranks(ones: list[Value], others: list[Value]) -> bool:
    return all(a.type.rank == b.type.rank and a.dtype == b.dtype for a, b in zip(ones, others, strict=True))


def imported_inline(n: NodeContext, proto: Any, scope: Scope) -> list[Any]:
    """The nodes of a nested graph in the graph around it, and what its outputs stand for.

    Args:
        n: the node that holds the nested graph.
        proto: the nested graph.
        scope: for its names; knows its inputs.
    """
    n.importer.import_initializers(proto, scope)
    n.importer.import_nodes(proto, scope)
    results = []
    for info in proto.output:
        found = scope.find(info.name)
        if found is None:
            n.invalid(f"output {info.name!r} of the {proto.name or 'nested graph'} is not defined")
        results.append(found)
    return results


@onnx_op("Loop")
def loop(n: NodeContext) -> Any:
    """Carried values, a trip count, a condition, stacked outputs."""
    body = n.require_attr("body")
    if len(body.input) != len(n) or len(body.output) < len(n) - 1:
        n.invalid(f"the body has {len(body.input)} inputs and {len(body.output)} outputs for {len(n) - 2} values")
    unrolled = _unrolled(n, body)
    if unrolled is not None:
        return unrolled
    trip = n.value(0) if n.has(0) else n.b.constant(2**62, i64)
    condition = n.value(1) if n.has(1) else n.b.constant(True, boolean)
    trip, condition = (v if v.type.rank == 0 else n.b.reshape(v, shape=()) for v in (trip, condition))
    carried = [n.value(i) for i in range(2, len(n))]
    types = [v.type for v in carried]
    general: set[str] = set()
    for _ in range(8):
        head = [TensorType(i64, ()), TensorType(boolean, ())]
        graph, scope = import_body(n, body, "body", [*head, *types])
        widened = _widened(n, types, [v.type for v in graph.outputs[1 : 1 + len(types)]], general)
        if widened == types:
            break
        if _depth(n.scope) > MAX_CHANGING_DEPTH:
            n.unsupported(f"sizes change in loops that are nested more than {MAX_CHANGING_DEPTH} deep")
        types = widened
    else:
        n.unsupported("the sizes of the carried values do not settle")
    captures = align_captures([(graph, scope)])
    operands = [trip, condition, *carried, *captures]
    names = n.fresh_symbols(loop_symbols([v.type for v in operands], graph, len(carried)))
    return n.b.call("loop", *operands, attrs={"carried": len(carried), "symbols": names}, regions=[graph])


def _unrolled(n: NodeContext, body: Any) -> list[Any] | None:
    """The iterations of a loop that carries containers, one after the other; None for any other loop.

    Containers, the number of iterations and when they end must be known; then nothing but tensors is left.
    """
    carried: list[Any] = [n.raw(i) for i in range(2, len(n))]
    if all(not isinstance(v, Value) or isinstance(v.type, TensorType) for v in carried):
        return None
    count = n.const(0) if n.has(0) else np.array(MAX_UNROLLED_LOOP + 1)
    goes_on = n.const(1) if n.has(1) else np.array(True)
    if count is None or goes_on is None or count.size != 1 or goes_on.size != 1:
        return None
    trips = int(count.reshape(-1)[0]) if goes_on.reshape(-1)[0] else 0
    stacked: list[list[Value]] = [[] for _ in body.output[1 + len(carried) :]]
    if trips < 1:
        return None if stacked else carried
    graph = n.scope.graph
    before = graph.nodes
    for number in range(min(trips, MAX_UNROLLED_LOOP)):
        n.importer.unrolled_left -= len(body.node)
        if n.importer.unrolled_left < 0:
            break
        scope = Scope(graph, n.scope)
        inputs = [np.array(number, np.int64), np.array(True), *carried]
        scope.names.update((info.name, found) for info, found in zip(body.input, inputs))
        more, *results = imported_inline(n, body, scope)
        decided = known_array(more)
        carried = results[: len(carried)]
        if decided is None or any(isinstance(v, Value) and take_apart(v) is None for v in carried):
            break
        for own, found in zip(stacked, results[len(carried) :], strict=True):
            value = found if isinstance(found, Value) else n.materialize(found)
            own.append(n.b.reshape(value, shape=(1, *value.shape)))
        if not decided.reshape(-1)[0] or number == trips - 1:
            return [*carried, *(n.b.concat(*own, axis=0) for own in stacked)]
    kept = set(before)
    for node in reversed(graph):
        if node not in kept:
            node.erase()
    return None


def _depth(scope: Scope) -> int:
    depth = 0
    while scope.parent is not None:
        scope, depth = scope.parent, depth + 1
    return depth


def _widened(n: NodeContext, before: list[Any], after: list[Any], general: set[str]) -> list[Any]:
    """Types that hold before and after an iteration: sizes that change become symbols (noted in `general`)."""
    result = []
    for a, b in zip(before, after, strict=True):
        if a == b:
            result.append(a)
            continue
        if not isinstance(a, TensorType) or not isinstance(b, TensorType):
            common = joined(a, b)
            if common is None:
                n.unsupported(f"a carried value changes its type from {a} to {b}")
            result.append(common)
            continue
        if a.dtype != b.dtype or a.rank != b.rank:
            n.unsupported(f"a carried value changes its type from {a} to {b}")
        dims: list[Any] = []
        for x, y in zip(a.shape, b.shape):
            if x != y and not (isinstance(x, SymExpr) and symbols.format_dim(x) in general):
                name = n.scope.graph.fresh_symbol("c")
                general.add(name)
                x = symbols.sym(name)
            dims.append(x)
        result.append(replace(a, shape=tuple(dims)))
    return result


@onnx_op("Scan", since=9)
def scan(n: NodeContext) -> Any:
    """A body over slices of the operands."""
    body = n.require_attr("body")
    scanned = n.require_attr("num_scan_inputs")
    values = n.values()
    carried = len(values) - scanned
    in_axes = n.attr("scan_input_axes") or [0] * scanned
    outputs = len(body.output) - carried
    types = [v.type for v in values[:carried]]
    for value, axis in zip(values[carried:], in_axes):
        axis = n.axis(axis, value.type.rank)
        types.append(TensorType(value.dtype, tuple(d for i, d in enumerate(value.shape) if i != axis)))
    graph, scope = import_body(n, body, "body", types)
    captures = align_captures([(graph, scope)])
    attrs = {
        "carried": carried,
        "scanned": scanned,
        "in_axes": tuple(in_axes),
        "out_axes": tuple(n.attr("scan_output_axes") or [0] * outputs),
        "in_reverse": tuple(n.attr("scan_input_directions") or [0] * scanned),
        "out_reverse": tuple(n.attr("scan_output_directions") or [0] * outputs),
    }
    return n.b.call("scan", *values, *captures, attrs=attrs, regions=[graph])


@onnx_op("Scan", since=8)
def scan_batches(n: NodeContext) -> Any:
    """Opset 8: operands have a leading batch axis; the body sees one batch element."""
    body = n.require_attr("body")
    scanned = n.require_attr("num_scan_inputs")
    if n.has(0):
        n.unsupported("sequence lengths are not supported", "convert the model to opset 9 or later")
    values = [n.value(i) for i in range(1, len(n))]
    carried, batch = len(values) - scanned, values[0].shape[0]
    if not isinstance(batch, int) or not 0 < batch <= MAX_UNROLLED_BATCH:
        n.unsupported(f"a batch of {batch} is not supported", "convert the model to opset 9 or later")
    directions = tuple(n.attr("directions") or [0] * scanned)
    outputs = len(body.output) - carried
    attrs = {
        "carried": carried,
        "scanned": scanned,
        "in_axes": (0,) * scanned,
        "out_axes": (0,) * outputs,
        "in_reverse": directions,
        "out_reverse": (0,) * outputs,
    }
    rows = []
    for element in range(batch):
        own = [
            n.b.reshape(
                n.b.slice(
                    v, starts=[element] + [0] * (v.type.rank - 1), sizes=[1, *v.shape[1:]], steps=[1] * v.type.rank
                ),
                shape=v.shape[1:],
            )
            for v in values
        ]
        types = [TensorType(v.dtype, v.shape[i >= carried :]) for i, v in enumerate(own)]
        graph, scope = import_body(n, body, "body", types)
        captures = align_captures([(graph, scope)])
        found = n.b.call("scan", *own, *captures, attrs=attrs, regions=[graph])
        rows.append(found if isinstance(found, tuple) else (found,))
    return [n.b.concat(*(n.b.reshape(v, shape=(1, *v.shape)) for v in kind), axis=0) for kind in zip(*rows)]
