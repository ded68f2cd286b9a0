"""ONNX export: a graph as a model of standard operators (opset 21), a file a family."""

from __future__ import annotations

from os import PathLike
from typing import Any

from dhc_runtime.errors import ResourceError, UnsupportedError
from dhc_runtime.safe_write import write_bytes

from dhc.frontend.onnx.export.registry import load_families
from dhc.frontend.onnx.export.sizes import input_sources
from dhc.frontend.onnx.export.writer import OPSET, GraphWriter, Names
from dhc.frontend.onnx.reader import MAX_FILE_BYTES
from dhc.ir.graph import Graph

IR_VERSION = 10


def export_graph(graph: Graph) -> Any:
    """The ModelProto of a graph.

    Raises:
        UnsupportedError: ONNX has no operators for parts of the graph; the message lists all of them.
    """
    from onnx import ModelProto

    load_families()
    problems: list[str] = []
    names = Names([v.name for v in graph.inputs] + list(graph.output_names))
    writer = GraphWriter(graph, names, None, problems)
    writer.sources.update(input_sources(writer))
    writer.write_nodes()
    writer.write_outputs(graph.output_names)
    if problems:
        raise UnsupportedError(
            f"{len(problems)} nodes of graph {graph.name!r} cannot be written as ONNX opset {OPSET}",
            problems=problems,
            hint="keep the graph in dhc's text form or compile it instead",
        )
    model = ModelProto(ir_version=IR_VERSION, producer_name="dhc")
    model.opset_import.add(domain="", version=max(OPSET, writer.opset))
    model.graph.CopyFrom(writer.proto)
    model.graph.name = graph.name or "main"
    writer.write_inputs(model.graph)
    drop_unused(model.graph)
    return model


def drop_unused(proto: Any) -> None:
    """Removes nodes and initializers of the main graph that nothing uses: parts of what became one operator."""
    used = {output.name for output in proto.output}
    kept = []
    for node in reversed(proto.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(_names_used(node))
    constants = [tensor for tensor in proto.initializer if tensor.name in used]
    if len(kept) < len(proto.node):
        nodes = kept[::-1]
        del proto.node[:]
        proto.node.extend(nodes)
    if len(constants) < len(proto.initializer):
        del proto.initializer[:]
        proto.initializer.extend(constants)


def _names_used(node: Any) -> set[str]:
    """Operands of a node and whatever its nested graphs mention."""
    names = set(node.input)
    for attribute in node.attribute:
        for nested in (attribute.g, *attribute.graphs):
            names.update(output.name for output in nested.output)
            names.update(*(_names_used(inner) for inner in nested.node))
    return names


def write_onnx(graph: Graph, path: str | PathLike[str]) -> None:
    """Writes the model of a graph to a file; the file appears whole or not at all.

    Raises:
        UnsupportedError: see `export_graph`.
        ResourceError: the model is larger than protobuf allows, or the disk is full.
        UsageError: the file cannot be written.
    """
    model = export_graph(graph)
    size = model.ByteSize()
    if size > MAX_FILE_BYTES:
        raise ResourceError(f"the model takes {size} bytes; protobuf allows {MAX_FILE_BYTES}", budget=MAX_FILE_BYTES)
    write_bytes(path, model.SerializeToString(deterministic=True))
