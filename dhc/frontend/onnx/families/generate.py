"""Constants, ranges and random numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import KNOWN_LIMIT, Known, NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir import symbols
from dhc.ir.dtypes import DType, f32, f64
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim


@onnx_op("Constant")
def constant(n: NodeContext) -> Any:
    """A tensor given by one of several attributes."""
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"):
        found = n.attr(name)
        if found is None:
            continue
        if name == "value":
            return found
        if "string" in name:
            return np.array(found, dtype=object)
        return np.array(found, dtype=np.float32 if "float" in name else np.int64)
    if n.attr("sparse_value") is None and any(a.name == "sparse_value" for a in n.proto.attribute):
        n.unsupported("sparse constants are not supported", "convert them to dense ones")
    return n.invalid("it has no value")


@onnx_op("ConstantOfShape")
def constant_of_shape(n: NodeContext) -> Value | Known:
    """A tensor filled with one number."""
    given = n.attr("value")
    fill = np.zeros(1, np.float32) if given is None else given
    if fill.size != 1:
        n.invalid("the value has more than one element")
    shape = n.dims(0)
    number = fill.reshape(-1)[0]
    total = symbols.product(shape)
    if fill.dtype == np.int64 and isinstance(total, int) and total <= KNOWN_LIMIT and len(shape) <= 1:
        array: np.ndarray = np.empty(tuple(int(d) for d in shape), object)  # type: ignore[arg-type]
        array[...] = int(number)
        return Known(array)
    dtype: Any = fill.dtype
    return n.b.full(shape, number, dtype)


@onnx_op("Range")
def arange(n: NodeContext) -> Value | Known:
    """start, start + delta, … below (or above) limit."""
    start, limit, delta = (n.known(i) for i in range(3))
    if start is not None and limit is not None and delta is not None:
        found = _integer_range(n, *(a.reshape(-1)[0] for a in (start, limit, delta)))
        if found is not None:
            return found
    constants = [n.const(i) for i in range(3)]
    if all(c is not None and c.size == 1 for c in constants):
        return _constant_range(n, *(c.reshape(-1)[0] for c in constants if c is not None))
    return _runtime_range(n)


def _constant_range(n: NodeContext, first: Any, last: Any, step: Any) -> Value:
    """A range of known numbers; long ones are computed when the model runs."""
    if step == 0:
        n.invalid("the step is 0")
    length = max(math.ceil((float(last) - float(first)) / float(step)), 0)
    if length <= KNOWN_LIMIT:
        return n.b.constant((first + np.arange(length, dtype=first.dtype) * step).astype(first.dtype))
    counting = n.b.cast(n.b.iota(shape=(length,), axis=0, dtype="i64"), dtype=first.dtype)
    return n.b.add(n.b.mul(counting, n.b.like(step, counting)), n.b.like(first, counting))


def _integer_range(n: NodeContext, first: Dim, last: Dim, step: Dim) -> Value | Known | None:
    """A range with sizes as bounds; None when the step is not a known number."""
    if not isinstance(step, int) or step == 0:
        return None
    count = symbols.ceildiv(last - first, step) if step > 0 else symbols.ceildiv(first - last, -step)
    length = symbols.maximum(count, 0)
    dtype = _dtype_of(n.raw(0))
    if isinstance(length, int) and length <= KNOWN_LIMIT and isinstance(first, int):
        array = np.empty(length, object)
        array[:] = [first + i * step for i in range(length)]
        return Known(array, dtype)
    b = n.b
    offset = n.number(first)
    scaled = b.add(b.mul(b.iota(shape=(length,), axis=0, dtype="i64"), b.constant(step, "i64")), offset)
    return scaled if scaled.dtype == dtype else b.cast(scaled, dtype=dtype)


def _dtype_of(raw: Any) -> DType:
    from dhc.ir.dtypes import dtype

    return raw.dtype if isinstance(raw, (Known, Value)) else dtype(raw.dtype)


def _runtime_range(n: NodeContext) -> Value:
    """A range whose length only the data tell."""
    b = n.b
    start, limit, delta = (n.b.reshape(n.value(i), shape=()) for i in range(3))
    wide = [b.cast(v, dtype="f64") for v in (start, limit, delta)]
    length = b.cast(b.ceil(b.div(b.sub(wide[1], wide[0]), wide[2])), dtype="i64")
    length = b.reshape(b.maximum(length, b.constant(0, "i64")), shape=(1,))
    counting = b.iota(shape=n.bound(length, 1), axis=0, dtype="i64")
    return b.add(b.mul(b.cast(counting, dtype=start.dtype), delta), start)


@onnx_op("EyeLike")
def eye_like(n: NodeContext) -> Value:
    """Ones on a diagonal."""
    x = n.value(0)
    code = n.attr("dtype")
    dtype = x.dtype if code is None else from_onnx_dtype(code, str(n.location))
    return n.b.eye(shape=x.shape, dtype=dtype, k=n.attr("k", 0))


def node_seed(n: NodeContext) -> int:
    """ONNX gives the seed as a float; without one the node's name decides, so that a model always gives the same."""
    seed = n.attr("seed")
    if seed is not None:
        return int(np.float32(seed).view(np.uint32))
    import zlib

    return zlib.crc32((n.location.node or n.proto.output[0]).encode())


