"""What Resize computes, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.ir.dtypes import DType
from dhc.ir.op import Call
from dhc.ir.ops.resize_axis import ResizedAxis, accumulator_dtype, coordinate_dtype, resized_axes
from dhc.ir.ops.window import ints


def _coordinates(call: Call, axis: ResizedAxis) -> Any:
    """Operand position of every result position along an axis."""
    real: Any = coordinate_dtype(call.types[0].dtype).numpy.type
    before_count, after_count = ints((axis.before, axis.after))
    before, after = real(before_count), real(after_count)
    scale = real(axis.scale) if axis.scale is not None else after / before
    at = np.arange(after_count, dtype=real)
    half, rule = real(0.5), call.attrs.coordinate
    if rule == "half_pixel" or (rule == "pytorch_half_pixel" and after_count > 1):
        return (at + half) / scale - half
    if rule == "half_pixel_symmetric":
        offset = before / real(2) * (real(1) - after / (scale * before))
        return offset + (at + half) / scale - half
    if rule == "asymmetric":
        return at / scale
    if rule == "align_corners":
        return at * (before - real(1)) / (after - real(1)) if after_count > 1 else at * real(0)
    if rule == "tf_crop_and_resize":
        start, end, last = real(axis.start), real(axis.end), before - real(1)
        if after_count > 1:
            return start * last + at * (end - start) * last / (after - real(1))
        return at * real(0) + half * (start + end) * last
    return at * real(0)


def _rounded(call: Call, x: np.ndarray) -> Any:
    """The nearest operand position, by the attribute `nearest`."""
    rule, below = call.attrs.nearest, np.floor(x)
    if rule == "floor":
        return below
    if rule == "ceil":
        return np.ceil(x)
    up = x - below > 0.5 if rule == "round_prefer_floor" else x - below >= 0.5
    return below + up


def _filter(call: Call, distance: np.ndarray) -> Any:
    """Weight of a tap at a distance from the coordinate."""
    d = np.abs(distance)
    if call.attrs.mode == "linear":
        return np.maximum(1 - d, 0)
    a = d.dtype.type(call.attrs.cubic_a)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0)).astype(d.dtype)


def axis_taps(call: Call, axis: ResizedAxis) -> tuple[np.ndarray, np.ndarray]:
    """Operand positions [after, taps] along an axis and their weights (each row adds up to 1)."""
    a = call.attrs
    real = accumulator_dtype(call.types[0].dtype).numpy
    before, after = ints((axis.before, axis.after))
    if before == 0 or after == 0:
        return np.zeros((after, 0), np.int64), np.zeros((after, 0), real)
    at = _coordinates(call, axis)
    if a.mode == "nearest":
        return np.clip(_rounded(call, at), 0, before - 1).astype(np.int64)[:, None], np.ones((after, 1), real)
    number = at.dtype.type
    if a.mode == "linear" and not a.antialias:
        at = np.clip(at, 0, number(before - 1))
    scale = number(axis.scale if axis.scale is not None else after / before)
    stretch = np.minimum(scale, number(1)) if a.antialias else number(1)
    first, count = ints(axis.taps(a.mode, a.antialias))
    offsets = np.arange(first, first + count)
    below = np.floor(at)[:, None]
    columns = below.astype(np.int64) + offsets
    weights = _filter(call, (below + offsets.astype(at.dtype) - at[:, None]) * stretch)
    if a.exclude_outside:
        weights = np.where((columns >= 0) & (columns < before), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(columns, 0, before - 1), weights.astype(real)


def _outside(call: Call, axis: ResizedAxis) -> Any:
    at = _coordinates(call, axis)
    (before,) = ints((axis.before,))
    return (at < 0) | (at > at.dtype.type(before - 1))


def resized(call: Call, x: np.ndarray) -> Any:
    """The result of a resize."""
    a, dtype = call.attrs, call.types[0].dtype
    axes = resized_axes(call)
    for axis in axes:
        if axis.before == 0 and 0 not in ints(call.results[0].shape):
            call.fail(f"axis {axis.axis} is empty: there is nothing to sample")
    result = x if a.mode == "nearest" else x.astype(accumulator_dtype(dtype).numpy)
    for axis in axes:
        columns, weights = axis_taps(call, axis)
        shape = [-1 if i == axis.axis else 1 for i in range(x.ndim)]
        parts = [np.take(result, columns[:, tap], axis=axis.axis) for tap in range(columns.shape[1])]
        if a.mode == "nearest" and parts:
            result = parts[0]
            continue
        lengths = [len(columns) if i == axis.axis else n for i, n in enumerate(result.shape)]
        total = np.zeros(lengths, result.dtype)
        for tap, part in enumerate(parts):
            total += weights[:, tap].reshape(shape) * part
        result = total
    if a.mode != "nearest":
        result = stored(result, dtype, a.antialias)
    if a.coordinate == "tf_crop_and_resize":
        beyond = np.zeros((1,) * x.ndim, np.bool_)
        for axis in axes:
            beyond = beyond | np.expand_dims(_outside(call, axis), [i for i in range(x.ndim) if i != axis.axis])
        value = stored(np.asarray(a.extrapolation), dtype, False)
        result = np.where(beyond, value, result).astype(x.dtype)
    return np.ascontiguousarray(result)


def stored(total: np.ndarray, dtype: DType, nearest: bool) -> Any:
    """Weighted sums as elements of `dtype`; integers saturate and drop the fraction, or round it with antialias."""
    if dtype.is_integer:
        whole = np.rint(total) if nearest else np.trunc(total)
        low, high = float(dtype.min), float(dtype.max)
        inside = np.clip(whole, low, np.nextafter(high, 0, dtype=total.dtype) if dtype.bits > 32 else high)
        return inside.astype(dtype.numpy)
    return total.astype(dtype.numpy)
