"""Reading at fractional positions: grid samples, deformable convolutions, and what undoes im2col."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.families.windows import window_attributes
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import f32, f64, i64
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim

_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}


@onnx_op("GridSample", since=16)
def grid_sample(n: NodeContext) -> Value:
    """Samples at normalized positions."""
    mode, padding = n.attr("mode", "linear"), n.attr("padding_mode", "zeros")
    if mode not in _MODES or padding not in ("zeros", "border", "reflection"):
        n.invalid(f"mode {mode!r} or padding_mode {padding!r} is unknown")
    x, grid = n.value(0), n.value(1)
    if _MODES[mode] == "cubic" and x.type.rank > 4:
        n.unsupported("cubic interpolation is only for two spatial axes", "use linear")
    return n.b.grid_sample(x, grid, mode=_MODES[mode], padding=padding, align_corners=bool(n.attr("align_corners", 0)))


@onnx_op("Col2Im", since=18)
def column_to_image(n: NodeContext) -> Value:
    """Adds up the blocks of [N, C * block, blocks] at their places in an image."""
    b, x = n.b, n.value(0)
    image, block = n.dims(1), n.dims(2)
    rank = len(image)
    if x.type.rank != 3 or len(block) != rank:
        n.invalid(f"operand {x.type}, image {list(image)} and block {list(block)} do not fit")
    if any(not isinstance(k, int) for k in block):
        n.needs(2, "the block shape must be known when the model is compiled")
    window = window_attributes(n, tuple(int(k) for k in block), image)  # type: ignore[arg-type]
    blocks: list[Dim] = [
        symbols.floordiv(size + low + high - (k - 1) * dilation - 1, stride) + 1
        for size, k, stride, dilation, low, high in zip(
            image, window.kernel, window.strides, window.dilations, window.low, window.high
        )
    ]
    volume, area = symbols.product(block), symbols.product(image)
    places = (*block, *blocks)
    flat, inside = b.constant(0, i64), b.constant(True)
    for axis in range(rank):
        offset = b.iota(shape=places, axis=axis, dtype=i64)
        start = b.iota(shape=places, axis=rank + axis, dtype=i64)
        at = b.add(b.mul(offset, b.constant(window.dilations[axis])), b.mul(start, b.constant(window.strides[axis])))
        at = b.sub(at, n.number(window.low[axis]))
        size = n.number(image[axis])
        inside = b.logical_and(inside, b.logical_and(b.ge(at, b.constant(0)), b.lt(at, size)))
        flat = b.add(b.mul(flat, size), at)
    # What falls outside is added to one more element, which is cut off.
    flat = b.where(inside, flat, n.number(area))
    channels = symbols.floordiv(x.shape[1], volume)
    lines = x.shape[0] * channels
    length = volume * symbols.product(blocks)
    columns = b.reshape(x, shape=(lines, length))
    indices = b.broadcast_to(b.reshape(flat, shape=(1, length)), shape=(lines, length))
    total = b.scatter_elements(b.full((lines, area + 1), 0, x.dtype), indices, columns, axis=1, reduction="add")
    kept = b.slice(total, starts=[0, 0], sizes=[lines, area], steps=[1, 1])
    return b.reshape(kept, shape=(x.shape[0], channels, *image))


@onnx_op("DeformConv", since=19)
def deformable_convolution(n: NodeContext) -> Value:
    """A convolution whose window elements are moved by offsets and weighted by a mask."""
    b, x, w, offset = n.b, n.value(0), n.value(1), n.value(2)
    rank = x.type.rank - 2
    if rank not in (1, 2, 3) or w.type.rank != x.type.rank or offset.type.rank != x.type.rank:
        n.invalid(f"operand {x.type}, weights {w.type} and offsets {offset.type} do not fit")
    kernel = w.shape[2:]
    if any(not isinstance(k, int) for k in kernel):
        n.unsupported("the kernel size must be known when the model is compiled")
    window = window_attributes(n, tuple(int(k) for k in kernel), x.shape[2:])  # type: ignore[arg-type]
    groups, moved = n.attr("group", 1), n.attr("offset_group", 1)
    out = offset.shape[2:]
    volume, area = symbols.product(kernel), symbols.product(out)
    places = (*kernel, *out)
    offsets = b.reshape(offset, shape=(x.shape[0] * moved, volume, rank, area))
    coordinates = []
    for axis in reversed(range(rank)):
        element = b.iota(shape=places, axis=axis, dtype=i64)
        start = b.iota(shape=places, axis=rank + axis, dtype=i64)
        at = b.add(b.mul(element, b.constant(window.dilations[axis])), b.mul(start, b.constant(window.strides[axis])))
        at = b.reshape(b.sub(at, n.number(window.low[axis])), shape=(1, volume, area))
        shift = _picked(n, offsets, axis)
        coordinates.append(b.reshape(b.add(b.cast(at, dtype=shift.dtype), shift), shape=(*shift.shape, 1)))
    # All window elements of all positions make one sampling grid.
    grid = b.concat(*coordinates, axis=-1)
    grid = b.reshape(grid, shape=(x.shape[0] * moved, volume, *(1,) * (rank - 2), area, rank)) if rank > 1 else (
        b.reshape(grid, shape=(x.shape[0] * moved, volume * area, 1))
    )  # fmt: skip
    each = symbols.floordiv(x.shape[1], moved)
    source = b.reshape(x, shape=(x.shape[0] * moved, each, *x.shape[2:]))
    taken = b.grid_sample(source, grid, mode="linear", padding="zeros", normalized=False)
    taken = b.reshape(taken, shape=(x.shape[0] * moved, each, volume, area))
    mask = n.optional(4)
    if mask is not None:
        taken = b.mul(taken, b.reshape(mask, shape=(x.shape[0] * moved, 1, volume, area)))
    inner = symbols.floordiv(x.shape[1], groups) * volume
    rows = b.reshape(taken, shape=(x.shape[0], groups, inner, area))
    weights = b.reshape(w, shape=(1, groups, symbols.floordiv(w.shape[0], groups), inner))
    result = b.reshape(b.matmul(weights, rows), shape=(x.shape[0], w.shape[0], *out))
    bias = n.optional(3)
    if bias is None:
        return result
    return b.add(result, b.reshape(bias, shape=(w.shape[0], *(1,) * rank)))


def _picked(n: NodeContext, offsets: Value, axis: int) -> Value:
    """The offsets along one axis: [images, window elements, positions]."""
    sizes: Sequence[Dim] = (*offsets.shape[:2], 1, offsets.shape[3])
    one = n.b.slice(offsets, starts=[0, 0, axis, 0], sizes=sizes, steps=[1] * 4)
    result: Value = n.b.reshape(one, shape=(*offsets.shape[:2], offsets.shape[3]))
    return result


@onnx_op("RoiAlign", since=10)
def roi_align_whole(n: NodeContext) -> Value:
    """Before opset 16 elements lie at whole coordinates."""
    return _roi_align(n, False)


@onnx_op("RoiAlign", since=16)
def roi_align(n: NodeContext) -> Value:
    """Where elements lie is an attribute."""
    rule = n.attr("coordinate_transformation_mode", "half_pixel")
    if rule not in ("half_pixel", "output_half_pixel"):
        n.invalid(f"coordinate_transformation_mode {rule!r} is unknown")
    return _roi_align(n, rule == "half_pixel")


def _roi_align(n: NodeContext, half_pixel: bool) -> Value:
    b, x, mode = n.b, n.value(0), n.attr("mode", "avg")
    if mode not in ("avg", "max"):
        n.invalid(f"mode {mode!r} is neither avg nor max")
    wide = x.dtype if x.dtype in (f32, f64) else f32
    operands = [v if v.dtype == wide else b.cast(v, dtype=wide) for v in (x, n.value(1))]
    batches = n.value(2)
    pooled = b.roi_align(
        *operands,
        batches if batches.dtype == i64 else b.cast(batches, dtype=i64),
        b.constant(n.attr("spatial_scale", 1.0), wide),
        height=n.attr("output_height", 1),
        width=n.attr("output_width", 1),
        sampling=n.attr("sampling_ratio", 0),
        half_pixel=half_pixel,
        mode=mode,
    )
    result: Value = pooled if wide == x.dtype else b.cast(pooled, dtype=x.dtype)
    return result


@onnx_op("MaxRoiPool")
def max_roi_pool(n: NodeContext) -> Value:
    """The largest element of each bin of a region of an image; bins without elements give 0."""
    b, x, rois = n.b, n.value(0), n.value(1)
    pooled = n.require_attr("pooled_shape")
    if x.type.rank != 4 or rois.type.rank != 2 or len(pooled) != 2 or min(pooled) < 1:
        n.invalid(f"operand {x.type}, regions {rois.type} and pooled_shape {pooled} do not fit")
    count = rois.shape[0]
    wide = rois if rois.dtype in (f32, f64) else b.cast(rois, dtype=f32)
    columns = [
        b.reshape(b.slice(wide, starts=[0, i], sizes=[count, 1], steps=[1, 1]), shape=(count, 1, 1)) for i in range(5)
    ]
    taken = b.gather(x, b.reshape(b.cast(columns[0], dtype=i64), shape=(count,)), axis=0)
    filled = None
    for axis, (first, last) in ((2, (2, 4)), (3, (1, 3))):
        inside, nonempty = _bins(n, columns[first], columns[last], pooled[axis - 2], x.shape[axis])
        kept, shape = [count, 1, 1, 1, 1, 1], [*taken.shape]
        shape.insert(axis, 1)
        kept[axis : axis + 2] = inside.shape[1:]
        values = b.where(b.reshape(inside, shape=kept[: len(shape)]), b.reshape(taken, shape=shape), b.like(-inf, x))
        taken = b.reduce_max(values, axes=[axis + 1])
        place = [count, 1, 1, 1]
        place[axis] = pooled[axis - 2]
        nonempty = b.reshape(nonempty, shape=place)
        filled = nonempty if filled is None else b.logical_and(filled, nonempty)
    result: Value = b.where(filled, taken, b.like(0, x))
    return result


def _bins(n: NodeContext, first: Value, last: Value, bins: int, size: Dim) -> tuple[Value, Value]:
    """Which elements [regions, bins, size] are in which bin along an axis, and which bins have any."""
    b, scale = n.b, n.attr("spatial_scale", 1.0)

    def rounded(at: Value) -> Value:
        scaled = b.mul(at, b.like(scale, at))  # halves away from 0
        whole: Value = b.mul(b.sign(scaled), b.floor(b.add(b.abs(scaled), b.like(0.5, at))))
        return whole

    start, one = rounded(first), b.like(1, first)
    width = b.div(b.maximum(b.add(b.sub(rounded(last), start), one), one), b.like(bins, first))
    number = b.cast(b.iota(shape=(1, bins, 1), axis=1, dtype=i64), dtype=first.dtype)
    low = b.add(b.floor(b.mul(number, width)), start)
    high = b.add(b.ceil(b.mul(b.add(number, one), width)), start)
    low, high = (b.minimum(b.maximum(b.cast(v, dtype=i64), b.constant(0, i64)), n.number(size)) for v in (low, high))
    at = b.iota(shape=(1, 1, size), axis=2, dtype=i64)
    return b.logical_and(b.ge(at, low), b.lt(at, high)), b.lt(low, high)
