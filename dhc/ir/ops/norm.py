"""Normalisations as compositions of primitive ops; 16-bit floats are computed in f32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS, DType
from dhc.ir.graph import Value
from dhc.ir.inference import broadcast_shapes, require_equal, same_type
from dhc.ir.kinds import Composite
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.ops.matmul import converted
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.symbols import Dim, Shape
from dhc.ir.types import TensorType

EPSILON = Attr("epsilon", "float", 1e-5, "added to the variance")
AXIS = Attr("axis", "int", -1, "first of the axes that are normalised together")
X = Operand("x", FLOATS)


def _widest(call: Call) -> DType:
    """The dtype to compute in: that of x, or f32 for 16-bit floats."""
    return compute_dtype(call.types[0].dtype)


def _wide(call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
    return [a.astype(_widest(call).numpy, copy=False) for a in arrays]


def _per_channel(call: Call) -> list[TensorType]:
    """X is ``[N, C, ...]``, every further operand ``[C]``."""
    x, *vectors = call.types
    if x.rank < 2:
        call.fail("needs an operand [N, C, ...]")
    for operand, vector in zip(call.op.operands[1:], vectors):
        if vector.rank != 1:
            call.fail(f"operand {operand.name!r} has rank {vector.rank}, needs 1")
        require_equal(call, vector.shape[0], x.shape[1], f"{operand.name} and channels")
    return same_type(call)


def _column(b: Builder, vector: Value, x: Value, dtype: DType) -> Value:
    """A vector ``[C]`` shaped to multiply x ``[N, C, ...]``."""
    shape = (vector.shape[0], *(1 for _ in range(x.type.rank - 2)))
    result: Value = b.reshape(converted(b, vector, dtype), shape=shape)
    return result


def _column_array(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    return vector.reshape(-1, *(1 for _ in range(x.ndim - 2)))


# ---- batch normalisation ---------------------------------------------------------------------------------------------


def _batch_reference(
    call: Call, x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> Any:
    wide, *vectors = _wide(call, x, scale, bias, mean, var)
    s, t, m, v = (_column_array(a, x) for a in vectors)
    return ((wide - m) * (s / np.sqrt(v + wide.dtype.type(call.attrs.epsilon))) + t).astype(x.dtype)


def _build_batch(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    x = operands[0]
    dtype = _widest(call)
    scale, bias, mean, var = (_column(b, v, x, dtype) for v in operands[1:])
    factor = b.div(scale, b.sqrt(b.add(var, b.like(call.attrs.epsilon, var))))
    y = b.add(b.mul(b.sub(converted(b, x, dtype), mean), factor), bias)
    return (converted(b, y, x.dtype),)


# ---- normalisation over trailing axes --------------------------------------------------------------------------------


def _trailing_type(call: Call) -> list[TensorType]:
    x, *vectors = call.types
    call.axis(call.attrs.axis)
    for operand, vector in zip(call.op.operands[1:], vectors):
        if broadcast_shapes(call, x.shape, vector.shape) != x.shape:
            call.fail(f"operand {operand.name!r} does not broadcast to x")
    return same_type(call)


def _trailing_axes(call: Call) -> tuple[int, ...]:
    return tuple(range(call.axis(call.attrs.axis), call.types[0].rank))


def _layer_reference(call: Call, x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None) -> Any:
    wide, s = _wide(call, x, scale)
    axes = _trailing_axes(call)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + wide.dtype.type(call.attrs.epsilon)) * s
    if bias is not None:
        y = y + _wide(call, bias)[0]
    return y.astype(x.dtype)


def _normalised(b: Builder, x: Value, axes: Sequence[int], epsilon: float) -> Value:
    """``(x - mean) / sqrt(variance + epsilon)`` over `axes`; the variance is the mean of squared differences."""
    centred = b.sub(x, b.reduce_mean(x, axes=axes, keepdims=True))
    variance = b.reduce_mean(b.mul(centred, centred), axes=axes, keepdims=True)
    result: Value = b.div(centred, b.sqrt(b.add(variance, b.like(epsilon, variance))))
    return result


def _build_layer(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    x, scale, *bias = operands
    dtype = _widest(call)
    y = _normalised(b, converted(b, x, dtype), _trailing_axes(call), call.attrs.epsilon)
    y = b.mul(y, converted(b, scale, dtype))
    if bias:
        y = b.add(y, converted(b, bias[0], dtype))
    return (converted(b, y, x.dtype),)


def _rms_reference(call: Call, x: np.ndarray, scale: np.ndarray) -> Any:
    wide, s = _wide(call, x, scale)
    power = np.square(wide).mean(axis=_trailing_axes(call), keepdims=True)
    return (wide / np.sqrt(power + wide.dtype.type(call.attrs.epsilon)) * s).astype(x.dtype)


def _build_rms(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    x, scale = operands
    dtype = _widest(call)
    wide = converted(b, x, dtype)
    power = b.reduce_mean(b.mul(wide, wide), axes=_trailing_axes(call), keepdims=True)
    y = b.div(wide, b.sqrt(b.add(power, b.like(call.attrs.epsilon, power))))
    return (converted(b, b.mul(y, converted(b, scale, dtype)), x.dtype),)


# ---- normalisation over space ----------------------------------------------------------------------------------------


def _group_type(call: Call) -> list[TensorType]:
    groups = call.attrs.groups
    types = _per_channel(call)
    channels = call.types[0].shape[1]
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        call.fail(f"{symbols.format_dim(channels)} channels do not divide into {groups} groups")
    call.require(symbols.mod(channels, groups), 0, f"channels divide into {groups} groups")
    return types


def _space_reference(groups_of: Callable[[Call], Any]) -> Any:
    def reference(call: Call, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> Any:
        wide, s, t = _wide(call, x, scale, bias)
        groups = groups_of(call)
        blocks = wide.reshape(x.shape[0], groups, x.shape[1] // groups if groups else 0, *x.shape[2:])
        axes = tuple(range(2, blocks.ndim))
        mean, variance = blocks.mean(axis=axes, keepdims=True), blocks.var(axis=axes, keepdims=True)
        y = ((blocks - mean) / np.sqrt(variance + wide.dtype.type(call.attrs.epsilon))).reshape(x.shape)
        return (y * _column_array(s, x) + _column_array(t, x)).astype(x.dtype)

    return reference


def _build_instance(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    x, scale, bias = operands
    dtype = _widest(call)
    wide = converted(b, x, dtype)
    # Without spatial axes each element is its own mean.
    y = _normalised(b, wide, range(2, x.type.rank), call.attrs.epsilon) if x.type.rank > 2 else b.sub(wide, wide)
    y = b.add(b.mul(y, _column(b, scale, x, dtype)), _column(b, bias, x, dtype))
    return (converted(b, y, x.dtype),)


def _build_group(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    x, scale, bias = operands
    dtype, groups = _widest(call), call.attrs.groups
    n, c, *spatial = x.shape
    split: Shape = (n, groups, symbols.floordiv(c, groups), *spatial)
    blocks = b.reshape(converted(b, x, dtype), shape=split)
    y = b.reshape(_normalised(b, blocks, range(2, len(split)), call.attrs.epsilon), shape=x.shape)
    y = b.add(b.mul(y, _column(b, scale, x, dtype)), _column(b, bias, x, dtype))
    return (converted(b, y, x.dtype),)


# ---- across channels -------------------------------------------------------------------------------------------------


def _lrn_type(call: Call) -> list[TensorType]:
    if call.types[0].rank < 2:
        call.fail("needs an operand [N, C, ...]")
    if call.attrs.size < 1:
        call.fail(f"size = {call.attrs.size} is not positive")
    return same_type(call)


def _lrn_reference(call: Call, x: np.ndarray) -> Any:
    (wide,) = _wide(call, x)
    size, channels = call.attrs.size, x.shape[1]
    squares = np.square(wide)
    total = np.zeros_like(wide)
    for c in range(channels):
        first, last = max(0, c - (size - 1) // 2), min(channels - 1, c + size // 2)
        total[:, c] = squares[:, first : last + 1].sum(axis=1)
    alpha, beta, bias = (wide.dtype.type(v) for v in (call.attrs.alpha / size, call.attrs.beta, call.attrs.bias))
    return (wide / (bias + alpha * total) ** beta).astype(x.dtype)


def _build_lrn(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    size = call.attrs.size
    wide = converted(b, x, _widest(call))
    n, c, *spatial = x.shape
    plane: Dim = symbols.product(spatial)
    # alpha / size * (sum of squares over neighbouring channels) = alpha * their mean with padding counted.
    squares = b.reshape(b.mul(wide, wide), shape=(n, 1, c, plane))
    mean = b.avg_pool(
        squares, kernel=(size, 1), pads_low=((size - 1) // 2, 0), pads_high=(size // 2, 0), count_include_pad=True
    )
    base = b.add(b.mul(b.reshape(mean, shape=x.shape), b.like(call.attrs.alpha, wide)), b.like(call.attrs.bias, wide))
    return (converted(b, b.div(wide, b.pow(base, b.like(call.attrs.beta, wide))), x.dtype),)


# ---- records ---------------------------------------------------------------------------------------------------------


def _array(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _batch_examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    def call(*shape: int) -> list[np.ndarray]:
        c = shape[1]
        return [_array(1, *shape), _array(2, c), _array(3, c), _array(4, c), np.abs(_array(5, c)) + np.float32(0.1)]

    return [(call(2, 3, 4, 5), {}), (call(4, 3), {"epsilon": 1e-3}), (call(1, 2, 2, 3, 2), {}), (call(0, 2, 3), {})]


def _vectors(*shape: int, count: int = 2) -> list[np.ndarray]:
    return [_array(1, *shape), *(_array(2 + i, shape[1]) for i in range(count))]


register(
    OpDef(
        name="batch_norm",
        doc="(x - mean) / sqrt(var + epsilon) * scale + bias with given statistics for each channel of x[N, C, ...].",
        operands=(X, *(Operand(n, FLOATS) for n in ("scale", "bias", "mean", "var"))),
        attrs=(EPSILON,),
        infer=_per_channel,
        reference=_batch_reference,
        kind=Composite(_build_batch),
        examples=_batch_examples,
        source="ONNX BatchNormalization (inference)",
    )
)

register(
    OpDef(
        name="layer_norm",
        doc="Normalises the axes from `axis` on to mean 0 and variance 1, then scales and shifts.",
        operands=(X, Operand("scale", FLOATS), Operand("bias", FLOATS, optional=True)),
        attrs=(AXIS, EPSILON),
        infer=_trailing_type,
        reference=_layer_reference,
        kind=Composite(_build_layer),
        examples=lambda: [
            ([_array(1, 3, 5), _array(2, 5), _array(3, 5)], {}),
            ([_array(1, 2, 3, 4), _array(2, 3, 4), _array(3, 3, 4)], {"axis": 1}),
            ([_array(1, 2, 3, 4), _array(2, 4)], {"axis": -1, "epsilon": 1e-3}),
            ([_array(1, 0, 4), _array(2, 4), _array(3, 4)], {}),
        ],
        source="ONNX LayerNormalization; Ba et al., arXiv:1607.06450",
    )
)

register(
    OpDef(
        name="rms_norm",
        doc="Divides by the root of the mean square over the axes from `axis` on, then scales.",
        operands=(X, Operand("scale", FLOATS)),
        attrs=(AXIS, EPSILON),
        infer=_trailing_type,
        reference=_rms_reference,
        kind=Composite(_build_rms),
        examples=lambda: [
            ([_array(1, 3, 5), _array(2, 5)], {}),
            ([_array(1, 2, 3, 4), _array(2, 3, 4)], {"axis": 1}),
            ([_array(1, 0, 4), _array(2, 4)], {}),
        ],
        source="ONNX RMSNormalization; Zhang and Sennrich, NeurIPS 2019",
    )
)

register(
    OpDef(
        name="instance_norm",
        doc="Normalises each channel of each item of x[N, C, *spatial] over space, then scales and shifts.",
        operands=(X, Operand("scale", FLOATS), Operand("bias", FLOATS)),
        attrs=(EPSILON,),
        infer=_per_channel,
        reference=_space_reference(lambda call: call.types[0].shape[1]),
        kind=Composite(_build_instance),
        examples=lambda: [
            (_vectors(2, 3, 4, 5), {}),
            (_vectors(1, 2, 6), {"epsilon": 1e-3}),
            (_vectors(2, 2, 2, 3, 3), {}),
            (_vectors(0, 3, 4), {}),
        ],
        source="ONNX InstanceNormalization",
    )
)

register(
    OpDef(
        name="group_norm",
        doc="Normalises groups of channels of each item of x[N, C, *spatial], then scales and shifts each channel.",
        operands=(X, Operand("scale", FLOATS), Operand("bias", FLOATS)),
        attrs=(Attr("groups", "int", doc="number of groups of channels"), EPSILON),
        infer=_group_type,
        reference=_space_reference(lambda call: call.attrs.groups),
        kind=Composite(_build_group),
        examples=lambda: [
            (_vectors(2, 4, 3, 3), {"groups": 2}),
            (_vectors(1, 6, 5), {"groups": 3}),
            (_vectors(2, 4, 2, 2, 2), {"groups": 1}),
            (_vectors(0, 4, 3), {"groups": 2}),
        ],
        source="ONNX GroupNormalization (opset 21); Wu and He, ECCV 2018",
    )
)

register(
    OpDef(
        name="lrn",
        doc="x / (bias + alpha / size * sum of squares of `size` neighbouring channels) ** beta.",
        operands=(X,),
        attrs=(
            Attr("size", "int", doc="number of neighbouring channels"),
            Attr("alpha", "float", 1e-4, "weight of the squares"),
            Attr("beta", "float", 0.75, "exponent"),
            Attr("bias", "float", 1.0, "added to the squares"),
        ),
        infer=_lrn_type,
        reference=_lrn_reference,
        kind=Composite(_build_lrn),
        examples=lambda: [
            ([_array(1, 2, 6, 3, 3)], {"size": 3, "alpha": 0.5}),
            ([_array(1, 1, 5, 4)], {"size": 4, "alpha": 0.9, "beta": 0.5, "bias": 2.0}),
            ([_array(1, 2, 2, 3)], {"size": 7, "alpha": 0.3}),
        ],
        source="ONNX LRN; Krizhevsky et al., NeurIPS 2012",
    )
)
