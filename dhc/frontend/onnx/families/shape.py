"""Shapes and views: reshape, transpose, slice, pad, concat, split."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import i64
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim, SymExpr

_UNBOUNDED = 2**30
"""Slice ends at or beyond this mean "to the end"."""


@onnx_op("Shape", "Size")
def shape_of(n: NodeContext) -> Any:
    """Reached only for values without a shape (sequences)."""
    n.invalid("the operand is not a tensor")


@onnx_op("Reshape")
def reshape(n: NodeContext) -> Value:
    """0 copies a size, -1 takes what is left."""
    x = n.value(0)
    known = n.known(1)
    if known is None:
        return n.b.reshape(x, shape=_runtime_shape(n, x))
    wanted: list[Dim] = list(known.reshape(-1))
    if not n.attr("allowzero", 0):
        for axis, dim in enumerate(wanted):
            if isinstance(dim, int) and dim == 0:
                if axis >= x.type.rank:
                    n.invalid(f"shape {wanted} copies axis {axis} of a tensor of rank {x.type.rank}")
                wanted[axis] = x.shape[axis]
    return n.b.reshape(x, shape=infer_missing(n, x, wanted))


def infer_missing(n: NodeContext, x: Value, wanted: list[Dim]) -> tuple[Dim, ...]:
    """Replaces the one -1 of a shape.

    Raises:
        ModelError: there are several, or the number of elements does not divide.
    """
    missing = [axis for axis, dim in enumerate(wanted) if isinstance(dim, int) and dim == -1]
    if len(missing) > 1:
        n.invalid(f"shape {wanted} has more than one -1")
    if missing:
        rest = symbols.product(d for axis, d in enumerate(wanted) if axis not in missing)
        total = x.type.numel
        if rest == 0:
            n.invalid(f"shape {wanted} leaves -1 undetermined")
        if isinstance(rest, int) and isinstance(total, int) and total % rest:
            n.invalid(f"{total} elements do not fill shape {wanted}")
        wanted[missing[0]] = symbols.floordiv(total, rest)
    return tuple(wanted)


def _runtime_shape(n: NodeContext, x: Value) -> tuple[Dim, ...]:
    """A shape that is only known when the model runs: 0 and -1 are resolved by arithmetic on it."""
    shape = n.value(1)
    rank = shape.type.shape[0] if shape.type.rank == 1 else None
    if not isinstance(rank, int):
        n.needs(1, "the rank of the result must be known when the model is compiled")
    b = n.b
    sizes = shape
    if not n.attr("allowzero", 0):
        own = list(x.shape[:rank]) + [1] * (rank - x.type.rank)
        sizes = b.where(b.eq(sizes, b.like(0, sizes)), b.dims(values=tuple(own)), sizes)
    missing = b.eq(sizes, b.like(-1, sizes))
    rest = b.reduce_prod(b.where(missing, b.like(1, sizes), sizes), axes=[0], keepdims=True)
    total = b.dims(values=(x.type.numel,))
    whole = b.div(total, b.maximum(rest, b.like(1, rest)))
    sizes = b.where(missing, whole, sizes)
    return n.bound(sizes, rank)


@onnx_op("Flatten")
def flatten(n: NodeContext) -> Value:
    """Two axes: everything before ``axis``, everything from it on."""
    x = n.value(0)
    axis = n.attr("axis", 1)
    axis = axis + x.type.rank if axis < 0 else axis
    if not 0 <= axis <= x.type.rank:
        n.invalid(f"axis {axis} is out of range for rank {x.type.rank}")
    return n.b.reshape(x, shape=(symbols.product(x.shape[:axis]), symbols.product(x.shape[axis:])))


def _axes(n: NodeContext) -> list[int] | None:
    if n.opset < 13:
        axes: list[int] | None = n.attr("axes")
        return axes
    return [int(a) for a in n.require_const(1, "the axes").reshape(-1)] if n.has(1) else None


@onnx_op("Squeeze")
def squeeze(n: NodeContext) -> Value:
    """Drops axes of size 1."""
    x = n.value(0)
    axes = _axes(n)
    if axes is None:
        if any(isinstance(d, SymExpr) for d in x.shape):
            n.needs_sizes(x.shape, "which axes have size 1 is not known")
        dropped = {i for i, d in enumerate(x.shape) if d == 1}
    else:
        dropped = {n.axis(a, x.type.rank) for a in axes}
        for axis in dropped:
            if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
                n.invalid(f"axis {axis} has size {x.shape[axis]}, not 1")
    return n.b.reshape(x, shape=tuple(d for i, d in enumerate(x.shape) if i not in dropped))


@onnx_op("Unsqueeze")
def unsqueeze(n: NodeContext) -> Value:
    """Inserts axes of size 1."""
    x = n.value(0)
    axes = _axes(n)
    if axes is None:
        n.invalid("the axes are missing")
    rank = x.type.rank + len(axes)
    added = {n.axis(a, rank) for a in axes}
    if len(added) != len(axes):
        n.invalid(f"axes {axes} repeat")
    dims = iter(x.shape)
    return n.b.reshape(x, shape=tuple(1 if i in added else next(dims) for i in range(rank)))


@onnx_op("Transpose")
def transpose(n: NodeContext) -> Value:
    """Permutes axes; reversed by default."""
    x = n.value(0)
    return n.b.transpose(x, perm=n.attr("perm") or list(range(x.type.rank))[::-1])


@onnx_op("Expand")
def expand(n: NodeContext) -> Value:
    """Broadcasts both ways: the result has the broadcast shape of operand and target."""
    x = n.value(0)
    target = n.dims(1)
    rank = max(len(target), x.type.rank)
    own = (1,) * (rank - x.type.rank) + tuple(x.shape)
    wanted = (1,) * (rank - len(target)) + target
    shape: list[Dim] = []
    for a, b in zip(own, wanted):
        if b == 1 or a == b or (isinstance(a, int) and a != 1):
            shape.append(a)
            if isinstance(a, int) and isinstance(b, int) and b not in (1, a):
                n.invalid(f"size {a} does not broadcast to {b}")
        else:
            shape.append(b if a == 1 else symbols.maximum(a, b))
    return n.b.broadcast_to(x, shape=tuple(shape))


@onnx_op("Tile", since=6)
def tile(n: NodeContext) -> Value:
    """Repeats along every axis."""
    return n.b.tile(n.value(0), repeats=n.dims(1))


@onnx_op("Concat")
def concat(n: NodeContext) -> Value:
    """Joins along an axis."""
    values = n.values()
    axis = n.axis(n.require_attr("axis"), values[0].type.rank)
    return n.b.concat(*values, axis=axis)


@onnx_op("Split")
def split(n: NodeContext) -> Any:
    """Cuts along an axis into given sizes or equal parts (the last may be smaller)."""
    x = n.value(0)
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    sizes: tuple[Dim, ...]
    given = n.attr("split") if n.opset < 13 else None
    if given is not None:
        sizes = tuple(given)
    elif n.opset >= 13 and n.has(1):
        sizes = n.dims(1)
    else:
        count = n.attr("num_outputs", n.output_count)
        size = x.shape[axis]
        if n.opset < 18 and isinstance(size, int) and size % count:
            n.invalid(f"size {size} does not divide into {count} equal parts")
        part = symbols.ceildiv(size, count)
        sizes = (*[part] * (count - 1), size - part * (count - 1))
    if len(sizes) == 1:
        return x
    return n.b.split(x, axis=axis, sizes=sizes)


@onnx_op("Slice")
def slice_attributes(n: NodeContext) -> Value:
    """Before opset 10: bounds as attributes."""
    starts, ends = n.require_attr("starts"), n.require_attr("ends")
    axes = n.attr("axes") or list(range(len(starts)))
    return _slice(n, n.value(0), starts, ends, axes, [1] * len(starts))


@onnx_op("Slice", since=10)
def slice_operands(n: NodeContext) -> Value:
    """Bounds as operands, which may depend on data."""
    x = n.value(0)
    steps_array = n.require_const(4, "the steps") if n.has(4) else None
    starts, ends = n.known(1), n.known(2)
    count = _length(n, 1)
    axes_array = n.require_const(3, "the axes") if n.has(3) else np.arange(count)
    axes = [n.axis(int(a), x.type.rank) for a in axes_array.reshape(-1)]
    steps = [1] * count if steps_array is None else [int(s) for s in steps_array.reshape(-1)]
    if starts is not None and ends is not None:
        return _slice(n, x, list(starts.reshape(-1)), list(ends.reshape(-1)), axes, steps)
    if any(step != 1 for step in steps):
        n.needs(1 if starts is None else 2, "bounds that depend on data need steps of 1")
    first, last = (_runtime_bound(n, x, i, axes) for i in (1, 2))
    return _cut(n, x, axes, steps, first, [symbols.maximum(b - a, 0) for a, b in zip(first, last)])


def _length(n: NodeContext, index: int) -> int:
    known = n.known(index)
    if known is not None:
        return int(known.size)
    (length,) = n.value(index).type.shape
    if not isinstance(length, int):
        n.needs(index, "the number of bounds must be known when the model is compiled")
    return length


def _runtime_bound(n: NodeContext, x: Value, index: int, axes: list[int]) -> list[Dim]:
    known = n.known(index)
    if known is not None:
        return [_clamped(d, x.shape[a], x.shape[a]) for d, a in zip(known.reshape(-1), axes)]
    b = n.b
    bound = n.value(index)
    if bound.dtype != i64:
        bound = b.cast(bound, dtype=i64)
    sizes = b.dims(values=tuple(x.shape[a] for a in axes))
    bound = b.where(b.lt(bound, b.like(0, bound)), b.add(bound, sizes), bound)
    bound = b.clamp(bound, b.like(0, bound), sizes)
    return list(n.bound(bound, len(axes)))


def _clamped(bound: Dim, size: Dim, largest: Dim) -> Dim:
    """A slice bound counted from the start, within 0..largest."""
    if isinstance(bound, int):
        if bound >= _UNBOUNDED:
            return largest
        if bound <= -_UNBOUNDED:
            return 0
    negative = bound < 0 if isinstance(bound, int) else not symbols.is_nonnegative(bound)
    if negative:
        return symbols.maximum(size + bound, 0) if isinstance(bound, int) else _from_symbolic(bound, size, largest)
    return symbols.minimum(bound, largest)


def _from_symbolic(bound: Dim, size: Dim, largest: Dim) -> Dim:
    counted = symbols.select(bound + 1, bound, size + bound)  # bound >= 0 counts from the start
    return symbols.maximum(symbols.minimum(counted, largest), 0)


def _slice(n: NodeContext, x: Value, starts: list[Dim], ends: list[Dim], axes: list[int], steps: list[int]) -> Value:
    if not len(starts) == len(ends) == len(axes) == len(steps):
        n.invalid("starts, ends, axes and steps differ in length")
    first: list[Dim] = []
    sizes: list[Dim] = []
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[n.axis(axis, x.type.rank)]
        if step == 0:
            n.invalid("a step is 0")
        if step > 0:
            a, z = _clamped(start, size, size), _clamped(end, size, size)
            length = symbols.maximum(symbols.ceildiv(z - a, step), 0)
        else:
            a = _clamped_backwards(start, size)
            z = _clamped_backwards(end, size)
            length = symbols.maximum(symbols.ceildiv(a - z, -step), 0)
        if isinstance(length, int) and length == 0:
            a = 0
        first.append(a)
        sizes.append(length)
    return _cut(n, x, axes, steps, first, sizes)


def _clamped_backwards(bound: Dim, size: Dim) -> Dim:
    """A bound of a slice with negative step, within -1..size-1."""
    if isinstance(bound, int):
        if bound >= _UNBOUNDED:
            return size - 1
        if bound < 0:
            if bound <= -_UNBOUNDED:
                return -1
            return symbols.maximum(size + bound, -1)
    return symbols.minimum(bound, size - 1)


def _cut(n: NodeContext, x: Value, axes: list[int], steps: list[int], first: list[Dim], sizes: list[Dim]) -> Value:
    all_starts: list[Dim] = [0] * x.type.rank
    all_sizes: list[Dim] = list(x.shape)
    all_steps = [1] * x.type.rank
    for axis, step, start, size in zip(axes, steps, first, sizes):
        axis = n.axis(axis, x.type.rank)
        all_starts[axis], all_sizes[axis], all_steps[axis] = start, size, step
    return n.b.slice(x, starts=tuple(all_starts), sizes=tuple(all_sizes), steps=all_steps)


@onnx_op("Pad")
def pad_attributes(n: NodeContext) -> Value:
    """Before opset 11: widths and value as attributes."""
    x = n.value(0)
    widths = n.require_attr("pads")
    return _pad(n, x, list(range(x.type.rank)), tuple(widths), n.b.like(n.attr("value", 0.0), x))


@onnx_op("Pad", since=11)
def pad(n: NodeContext) -> Value:
    """Widths as an operand; negative ones crop."""
    x = n.value(0)
    known = n.known(1)
    value = n.optional(2)
    if value is None:
        value = n.b.like(0, x)
    elif value.type.rank:
        value = n.b.reshape(value, shape=())
    axes = list(range(x.type.rank))
    if n.has(3):
        axes = [n.axis(int(a), x.type.rank) for a in n.require_const(3, "the axes").reshape(-1)]
    widths: tuple[Dim, ...] = tuple(known.reshape(-1)) if known is not None else _runtime_widths(n, x, axes)
    return _pad(n, x, axes, widths, value)


def _runtime_widths(n: NodeContext, x: Value, axes: list[int]) -> tuple[Dim, ...]:
    """Widths that depend on data. The padded sizes become symbols: sums of three sizes multiply to long terms."""
    b, widths, count = n.b, n.value(1), len(axes)
    if widths.type.rank != 1 or widths.shape[0] != 2 * count:
        n.invalid(f"{widths.type} does not hold the widths of {count} axes")
    low, high = (b.slice(widths, starts=[i * count], sizes=[count], steps=[1]) for i in (0, 1))
    own = tuple(x.shape[a] for a in axes)
    total = b.add(b.add(low, high), b.dims(values=own))
    before, after = n.bound(low, count), n.bound(total, count)
    return (*before, *(padded - size - a for padded, size, a in zip(after, own, before)))


def _pad(n: NodeContext, x: Value, axes: list[int], widths: tuple[Dim, ...], value: Value) -> Value:
    mode = n.attr("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        n.invalid(f"unknown mode {mode!r}")
    if len(widths) != 2 * len(axes):
        n.invalid(f"{len(widths)} widths do not fit {len(axes)} axes")
    low: list[Dim] = [0] * x.type.rank
    high: list[Dim] = [0] * x.type.rank
    for position, axis in enumerate(axes):
        low[axis], high[axis] = widths[position], widths[position + len(axes)]
    return n.b.pad(x, value, low=tuple(low), high=tuple(high), mode=mode)


@onnx_op("DepthToSpace")
def depth_to_space(n: NodeContext) -> Value:
    """Channels to blocks of pixels."""
    return n.b.depth_to_space(n.value(0), block=n.require_attr("blocksize"), mode=n.attr("mode", "DCR"))


@onnx_op("SpaceToDepth")
def space_to_depth(n: NodeContext) -> Value:
    """Blocks of pixels to channels."""
    x, block = n.value(0), n.require_attr("blocksize")
    mode = n.attr("mode", "DCR")
    if mode == "DCR":
        return n.b.space_to_depth(x, block=block)
    if mode != "CRD" or x.type.rank != 4 or block < 1:
        n.invalid(f"mode {mode!r} with blocks of {block} does not fit {x.type}")
    batch, channels, height, width = x.shape
    rows, columns = symbols.floordiv(height, block), symbols.floordiv(width, block)
    cut = n.b.reshape(x, shape=(batch, channels, rows, block, columns, block))
    moved = n.b.transpose(cut, perm=[0, 1, 3, 5, 2, 4])
    return n.b.reshape(moved, shape=(batch, channels * block * block, rows, columns))


@onnx_op("Trilu")
def trilu(n: NodeContext) -> Value:
    """Keeps a triangle, zeroes the rest."""
    k = n.optional(1)
    if k is None:
        k = n.b.constant(0, "i64")
    elif k.type.rank:
        k = n.b.reshape(k, shape=())
    return n.b.triangle(n.value(0), k, upper=bool(n.attr("upper", 1)))


@onnx_op("ReverseSequence")
def reverse_sequence(n: NodeContext) -> Value:
    """Reverses the first elements of each sequence."""
    return n.b.reverse_sequence(
        n.value(0), n.value(1), batch_axis=n.attr("batch_axis", 1), time_axis=n.attr("time_axis", 0)
    )
