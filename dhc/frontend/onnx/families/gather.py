"""Gathers, scatters, one-hot and determinants."""

from __future__ import annotations

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.dtypes import f32, f64, i64
from dhc.ir.graph import Value


@onnx_op("Gather", "GatherElements")
def gather(n: NodeContext) -> Value:
    """Picks slices or elements along an axis."""
    x = n.value(0)
    op = "gather" if n.proto.op_type == "Gather" else "gather_elements"
    return n.b.call(op, x, n.value(1), attrs={"axis": n.axis(n.attr("axis", 0), x.type.rank)})


@onnx_op("GatherND")
def gather_nd(n: NodeContext) -> Value:
    """Picks by index vectors."""
    return n.b.gather_nd(n.value(0), n.value(1), batch_dims=n.attr("batch_dims", 0))


@onnx_op("Scatter", "ScatterElements")
def scatter_elements(n: NodeContext) -> Value:
    """Writes elements along an axis."""
    x = n.value(0)
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    return n.b.scatter_elements(x, n.value(1), n.value(2), axis=axis, reduction=n.attr("reduction", "none"))


@onnx_op("ScatterND")
def scatter_nd(n: NodeContext) -> Value:
    """Writes slices by index vectors."""
    return n.b.scatter_nd(n.value(0), n.value(1), n.value(2), reduction=n.attr("reduction", "none"))


@onnx_op("OneHot")
def one_hot(n: NodeContext) -> Value:
    """Positions to vectors; indices outside -depth..depth-1 give the off value everywhere."""
    indices, values = n.value(0), n.value(2)
    (depth,) = n.dims(1)
    if not indices.dtype.is_integer:
        indices = n.b.cast(indices, dtype=i64)
    off, on = (n.b.reshape(n.b.slice(values, starts=[i], sizes=[1], steps=[1]), shape=()) for i in (0, 1))
    return n.b.one_hot(indices, on, off, depth=depth, axis=n.attr("axis", -1))


@onnx_op("Compress")
def compress(n: NodeContext) -> Value:
    """Keeps the slices where the condition holds."""
    x = n.value(0)
    axis = n.attr("axis")
    if axis is None:
        x = n.b.reshape(x, shape=(x.type.numel,))
        axis = 0
    return n.b.compress(x, n.value(1), axis=n.axis(axis, x.type.rank))


@onnx_op("NonZero")
def nonzero(n: NodeContext) -> Value:
    """Indices of the elements that are not 0; a scalar has none, so its result has no rows."""
    return n.b.nonzero(n.value(0))


@onnx_op("TensorScatter", since=24)
def tensor_scatter(n: NodeContext) -> Value:
    """Writes an update into a cache along an axis, from a position of its own in each batch element on."""
    b, cache, update = n.b, n.value(0), n.value(1)
    rank = cache.type.rank
    axis, mode = n.axis(n.attr("axis", -2), rank), n.attr("mode", "linear")
    if axis == 0 or mode not in ("linear", "circular"):
        n.invalid(f"axis {axis} is the batch, or mode {mode!r} is neither linear nor circular")

    at = b.iota(shape=tuple(d if i == axis else 1 for i, d in enumerate(cache.shape)), axis=axis, dtype=i64)
    start = n.optional(2)
    if start is not None:
        at = b.sub(at, b.reshape(start, shape=(cache.shape[0], *(1,) * (rank - 1))))
    if mode == "circular":
        at = b.mod(at, n.number(cache.shape[axis]))
    length = update.shape[axis]
    written = b.logical_and(b.ge(at, b.constant(0)), b.lt(at, n.number(length)))
    inside = b.where(written, at, b.constant(0))
    return b.where(written, b.gather_elements(update, b.broadcast_to(inside, shape=cache.shape), axis=axis), cache)


@onnx_op("Det", since=11)
def determinant(n: NodeContext) -> Value:
    """Determinants of matrices."""
    x = n.value(0)
    if x.dtype in (f32, f64):
        return n.b.determinant(x)
    return n.b.cast(n.b.determinant(n.b.cast(x, dtype=f32)), dtype=x.dtype)
