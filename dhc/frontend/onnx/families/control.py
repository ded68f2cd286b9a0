"""If, Loop and Scan: bodies become closed nested graphs, what they use from outside becomes operands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dhc.frontend.onnx.context import NodeContext, Scope
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import boolean, i64
from dhc.ir.graph import Graph, Value
from dhc.ir.symbols import SymExpr
from dhc.ir.types import TensorType


def import_body(n: NodeContext, proto: Any, name: str, types: list[Any]) -> tuple[Graph, Scope]:
    """Imports a nested GraphProto with inputs of the given types; captures follow as further inputs."""
    graph = Graph(name, parent=n.scope.graph)
    scope = Scope(graph, n.scope)
    for info, type_ in zip(proto.input, types, strict=True):
        scope.names[info.name] = graph.add_input(info.name, type_)
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
    """One of two graphs runs."""
    condition = n.value(0)
    if condition.type.rank:
        condition = n.b.reshape(condition, shape=())
    bodies = [import_body(n, n.require_attr(f"{name}_branch"), name, []) for name in ("then", "else")]
    captures = align_captures(bodies)
    regions = [graph for graph, _ in bodies]
    return n.b.call("if", condition, *captures, attrs={"symbols": branch_symbols(n, regions)}, regions=regions)


def branch_symbols(n: NodeContext, regions: list[Graph]) -> tuple[str, ...]:
    """A new symbol for each size in which the branches differ."""
    names: list[str] = []
    for a, b in zip(regions[0].outputs, regions[1].outputs, strict=True):
        if not isinstance(a.type, TensorType) or not isinstance(b.type, TensorType):
            continue
        if a.type.rank != b.type.rank:
            n.unsupported("the branches give tensors of different rank")
        outer = set(n.scope.graph.symbols())
        for left, right in zip(a.shape, b.shape):
            inner = set(symbols.free_symbols(left)) | set(symbols.free_symbols(right))
            if left != right or not inner <= outer:
                names.append(n.scope.graph.fresh_symbol("u"))
    return tuple(names)


@onnx_op("Loop")
def loop(n: NodeContext) -> Any:
    """Carried values, a trip count, a condition, stacked outputs."""
    body = n.require_attr("body")
    trip = n.value(0) if n.has(0) else n.b.constant(2**62, i64)
    condition = n.value(1) if n.has(1) else n.b.constant(True, boolean)
    trip, condition = (v if v.type.rank == 0 else n.b.reshape(v, shape=()) for v in (trip, condition))
    carried = [n.value(i) for i in range(2, len(n))]
    types = [v.type for v in carried]
    for _ in range(8):
        head = [TensorType(i64, ()), TensorType(boolean, ())]
        graph, scope = import_body(n, body, "body", [*head, *types])
        widened = _widened(n, types, [v.type for v in graph.outputs[1 : 1 + len(types)]])
        if widened == types:
            break
        types = widened
    else:
        n.unsupported("the sizes of the carried values do not settle")
    if any(v.type != t for v, t in zip(carried, types)):
        n.unsupported("a carried value changes its shape from one iteration to the next", "pad it to a fixed size")
    captures = align_captures([(graph, scope)])

    names = tuple(n.scope.graph.fresh_symbol("u") for _ in range(_symbol_count(graph, len(carried))))

    return n.b.call(
        "loop",
        trip,
        condition,
        *carried,
        *captures,
        attrs={"carried": len(carried), "symbols": names},
        regions=[graph],
    )


def _symbol_count(graph: Graph, carried: int) -> int:
    return 1 if len(graph.outputs) > 1 + carried else 0


def _widened(n: NodeContext, before: list[Any], after: list[Any]) -> list[Any]:
    """Types that hold before and after an iteration: sizes that change become symbols."""
    result = []
    for a, b in zip(before, after, strict=True):
        if not isinstance(a, TensorType) or a == b:
            result.append(a)
            continue
        if not isinstance(b, TensorType) or a.dtype != b.dtype or a.rank != b.rank:
            n.unsupported(f"a carried value changes its type from {a} to {b}")
        dims = tuple(
            x if x == y else x if isinstance(x, SymExpr) else symbols.sym(n.scope.graph.fresh_symbol("c"))
            for x, y in zip(a.shape, b.shape)
        )
        result.append(replace(a, shape=dims))
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
