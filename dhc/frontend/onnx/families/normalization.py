"""Normalisations."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.dtypes import f32
from dhc.ir.graph import Value


@onnx_op("BatchNormalization")
def batch_normalization(n: NodeContext) -> Any:
    """Inference form; in training mode the statistics are those of the batch, and running ones are results."""
    x, *parameters = (n.value(i) for i in range(5))
    parameters = [p if p.dtype == x.dtype else n.b.cast(p, dtype=x.dtype) for p in parameters]
    epsilon = n.attr("epsilon", 1e-5)
    if n.opset < 7 and not n.attr("is_test", 0):
        n.unsupported("training mode before opset 14 is not supported", "export it for inference")
    if n.opset < 14 and any(n.wants(i) for i in range(1, 5)):
        n.unsupported("training mode before opset 14 is not supported", "export it for inference")
    if not n.attr("training_mode", 0):
        return n.b.batch_norm(x, *parameters, epsilon=epsilon)
    scale, bias, running_mean, running_var = parameters
    b, axes = n.b, [axis for axis in range(x.type.rank) if axis != 1]
    mean = b.reduce_mean(x, axes=axes)
    column = b.reshape(mean, shape=tuple(d if axis == 1 else 1 for axis, d in enumerate(x.shape)))
    centered = b.sub(x, column)
    variance = b.reduce_mean(b.mul(centered, centered), axes=axes)
    keep = n.attr("momentum", 0.9)

    def updated(old: Value, new: Value) -> Value:
        return b.add(b.mul(old, b.like(keep, old)), b.mul(new, b.like(1.0 - keep, new)))

    y = b.batch_norm(x, scale, bias, mean, variance, epsilon=epsilon)
    return [y, updated(running_mean, mean), updated(running_var, variance)]


@onnx_op("InstanceNormalization")
def instance_normalization(n: NodeContext) -> Value:
    """Each channel of each sample on its own."""
    return n.b.instance_norm(n.value(0), n.value(1), n.value(2), epsilon=n.attr("epsilon", 1e-5))


@onnx_op("LayerNormalization")
def layer_normalization(n: NodeContext) -> list[Value | None]:
    """Over all axes from ``axis`` on; mean and inverse deviation on demand."""
    x, scale = n.value(0), n.value(1)
    axis = n.axis(n.attr("axis", -1), x.type.rank)
    epsilon = n.attr("epsilon", 1e-5)
    bias = n.optional(2)
    shape = tuple(x.shape[axis:])
    scale = scale if scale.shape == shape else n.b.broadcast_to(scale, shape=shape)
    if bias is not None and bias.shape != shape:
        bias = n.b.broadcast_to(bias, shape=shape)
    y = n.b.layer_norm(x, scale, *([] if bias is None else [bias]), axis=axis, epsilon=epsilon)
    if not n.wants(1) and not n.wants(2):
        return [y]
    wide = x if x.dtype == f32 or not n.attr("stash_type", 1) else n.b.cast(x, dtype=f32)
    axes = list(range(axis, x.type.rank))
    mean = n.b.reduce_mean(wide, axes=axes, keepdims=True)
    centered = n.b.sub(wide, mean)
    variance = n.b.reduce_mean(n.b.mul(centered, centered), axes=axes, keepdims=True)
    return [y, mean, n.b.rsqrt(n.b.add(variance, n.b.like(epsilon, variance)))]


@onnx_op("GroupNormalization", since=18)
def group_normalization_per_group(n: NodeContext) -> Value:
    """Opset 18: scale and bias per group."""
    x = n.value(0)
    groups = n.require_attr("num_groups")
    channels = x.shape[1]
    if not isinstance(channels, int) or channels % groups:
        n.unsupported(f"{groups} groups need a known, divisible number of channels, got {channels}")
    each = channels // groups

    def per_channel(v: Value) -> Value:
        column = n.b.reshape(v, shape=(groups, 1))
        return n.b.reshape(n.b.broadcast_to(column, shape=(groups, each)), shape=(channels,))

    scale, bias = per_channel(n.value(1)), per_channel(n.value(2))
    return n.b.group_norm(x, scale, bias, groups=groups, epsilon=n.attr("epsilon", 1e-5))


@onnx_op("GroupNormalization", since=21)
def group_normalization(n: NodeContext) -> Value:
    """Scale and bias per channel."""
    groups = n.require_attr("num_groups")
    return n.b.group_norm(n.value(0), n.value(1), n.value(2), groups=groups, epsilon=n.attr("epsilon", 1e-5))


@onnx_op("RMSNormalization")
def rms_normalization(n: NodeContext) -> Value:
    """Root mean square over all axes from ``axis`` on."""
    x, scale = n.value(0), n.value(1)
    axis = n.axis(n.attr("axis", -1), x.type.rank)
    shape = tuple(x.shape[axis:])
    scale = scale if scale.shape == shape else n.b.broadcast_to(scale, shape=shape)
    return n.b.rms_norm(x, scale, axis=axis, epsilon=n.attr("epsilon", 1e-5))


@onnx_op("LRN")
def local_response_normalization(n: NodeContext) -> Value:
    """Across neighbouring channels."""
    attrs = {"alpha": n.attr("alpha", 1e-4), "beta": n.attr("beta", 0.75), "bias": n.attr("bias", 1.0)}
    return n.b.call("lrn", n.value(0), attrs={"size": n.require_attr("size"), **attrs})


@onnx_op("LpNormalization")
def lp_normalization(n: NodeContext) -> Value:
    """X over its p-norm along an axis; 0 where the norm is 0."""
    x = n.value(0)
    axis, p = n.axis(n.attr("axis", -1), x.type.rank), n.attr("p", 2)
    if p == 1:
        norm = n.b.reduce_sum(n.b.abs(x), axes=[axis], keepdims=True)
    else:
        norm = n.b.sqrt(n.b.reduce_sum(n.b.mul(x, x), axes=[axis], keepdims=True))
    zero = n.b.like(0, x)
    empty = n.b.eq(norm, zero)
    return n.b.where(empty, zero, n.b.div(x, n.b.where(empty, n.b.like(1, x), norm)))


@onnx_op("MeanVarianceNormalization")
def mean_variance_normalization(n: NodeContext) -> Value:
    """(x - mean) / (deviation + 1e-9)."""
    x = n.value(0)
    axes = [n.axis(a, x.type.rank) for a in n.attr("axes", [0, 2, 3])]
    centered = n.b.sub(x, n.b.reduce_mean(x, axes=axes, keepdims=True))
    deviation = n.b.sqrt(n.b.reduce_mean(n.b.mul(centered, centered), axes=axes, keepdims=True))
    return n.b.div(centered, n.b.add(deviation, n.b.like(1e-9, x)))
