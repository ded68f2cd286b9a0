"""Normalisations and softmax."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node


@exports("softmax", "log_softmax")
def softmax(w: GraphWriter, node: Node) -> Any:
    """Softmax and LogSoftmax."""
    op = "Softmax" if node.op.name == "softmax" else "LogSoftmax"
    return w.node(op, w.operands(node), axis=node.attrs["axis"])


@exports("batch_norm")
def batch_norm(w: GraphWriter, node: Node) -> Any:
    """BatchNormalization."""
    return w.node("BatchNormalization", w.operands(node), epsilon=node.attrs["epsilon"])


@exports("instance_norm")
def instance_norm(w: GraphWriter, node: Node) -> Any:
    """InstanceNormalization."""
    return w.node("InstanceNormalization", w.operands(node), epsilon=node.attrs["epsilon"])


@exports("layer_norm")
def layer_norm(w: GraphWriter, node: Node) -> Any:
    """LayerNormalization."""
    a = node.attrs
    return w.node("LayerNormalization", w.operands(node), axis=a["axis"], epsilon=a["epsilon"])


@exports("group_norm")
def group_norm(w: GraphWriter, node: Node) -> Any:
    """GroupNormalization."""
    a = node.attrs
    return w.node("GroupNormalization", w.operands(node), num_groups=a["groups"], epsilon=a["epsilon"])


@exports("lrn")
def lrn(w: GraphWriter, node: Node) -> Any:
    """LRN."""
    return w.node("LRN", w.operands(node), **dict(node.attrs))
