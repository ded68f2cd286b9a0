"""If, Loop and Scan: bodies become closed nested graphs, what they use from outside becomes operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dhc.frontend.onnx.context import NodeContext, Scope
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
    from dhc.ir.graph import copy_node

    own = {value: scope.names[name] for name, value in scope.captures.items()}
    rebuilt = Graph(graph.name, parent=graph.parent)
    mapping: dict[Value, Value] = {}
    for value, name in captured.items():
        made = rebuilt.add_input(name, value.type)
        inner = own.get(value)
        if isinstance(inner, Value):
            mapping[inner] = made
    for node in graph:
        copy_node(node, rebuilt, mapping)
    rebuilt.output(*(mapping[v] for v in graph.outputs), names=graph.output_names)
    return rebuilt


@onnx_op("If")
def conditional(n: NodeContext) -> Any:
    """One of two graphs runs; when the condition is known at import, only that one is imported."""
    known = n.const(0)
    if known is not None:
        return _chosen(n, n.require_attr("then_branch" if bool(known.reshape(-1)[0]) else "else_branch"))
    condition = n.value(0)
    if condition.type.rank:
        condition = n.b.reshape(condition, shape=())
    bodies = [import_body(n, n.require_attr(f"{name}_branch"), name, []) for name in ("then", "else")]
    captures = align_captures(bodies)
    regions = [graph for graph, _ in bodies]
    for a, b in zip(regions[0].outputs, regions[1].outputs):
        if isinstance(a.type, TensorType) and isinstance(b.type, TensorType) and a.type.rank != b.type.rank:
            n.needs(0, "the branches give tensors of different rank")
    count = if_symbols([v.type for v in captures], regions[0], regions[1])
    attrs = {"symbols": _fresh_symbols(n, count)}
    return n.b.call("if", condition, *captures, attrs=attrs, regions=regions)


def _chosen(n: NodeContext, proto: Any) -> list[Any]:
    """The nodes of a nested graph without inputs, in the graph around it."""
    scope = Scope(n.scope.graph, n.scope)
    n.importer.import_initializers(proto, scope)
    n.importer.import_nodes(proto, scope)
    results = []
    for info in proto.output:
        found = scope.find(info.name)
        if found is None:
            n.invalid(f"output {info.name!r} of the branch is not defined")
        results.append(found)
    return results


def _fresh_symbols(n: NodeContext, count: int) -> tuple[str, ...]:
    return tuple(n.scope.graph.fresh_symbol("u") for _ in range(count))


@onnx_op("Loop")
def loop(n: NodeContext) -> Any:
    """Carried values, a trip count, a condition, stacked outputs."""
    body = n.require_attr("body")
    trip = n.value(0) if n.has(0) else n.b.constant(2**62, i64)
    condition = n.value(1) if n.has(1) else n.b.constant(True, boolean)
    trip, condition = (v if v.type.rank == 0 else n.b.reshape(v, shape=()) for v in (trip, condition))
    carried = [n.value(i) for i in range(2, len(n))]
    if len(body.input) != 2 + len(carried) or len(body.output) < 1 + len(carried):
        n.invalid(f"the body has {len(body.input)} inputs and {len(body.output)} outputs for {len(carried)} values")
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
    names = _fresh_symbols(n, loop_symbols([v.type for v in operands], graph, len(carried)))
    return n.b.call("loop", *operands, attrs={"carried": len(carried), "symbols": names}, regions=[graph])


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
