"""Constants, ranges, random numbers, sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.sizes import Source
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.frontend.onnx.tensors import to_onnx_dtype
from dhc.ir.graph import Node


@exports("constant")
def constant(w: GraphWriter, node: Node) -> Any:
    """An initializer."""
    hint = node.result.name or "c"
    return w.constant(node.attrs["value"], node.attrs["dtype"], hint)


@exports("dims")
def dims(w: GraphWriter, node: Node) -> Any:
    """A vector of sizes."""
    values = node.attrs["values"]
    return w.shape(values) if values else w.ints()


@exports("read_dims")
def read_dims(w: GraphWriter, node: Node) -> Any:
    """The symbols are elements of the operand from here on."""
    (name,) = w.operands(node)
    for position, symbol in enumerate(node.attrs["names"]):
        w.sources[symbol] = Source(name, position, element=True)
    w.pinned.add(name)
    return name


@exports("iota")
def iota(w: GraphWriter, node: Node) -> Any:
    """Range, spread over the other axes."""
    shape = node.attrs["shape"]
    axis = node.attrs["axis"] % len(shape)
    zero, one = w.constant(0, "i64"), w.constant(1, "i64")
    made = w.node("Range", [zero, w.reshape(w.dim(shape[axis]), ()), one])
    if node.attrs["dtype"].name != "i64":
        made = w.cast(made, node.attrs["dtype"])
    if len(shape) == 1:
        return made
    column = w.reshape(made, tuple(shape[axis] if i == axis else 1 for i in range(len(shape))))
    return w.node("Expand", [column, w.shape(shape)])


@exports("eye")
def eye(w: GraphWriter, node: Node) -> Any:
    """EyeLike of zeros."""
    a = node.attrs
    zeros = w.node("ConstantOfShape", [w.shape(a["shape"])])
    if a["dtype"].name in ("bf16", "bool"):  # bool is allowed, but hardly any runtime has it
        return w.cast(w.node("EyeLike", [zeros], k=a["k"]), a["dtype"])
    return w.node("EyeLike", [zeros], dtype=to_onnx_dtype(a["dtype"]), k=a["k"])


@exports("random_normal", "random_uniform")
def random(w: GraphWriter, node: Node) -> Any:
    """Random numbers; every runtime draws its own from the seed."""
    a = node.attrs
    if a["stream"]:
        w.unsupported("ONNX has no streams of random numbers")
    seed = float(np.uint32(a["seed"] & 0xFFFFFFFF).view(np.float32))
    seed = seed if math.isfinite(seed) else float(a["seed"] % 2**20)
    attributes: dict[str, Any] = {"dtype": to_onnx_dtype(a["dtype"]), "seed": seed}
    if node.op.name == "random_normal":
        op, attributes = "RandomNormal", {**attributes, "mean": a["mean"], "scale": a["std"]}
    else:
        op, attributes = "RandomUniform", {**attributes, "low": a["low"], "high": a["high"]}
    if a["shape"] and all(isinstance(d, int) for d in a["shape"]):
        return w.node(op, [], shape=list(a["shape"]), **attributes)
    zeros = w.node("ConstantOfShape", [w.shape(a["shape"])])
    return w.node(f"{op}Like", [zeros], **attributes)
