"""Random tensors from a counter: the same numbers on every device, for any number of threads.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11)
with key words (seed, stream). Word w of the stream is lane w % 4 of the block of counter w // 4. In the formulas i is
the row-major position of an element.

* bits: word i;
* uniform, 32-bit and half floats: u = (word i >> 8) / 2**24; 64-bit: u = (words 2i and 2i+1, low first, >> 11) / 2**53;
  the result is low + u * (high - low), and the largest number below `high` where rounding would reach `high`;
* normal (Box and Muller 1958): u1 in (0, 1] and u2 in [0, 1) of words 2i and 2i+1 (64-bit: 4i..4i+3);
  mean + std * sqrt(-2 log(u1)) * cos(2 pi u2).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.dtypes import FLOATS, DType, f32, f64, i64, ordered, u32, u64
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef
from dhc.ir.ops.view import linear_index
from dhc.ir.precision import compute_dtype, half_result
from dhc.ir.registry import register
from dhc.ir.types import TensorType

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = Any  # u32 array


def philox_4x32_10(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Ten rounds of Philox on arrays of counter words; gives four arrays of u32."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    k0, k1 = key
    shift, mask = np.uint64(32), np.uint64(_MASK)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(_MULTIPLIERS[0]), c[2] * np.uint64(_MULTIPLIERS[1])
        c = [(p1 >> shift) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return tuple(word.astype(np.uint32) for word in c)


def random_words(count: int, seed: int, stream: int) -> Words:
    """The first `count` words of a stream."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    zero = np.zeros_like(blocks)
    lanes = philox_4x32_10((blocks & np.uint64(_MASK), blocks >> np.uint64(32), zero, zero), (seed, stream))
    return np.stack(lanes, axis=1).reshape(-1)[:count]


def _key(call: Call) -> s.ScalarExpr:
    key = call.attrs.seed | call.attrs.stream << 32
    return s.const(key - (1 << 64) if key >> 63 else key, i64)


def _word(call: Call, position: s.ScalarExpr) -> s.ScalarExpr:
    """Word `position` of the stream."""
    key, block = _key(call), position // 4
    which = position % 4
    result: s.ScalarExpr = s.Philox(key, block, 3)
    for candidate in (2, 1, 0):
        result = s.select(which.eq(candidate), s.Philox(key, block, candidate), result)
    return result


def _random_type(call: Call, dtype: DType) -> list[TensorType]:
    for name in ("seed", "stream"):
        if not 0 <= call.attrs[name] <= _MASK:
            call.fail(f"{name} {call.attrs[name]} is not within 0 .. 2**32 - 1")
    if dtype not in FLOATS | {u32}:
        call.fail_type(f"random numbers of type {dtype} are not defined", hint="draw f32 and cast")
    return [TensorType(dtype, call.attrs.shape)]


_SHAPE = Attr("shape", "dims", doc="result shape")
_DTYPE = Attr("dtype", "dtype", f32, "floating element type")
_SEED = (Attr("seed", "int", 0, "first key word, 0 .. 2**32-1"), Attr("stream", "int", 0, "second key word"))
_NO_GRADIENT = NotDifferentiable("has no operands")


# ---- bits ------------------------------------------------------------------------------------------------------------


def _count(call: Call) -> int:
    return int(np.prod(call.attrs.shape, dtype=np.int64))


def _bits_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    return _word(call, linear_index(index, call.results[0].shape))


register(
    OpDef(
        name="random_bits",
        doc="Random 32-bit words.",
        operands=(),
        attrs=(_SHAPE, *_SEED),
        infer=lambda call: _random_type(call, u32),
        reference=lambda call: random_words(_count(call), call.attrs.seed, call.attrs.stream).reshape(call.attrs.shape),
        kind=Map(_bits_element, role="generate"),
        grad=NotDifferentiable("integer result"),
        examples=lambda: [([], {"shape": (2, 5), "seed": 7, "stream": 0xFFFFFFFF}), ([], {"shape": (0,)})],
        source="Salmon et al. 2011",
    )
)


# ---- uniform ---------------------------------------------------------------------------------------------------------


def _unit(words: Words, compute: DType) -> Any:
    """Numbers in [0, 1) from one word each (f32) or two (f64), as whole numbers to be scaled."""
    if compute == f32:
        return (words >> np.uint32(8)).astype(np.int64)
    pairs = words.reshape(-1, 2).astype(np.uint64)
    return ((pairs[:, 0] | pairs[:, 1] << np.uint64(32)) >> np.uint64(11)).astype(np.int64)


def _unit_expr(call: Call, position: s.ScalarExpr, compute: DType) -> s.ScalarExpr:
    if compute == f32:
        return s.cast(_word(call, position) >> 8, i64)
    return _53_bits(_word(call, position * 2), _word(call, position * 2 + 1))


def _53_bits(low: s.ScalarExpr, high: s.ScalarExpr) -> s.ScalarExpr:
    return s.cast((s.cast(low, u64) | s.cast(high, u64) << 32) >> 11, i64)