def _random(n: NodeContext, shape: Any, dtype: DType) -> Value:
    if n.proto.op_type.startswith("RandomNormal"):
        return n.b.random_normal(
            shape=shape, dtype=dtype, mean=n.attr("mean", 0.0), std=n.attr("scale", 1.0), seed=node_seed(n)
        )
    return n.b.random_uniform(
        shape=shape, dtype=dtype, low=n.attr("low", 0.0), high=n.attr("high", 1.0), seed=node_seed(n)
    )


@onnx_op("RandomNormal", "RandomUniform")
def random(n: NodeContext) -> Value:
    """Random numbers of a given shape."""
    return _random(n, tuple(n.require_attr("shape")), from_onnx_dtype(n.attr("dtype", 1), str(n.location)))


@onnx_op("RandomNormalLike", "RandomUniformLike")
def random_like(n: NodeContext) -> Value:
    """Random numbers of the operand's shape."""
    x = n.value(0)
    code = n.attr("dtype")
    return _random(n, x.shape, x.dtype if code is None else from_onnx_dtype(code, str(n.location)))


@onnx_op("Multinomial")
def multinomial(n: NodeContext) -> Value:
    """Outcomes drawn with probabilities in proportion to the exponentials of the operand."""
    b, x = n.b, n.value(0)
    if x.type.rank != 2:
        n.invalid(f"the operand is [batch, outcomes], it is {x.type}")
    dtype, samples = from_onnx_dtype(n.attr("dtype", 6), str(n.location)), n.attr("sample_size", 1)
    wide = x if x.dtype == f64 else b.cast(x, dtype=f64)
    shifted = b.exp(b.sub(wide, b.reduce_max(wide, axes=[1], keepdims=True)))
    sums = b.cumsum(shifted, axis=1)
    total = b.reduce_sum(shifted, axes=[1], keepdims=True)
    drawn = b.mul(b.random_uniform(shape=(x.shape[0], samples), dtype=f64, seed=node_seed(n)), total)
    passed = b.ge(b.reshape(drawn, shape=(x.shape[0], samples, 1)), b.reshape(sums, shape=(x.shape[0], 1, x.shape[1])))
    found = b.reduce_sum(b.cast(passed, dtype="i64"), axes=[2])
    # Rounding may let the last sum be less than the total.
    last = n.number(x.shape[1] - 1)
    return b.cast(b.minimum(found, last), dtype=dtype)


@onnx_op("Bernoulli")
def bernoulli(n: NodeContext) -> Value:
    """1 with the probability that the operand gives, else 0."""
    p = n.value(0)
    code = n.attr("dtype")
    dtype = p.dtype if code is None else from_onnx_dtype(code, str(n.location))
    drawn = n.b.random_uniform(shape=p.shape, dtype=f32, seed=node_seed(n))
    return n.b.cast(n.b.lt(drawn, p if p.dtype == f32 else n.b.cast(p, dtype=f32)), dtype=dtype)
