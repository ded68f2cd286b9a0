"""Gathers, scatters, sorting, selection."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node


@exports("gather", "gather_elements")
def gather(w: GraphWriter, node: Node) -> Any:
    """Gather and GatherElements; the indices are i32 or i64 in ONNX."""
    x, indices = w.operands(node)
    op = "Gather" if node.op.name == "gather" else "GatherElements"
    return w.node(op, [x, _wide(w, node, 1, indices)], axis=node.attrs["axis"])


def _wide(w: GraphWriter, node: Node, position: int, name: str) -> str:
    return name if node.types[position].dtype.name in ("i32", "i64") else w.cast(name, "i64")


def _i64(w: GraphWriter, node: Node, position: int, name: str) -> str:
    return name if node.types[position].dtype.name == "i64" else w.cast(name, "i64")


@exports("gather_nd")
def gather_nd(w: GraphWriter, node: Node) -> Any:
    """GatherND."""
    x, indices = w.operands(node)
    return w.node("GatherND", [x, _i64(w, node, 1, indices)], batch_dims=node.attrs["batch_dims"])


@exports("scatter_elements")
def scatter_elements(w: GraphWriter, node: Node) -> Any:
    """ScatterElements."""
    x, indices, updates = w.operands(node)
    a = node.attrs
    inputs = [x, _wide(w, node, 1, indices), updates]
    return w.node("ScatterElements", inputs, axis=a["axis"], reduction=a["reduction"])


@exports("scatter_nd")
def scatter_nd(w: GraphWriter, node: Node) -> Any:
    """ScatterND."""
    x, indices, updates = w.operands(node)
    return w.node("ScatterND", [x, _i64(w, node, 1, indices), updates], reduction=node.attrs["reduction"])


@exports("one_hot")
def one_hot(w: GraphWriter, node: Node) -> Any:
    """OneHot takes the off and the on value in one tensor."""
    indices, on, off = w.operands(node)
    dtype = node.result.dtype
    values = w.node("Concat", [w.reshape(off, (1,)), w.reshape(on, (1,))], axis=0)
    if dtype.name == "bf16":
        values = w.cast(values, "f32")
    depth, axis = node.attrs["depth"], node.attrs["axis"]
    if node.types[0].rank:
        made = w.node("OneHot", [indices, w.dim(depth), values], axis=axis)
    else:
        row = w.node("OneHot", [w.reshape(indices, (1,)), w.dim(depth), values], axis=-1)
        made = w.reshape(row, (depth,))
    return w.cast(made, dtype) if dtype.name == "bf16" else made


@exports("topk")
def topk(w: GraphWriter, node: Node) -> Any:
    """TopK."""
    a = node.attrs
    flags: dict[str, Any] = {"largest": int(a["largest"]), "sorted": int(a["sorted"])}
    return w.node("TopK", [*w.operands(node), w.dim(a["k"])], outputs=2, axis=a["axis"], **flags)


@exports("sort")
def sort(w: GraphWriter, node: Node) -> Any:
    """TopK of everything; equal elements keep their order in both."""
    a = node.attrs
    size = node.types[0].shape[a["axis"]]
    return w.node("TopK", [*w.operands(node), w.dim(size)], outputs=2, axis=a["axis"], largest=int(a["descending"]))


@exports("nonzero")
def nonzero(w: GraphWriter, node: Node) -> Any:
    """NonZero."""
    return w.node("NonZero", w.operands(node))


@exports("unique")
def unique(w: GraphWriter, node: Node) -> Any:
    """Unique of a vector."""
    return w.node("Unique", w.operands(node), outputs=4, sorted=int(node.attrs["sorted"]))


@exports("compress")
def compress(w: GraphWriter, node: Node) -> Any:
    """Compress."""
    x, condition = w.operands(node)
    dtype = node.types[0].dtype
    if dtype.name != "bf16":
        return w.node("Compress", [x, condition], axis=node.attrs["axis"])
    return w.cast(w.node("Compress", [w.cast(x, "f32"), condition], axis=node.attrs["axis"]), dtype)


@exports("nms")
def nms(w: GraphWriter, node: Node) -> Any:
    """NonMaxSuppression."""
    boxes, scores, *limits = w.operands(node)
    limits = [w.reshape(name, (1,)) for name in limits]
    box = node.attrs["center_point_box"]
    return w.node("NonMaxSuppression", [boxes, scores, *limits], center_point_box=box)