def _resolution(compute: DType) -> float:
    return 2.0**-24 if compute == f32 else 2.0**-53


def _largest_below(high: float, low: float, dtype: DType) -> float:
    """The largest number of `dtype` under `high`, but not under `low`."""
    kind = dtype.numpy
    limit = np.asarray(high).astype(kind)
    if float(limit) >= high:
        limit = np.nextafter(limit, np.asarray(-np.inf).astype(kind))
    return max(float(limit), float(np.asarray(low).astype(kind)))


def _uniform_type(call: Call) -> list[TensorType]:
    if not call.attrs.low <= call.attrs.high:
        call.fail(f"low {call.attrs.low} is above high {call.attrs.high}")
    return _random_type(call, call.attrs.dtype)


def _uniform(call: Call) -> Any:
    at = call.attrs
    compute = compute_dtype(at.dtype)
    kind = compute.numpy.type
    words = random_words(_count(call) * (1 if compute == f32 else 2), at.seed, at.stream)
    unit = _unit(words, compute).astype(compute.numpy) * kind(_resolution(compute))
    value = kind(at.low) + unit * kind(at.high - at.low)
    limited = np.minimum(value, kind(_largest_below(at.high, at.low, at.dtype)))
    return limited.astype(at.dtype.numpy).reshape(at.shape)


def _uniform_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    at = call.attrs
    compute = compute_dtype(at.dtype)
    whole = _unit_expr(call, linear_index(index, call.results[0].shape), compute)
    unit = s.cast(whole, compute) * _resolution(compute)
    value = s.const(at.low, compute) + unit * (at.high - at.low)
    return half_result(s.minimum(value, _largest_below(at.high, at.low, at.dtype)), at.dtype)


register(
    OpDef(
        name="random_uniform",
        doc="Random numbers, uniform in [low, high).",
        operands=(),
        attrs=(
            _SHAPE,
            _DTYPE,
            Attr("low", "float", 0.0, "smallest value"),
            Attr("high", "float", 1.0, "bound that is not reached"),
            *_SEED,
        ),
        infer=_uniform_type,
        reference=_uniform,
        kind=Map(_uniform_element, role="generate"),
        grad=_NO_GRADIENT,
        examples=lambda: [
            ([], {"shape": (3, 3), "dtype": dtype, "low": -1.0, "high": 2.5, "seed": 3, "stream": 1})
            for dtype in ordered(FLOATS)
        ],
        source="ONNX RandomUniform",
    )
)


# ---- normal ----------------------------------------------------------------------------------------------------------


def _normal(call: Call) -> Any:
    at = call.attrs
    compute = compute_dtype(at.dtype)
    kind = compute.numpy.type
    words = random_words(_count(call) * (2 if compute == f32 else 4), at.seed, at.stream)
    whole = _unit(words, compute).reshape(-1, 2)
    resolution = kind(_resolution(compute))
    u1 = (whole[:, 0] + 1).astype(compute.numpy) * resolution
    u2 = whole[:, 1].astype(compute.numpy) * resolution
    radius = np.sqrt(kind(-2) * np.log(u1))
    value = kind(at.mean) + kind(at.std) * (radius * np.cos(kind(2 * math.pi) * u2))
    return value.astype(at.dtype.numpy).reshape(at.shape)


def _normal_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    at = call.attrs
    compute = compute_dtype(at.dtype)
    position = linear_index(index, call.results[0].shape)
    if compute == f64:
        words = [s.Philox(_key(call), position, lane) for lane in range(4)]
        first, second = _53_bits(words[0], words[1]), _53_bits(words[2], words[3])
    else:
        first, second = _unit_expr(call, position * 2, f32), _unit_expr(call, position * 2 + 1, f32)
    u1 = s.cast(first + 1, compute) * _resolution(compute)
    u2 = s.cast(second, compute) * _resolution(compute)
    radius = s.unary("sqrt", s.unary("log", u1) * -2.0)
    value = radius * s.unary("cos", u2 * (2 * math.pi)) * at.std + at.mean
    return half_result(value, at.dtype)


register(
    OpDef(
        name="random_normal",
        doc="Random numbers of a normal distribution.",
        operands=(),
        attrs=(
            _SHAPE,
            _DTYPE,
            Attr("mean", "float", 0.0, "expectation"),
            Attr("std", "float", 1.0, "standard deviation"),
            *_SEED,
        ),
        infer=lambda call: _random_type(call, call.attrs.dtype),
        reference=_normal,
        kind=Map(_normal_element, role="generate"),
        grad=_NO_GRADIENT,
        examples=lambda: [
            ([], {"shape": (3, 3), "dtype": dtype, "mean": 1.0, "std": 0.5, "seed": 0xFFFFFFFF})
            for dtype in ordered(FLOATS)
        ],
        source="ONNX RandomNormal",
    )
)
