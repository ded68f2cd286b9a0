"""Top-k, unique, and non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.graph import Value


@onnx_op("TopK")
def top_k(n: NodeContext) -> Any:
    """Largest or smallest elements along an axis."""
    x = n.value(0)
    k = n.require_attr("k") if n.opset < 10 else n.dims(1)[0]
    return n.b.topk(
        x,
        k=k,
        axis=n.axis(n.attr("axis", -1), x.type.rank),
        largest=bool(n.attr("largest", 1)),
        sorted=bool(n.attr("sorted", 1)),
    )


@onnx_op("Unique")
def unique(n: NodeContext) -> Any:
    """Distinct elements of the flattened tensor, or distinct slices along an axis."""
    b, x = n.b, n.value(0)
    ordered = bool(n.attr("sorted", 1))
    given = n.attr("axis")
    if given is None or x.type.rank == 1:
        flat = x if x.type.rank == 1 else b.reshape(x, shape=(x.type.numel,))
        return b.unique(flat, sorted=ordered)
    axis = n.axis(given, x.type.rank)
    others = [a for a in range(x.type.rank) if a != axis]
    sizes = [x.shape[a] for a in others]
    rows = b.reshape(b.transpose(x, perm=[axis, *others]), shape=(x.shape[axis], symbols.product(sizes)))
    values, first, inverse, counts = b.unique_rows(rows, sorted=ordered)
    slices = b.reshape(values, shape=(values.shape[0], *sizes))
    back = [*range(1, axis + 1), 0, *range(axis + 1, x.type.rank)]
    return [b.transpose(slices, perm=back), first, inverse, counts]


@onnx_op("NonMaxSuppression")
def non_max_suppression(n: NodeContext) -> Value:
    """Boxes that no better box overlaps."""
    defaults = ((2, np.int64(0)), (3, np.float32(0)), (4, np.float32(-np.inf)))
    scalars = []
    for index, default in defaults:
        given = n.optional(index)
        if given is None:
            given = n.b.constant(np.asarray(default))
        scalars.append(n.b.reshape(given, shape=()) if given.type.rank else given)
    return n.b.nms(n.value(0), n.value(1), *scalars, center_point_box=n.attr("center_point_box", 0))
