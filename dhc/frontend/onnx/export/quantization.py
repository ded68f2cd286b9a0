"""Quantization."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node


@exports("quantize")
def quantize(w: GraphWriter, node: Node) -> Any:
    """QuantizeLinear."""
    return _linear(w, node, "QuantizeLinear")


@exports("dequantize")
def dequantize(w: GraphWriter, node: Node) -> Any:
    """DequantizeLinear."""
    return _linear(w, node, "DequantizeLinear")


def _linear(w: GraphWriter, node: Node, op: str) -> Any:
    if node.types[1].dtype.name == "f64" or node.types[0].dtype.name == "f64":
        w.unsupported("ONNX quantizes no float64")
    if node.types[1].rank > 1:
        return w.export_parts(node)  # a scale for each element or block: arithmetic that every runtime has
    axis = node.attrs["axis"] if node.types[1].rank == 1 else None
    return w.node(op, w.operands(node), axis=axis)
