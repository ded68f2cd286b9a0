"""Signal processing: discrete Fourier transforms as products with matrices of cosines and sines, mel filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir import symbols
from dhc.ir.dtypes import f32, f64, i64
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim

_TABLE_LIMIT = 2048
"""Transforms up to this length get constant matrices, longer ones compute theirs when the model runs."""
_MEL_LIMIT = 2**24
"""Elements of a mel filter bank that are still written into a model."""


@onnx_op("DFT", since=17)
def transform_attribute(n: NodeContext) -> Value:
    """Before opset 20 the axis is an attribute."""
    return _transform(n, n.attr("axis", 1))


@onnx_op("DFT", since=20)
def transform(n: NodeContext) -> Value:
    """The axis as an operand."""
    return _transform(n, int(n.require_const(2, "the axis").reshape(-1)[0]) if n.has(2) else -2)


def _transform(n: NodeContext, axis: int) -> Value:
    x = n.value(0)
    rank = x.type.rank
    if rank < 2 or x.shape[-1] not in (1, 2):
        n.invalid(f"the operand is {x.type}; its last axis holds the real part, or real and imaginary part")
    axis = n.axis(axis, rank)
    if axis == rank - 1:
        n.invalid("the last axis holds real and imaginary parts")
    inverse, onesided = bool(n.attr("inverse", 0)), bool(n.attr("onesided", 0))
    real_result = inverse and onesided
    given = x.shape[axis]
    length: Dim = (given - 1) * 2 if real_result else given
    if n.has(1):
        (length,) = n.dims(1)
    wide = x.dtype if x.dtype in (f32, f64) else f32
    parts = _parts(n, x if x.dtype == wide else n.b.cast(x, dtype=wide), axis)
    bins = symbols.floordiv(length, 2) + 1
    used = bins if real_result else length
    parts = [_fitted(n, part, used) for part in parts]
    if real_result:
        results = [_to_real(n, parts, length, bins)]
    else:
        results = spectrum(n, parts, length, bins if onesided else length, inverse)
    moved = n.b.concat(*(n.b.reshape(r, shape=(*r.shape, 1)) for r in results), axis=-1)
    moved = n.b.transpose(moved, perm=[*_back(rank - 1, axis), rank - 1])
    return moved if x.dtype == wide else n.b.cast(moved, dtype=x.dtype)


def _back(rank: int, axis: int) -> list[int]:
    """The permutation that takes the last axis back to `axis`."""
    return [*range(axis), rank - 1, *range(axis, rank - 1)]


def _parts(n: NodeContext, x: Value, axis: int) -> list[Value]:
    """Real part and, when there is one, imaginary part, with `axis` as their last."""
    rank = x.type.rank - 1
    perm = [*range(axis), *range(axis + 1, rank), axis]
    found = []
    for part in range(int(x.shape[-1])):  # type: ignore[arg-type]
        one = n.b.slice(x, starts=[0] * rank + [part], sizes=[*x.shape[:-1], 1], steps=[1] * (rank + 1))
        found.append(n.b.transpose(n.b.reshape(one, shape=x.shape[:-1]), perm=perm))
    return found


def _fitted(n: NodeContext, x: Value, length: Dim) -> Value:
    """The last axis cut or filled with zeros to `length`."""
    if x.shape[-1] == length:
        return x
    extra = [0] * (x.type.rank - 1) + [length - x.shape[-1]]
    result: Value = n.b.pad(x, n.b.like(0, x), low=[0] * x.type.rank, high=extra, mode="constant")
    return result


def _tables(n: NodeContext, rows: Dim, columns: Dim, length: Dim, like: Value) -> tuple[Value, Value]:
    """Cosines and sines of 2 pi row column / length; the product is reduced first, so that the angles are exact."""
    if isinstance(length, int) and length <= _TABLE_LIMIT and isinstance(rows, int) and isinstance(columns, int):
        turns = np.outer(np.arange(rows), np.arange(columns)) % max(length, 1)
        angle = 2 * np.pi * turns / max(length, 1)
        return n.b.constant(np.cos(angle), like.dtype), n.b.constant(np.sin(angle), like.dtype)
    b = n.b
    row, column = (b.iota(shape=(rows, columns), axis=axis, dtype=i64) for axis in (0, 1))
    turns = b.cast(b.mod(b.mul(row, column), n.number(length)), dtype=f64)
    angle = b.mul(turns, b.div(b.constant(2 * np.pi, f64), b.cast(n.number(length), dtype=f64)))
    return b.cast(b.cos(angle), dtype=like.dtype), b.cast(b.sin(angle), dtype=like.dtype)


def spectrum(n: NodeContext, parts: Sequence[Value], length: Dim, bins: Dim, inverse: bool = False) -> list[Value]:
    """Real and imaginary part of the transform along the last axis, `bins` of its frequencies."""
    b = n.b
    cos, sin = _tables(n, length, bins, length, parts[0])
    re = _rows(n, parts[0], cos)
    im = _rows(n, parts[0], sin)
    if not inverse:
        im = b.neg(im)
    if len(parts) == 2:
        cross, own = _rows(n, parts[1], sin), _rows(n, parts[1], cos)
        re = b.sub(re, cross) if inverse else b.add(re, cross)
        im = b.add(im, own)
    return [_scaled(n, v, length) for v in (re, im)] if inverse else [re, im]


def _to_real(n: NodeContext, parts: Sequence[Value], length: Dim, bins: Dim) -> Value:
    """The real signal whose non-negative frequencies are given."""
    b = n.b
    cos, sin = _tables(n, bins, length, length, parts[0])
    # Frequencies that stand for themselves and their negatives count twice.
    frequency = b.iota(shape=(bins,), axis=0, dtype=i64)
    last = n.number(length)
    two, zero = b.constant(2, i64), b.constant(0, i64)
    single = b.logical_or(b.eq(frequency, zero), b.eq(b.mul(frequency, two), last))
    weight = b.where(single, b.like(1, parts[0]), b.like(2, parts[0]))
    total = _rows(n, b.mul(parts[0], weight), cos)
    if len(parts) == 2:
        total = b.sub(total, _rows(n, b.mul(parts[1], weight), sin))
    return _scaled(n, total, length)


def _scaled(n: NodeContext, x: Value, length: Dim) -> Value:
    count = n.b.cast(n.number(length), dtype=x.dtype)
    result: Value = n.b.div(x, count)
    return result


def _rows(n: NodeContext, x: Value, matrix: Value) -> Value:
    """The product of all rows of `x` with a matrix."""
    flat = n.b.reshape(x, shape=(symbols.product(x.shape[:-1]), x.shape[-1]))
    result: Value = n.b.reshape(n.b.matmul(flat, matrix), shape=(*x.shape[:-1], matrix.shape[1]))
    return result


@onnx_op("STFT", since=17)
def short_time_transform(n: NodeContext) -> Value:
    """Spectra of overlapping frames of a signal [batch, samples, 1 or 2]: [batch, frames, frequencies, 2]."""
    b, x = n.b, n.value(0)
    if x.type.rank == 2:
        x = b.reshape(x, shape=(*x.shape, 1))
    if x.type.rank != 3 or x.shape[2] not in (1, 2):
        n.invalid(f"the signal is {x.type}, not [batch, samples, 1 or 2]")
    (step,) = n.dims(1)
    window = n.optional(2)
    if n.has(3):
        (length,) = n.dims(3)
    else:
        length = x.shape[1] if window is None else window.shape[0]
    frames = symbols.floordiv(x.shape[1] - length, step) + 1
    wide = x.dtype if x.dtype in (f32, f64) else f32
    first = b.mul(b.iota(shape=(frames, length), axis=0, dtype=i64), n.number(step))
    at = b.add(first, b.iota(shape=(frames, length), axis=1, dtype=i64))
    parts = []
    for part in _parts(n, x if x.dtype == wide else b.cast(x, dtype=wide), 1):
        cut = b.gather(part, at, axis=1)
        parts.append(cut if window is None else b.mul(cut, b.cast(window, dtype=wide)))
    bins = symbols.floordiv(length, 2) + 1 if n.attr("onesided", 1) else length
    made = [b.reshape(v, shape=(*v.shape, 1)) for v in spectrum(n, parts, length, bins)]
    joined: Value = b.concat(*made, axis=-1)
    return joined if x.dtype == wide else b.cast(joined, dtype=x.dtype)


@onnx_op("MelWeightMatrix", since=17)
def mel_weights(n: NodeContext) -> Value:
    """Triangular filters, equally spaced on the mel scale, over the frequencies of a transform."""
    names = ("number of mel bins", "transform length", "sample rate", "lower edge", "upper edge")
    bins, length, rate, low, high = (
        n.require_const(i, f"the {name}").reshape(-1)[0].item() for i, name in enumerate(names)
    )
    if bins < 1 or length < 1 or rate <= 0 or not 0 <= low <= high <= rate:
        n.invalid("the numbers of mel bins, transform length, rate or edges make no sense")
    if bins * length > _MEL_LIMIT:
        n.unsupported(f"a bank of {bins} filters over transforms of {length} is too large")
    edges = 2595 * np.log1p(np.array([low, high]) / 700) / np.log(10)
    mels = edges[0] + np.arange(bins + 2) * ((edges[1] - edges[0]) / (bins + 2))
    hertz = 700 * np.expm1(mels / 2595 * np.log(10))
    corners = ((length + 1) * hertz // rate).astype(np.int64)
    rows = length // 2 + 1
    at = np.arange(rows)[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    with np.errstate(all="ignore"):
        rising = np.where(middle == left, at == middle, (at - left) / (middle - left))
        falling = (right - at) / (right - middle)
    weights = np.where((at >= left) & (at <= middle), rising, 0.0)
    weights = np.where((at >= middle) & (at < right), falling, weights)
    dtype = from_onnx_dtype(n.attr("output_datatype", 1), str(n.location))
    made: Value = n.b.constant(weights, dtype)
    return made
