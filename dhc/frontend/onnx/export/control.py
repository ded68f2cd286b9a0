"""Control flow: captures become names of the graphs around."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.sizes import input_sources
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Graph, Node, Value


def _body(w: GraphWriter, region: Graph, own: int, captures: list[str]) -> Any:
    """The GraphProto of a nested graph: its first `own` inputs are its own, the others are outer names."""
    inner = GraphWriter(region, w.names, w, w.problems)
    for value in region.inputs[:own]:
        inner.values[value] = w.names.fresh(value.name or "arg")
    for value, name in zip(region.inputs[own:], captures):
        inner.values[value] = name
        w.pinned.add(name)
    inner.pinned.update(inner.values.values())
    for symbol, source in input_sources(inner).items():
        if w.find_source(symbol) is None:
            inner.sources[symbol] = source
    for value in region.inputs[:own]:
        inner.proto.input.append(inner.value_info(inner.values[value], value.type))
    inner.write_nodes()
    inner.write_outputs([w.names.fresh(name) for name in region.output_names])
    return inner.proto


def _results(w: GraphWriter, node: Node, op: str, inputs: list[str], **attributes: Any) -> Any:
    return w.node(op, inputs, outputs=len(node.results), **attributes)


@exports("if")
def conditional(w: GraphWriter, node: Node) -> Any:
    """If."""
    condition, *captures = w.operands(node)
    then, otherwise = (_body(w, region, 0, captures) for region in node.regions)
    return _results(w, node, "If", [condition], then_branch=then, else_branch=otherwise)


@exports("loop")
def loop(w: GraphWriter, node: Node) -> Any:
    """Loop."""
    carried = node.attrs["carried"]
    names = w.operands(node)
    body = _body(w, node.regions[0], 2 + carried, names[2 + carried :])
    return _results(w, node, "Loop", names[: 2 + carried], body=body)


@exports("scan")
def scan(w: GraphWriter, node: Node) -> Any:
    """Scan."""
    a = node.attrs
    own = a["carried"] + a["scanned"]
    names = w.operands(node)
    body = _body(w, node.regions[0], own, names[own:])
    return _results(
        w,
        node,
        "Scan",
        names[:own],
        body=body,
        num_scan_inputs=a["scanned"],
        scan_input_axes=list(a["in_axes"]) or None,
        scan_output_axes=list(a["out_axes"]) or None,
        scan_input_directions=list(a["in_reverse"]) or None,
        scan_output_directions=list(a["out_reverse"]) or None,
    )


@exports("fused")
def fused(w: GraphWriter, node: Node) -> Any:
    """A group is written as its parts."""
    (region,) = node.regions
    mapping: dict[Value, str] = dict(zip(region.inputs, w.operands(node)))
    w.values.update(mapping)
    w.pinned.update(mapping.values())
    for part in region:
        w.write_node(part)
    return [w.values[v] for v in region.outputs]
