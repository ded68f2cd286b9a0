"""Folds what follows a convolution channel by channel into its weights and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.graph import Graph, Node, Value
from dhc.passes.base import Pass, PassResult, Refusal, register_pass
from dhc.passes.rewrite import Rewritten, apply_rules, rule
from dhc.passes.rules.norms import NORMS

_CONVOLUTIONS = ("conv", "conv_transpose")


def _array(value: Value) -> np.ndarray | None:
    producer = value.producer
    if producer is None or producer.op.name != "constant":
        return None
    array: np.ndarray = producer.attrs["value"]
    return array


_FRACTION_BITS = {"f64": 52, "f32": 23, "f16": 10, "bf16": 7}


def _rounds(shift: np.ndarray, dtype: DType) -> bool:
    """True for a number so large that adding it rounds to whole numbers or halves: that is what it is added for."""
    return bool(np.any(np.abs(shift) >= 2.0 ** (_FRACTION_BITS[dtype.name] - 1)))


def _scaled(b: Builder, conv: Node, scale: np.ndarray, shift: np.ndarray, name: str) -> Rewritten:
    """The convolution with weights times `scale` and bias times `scale` plus `shift`, per output channel (in f64)."""
    weights = _array(conv.operands[1])
    bias = _array(conv.operands[2]) if len(conv.operands) > 2 else np.zeros(len(scale))
    if weights is None or bias is None:
        return Refusal.at(name, conv, "the weights are not constant")
    if len(conv.result.uses) != 1:
        return Refusal.at(name, conv, "the result of the convolution is used elsewhere too")
    dtype = conv.result.dtype
    if not dtype.is_float or conv.operands[1].dtype != dtype:
        return Refusal.at(name, conv, f"the weights are {conv.operands[1].dtype}")
    w = weights.astype(np.float64)
    if conv.op.name == "conv":
        w = w * scale.reshape(-1, *(1,) * (w.ndim - 1))
    else:  # [C, O / groups, k...]: output channel = group * (O / groups) + position on axis 1
        groups = conv.attrs["groups"]
        per_group = scale.reshape(groups, 1, -1)
        w = (w.reshape(groups, w.shape[0] // groups, w.shape[1], -1) * per_group[..., None]).reshape(w.shape)
    with np.errstate(all="ignore"):
        new_weights = b.constant(w.astype(dtype.numpy), dtype)
        new_bias = b.constant((bias.astype(np.float64) * scale + shift).astype(dtype.numpy), dtype)
    result: Value = b.call(conv.op, conv.operands[0], new_weights, new_bias, attrs=dict(conv.attrs))
    return result


@rule("batch_norm_into_convolution", "batch_norm")
def _batch_norm(b: Builder, node: Node) -> Rewritten:
    conv = node.operands[0].producer
    if conv is None or conv.op.name not in _CONVOLUTIONS:
        return None
    parameters = [_array(v) for v in node.operands[1:5]]
    if any(p is None for p in parameters):
        return Refusal.at("batch_norm_into_convolution", node, "its statistics are not constant")
    scale, bias, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    factor = scale / np.sqrt(variance + node.attrs["epsilon"])
    return _scaled(b, conv, factor, bias - mean * factor, "batch_norm_into_convolution")


def _per_channel(value: Value, conv: Node) -> np.ndarray | None:
    """A constant that is one number per output channel of a convolution, as a vector."""
    array = _array(value)
    result = conv.result.type
    if array is None or array.ndim > result.rank or array.dtype == object:
        return None
    shape = (1,) * (result.rank - array.ndim) + array.shape
    channels = result.shape[1]
    if (
        not isinstance(channels, int)
        or any(d != 1 for i, d in enumerate(shape) if i != 1)
        or shape[1] not in (1, channels)
    ):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)


@rule("scale_and_shift_into_convolution", "add", "mul", "sub")
def _scale_and_shift(b: Builder, node: Node) -> Rewritten:
    for index in (0,) if node.op.name == "sub" else (0, 1):
        conv = node.operands[index].producer
        if conv is None or conv.op.name not in _CONVOLUTIONS or node.result.type != conv.result.type:
            continue
        vector = _per_channel(node.operands[1 - index], conv)
        if vector is None:
            continue
        if node.op.name != "mul" and _rounds(vector, node.result.dtype):
            return Refusal.at("scale_and_shift_into_convolution", node, "the number added is there to round")
        ones, zeros = np.ones_like(vector), np.zeros_like(vector)
        if node.op.name == "mul":
            return _scaled(b, conv, vector, zeros, "scale_and_shift_into_convolution")
        return _scaled(b, conv, ones, vector if node.op.name == "add" else -vector, "scale_and_shift_into_convolution")
    return None


@rule("batch_norm_into_scale", "batch_norm")
def _batch_norm_alone(b: Builder, node: Node) -> Rewritten:
    """What no convolution takes is one scale and one shift."""
    x = node.operands[0]
    parameters = [_array(v) for v in node.operands[1:5]]
    if any(p is None for p in parameters) or not x.dtype.is_float or x.type.rank < 2:
        return None
    scale, bias, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + node.attrs["epsilon"])
    shape = (-1, *(1,) * (x.type.rank - 2))
    return _scale_shift(b, x, factor.reshape(shape), (bias - mean * factor).reshape(shape))


def _scale_shift(b: Builder, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    with np.errstate(all="ignore"):
        if np.any(scale != 1):
            x = b.mul(x, b.constant(scale.astype(x.dtype.numpy), x.dtype))
        if np.any(shift != 0):
            x = b.add(x, b.constant(shift.astype(x.dtype.numpy), x.dtype))
    return x


def _step(node: Node) -> tuple[Value, np.ndarray, bool] | None:
    """The operand, the constant and its place of an addition, subtraction or product with a constant."""
    if node.op.name not in ("add", "sub", "mul") or not node.result.dtype.is_float:
        return None
    for index in (0,) if node.op.name == "sub" else (0, 1):
        array = _array(node.operands[1 - index])
        if array is not None and node.operands[index].type == node.result.type:
            return node.operands[index], array.astype(np.float64), node.op.name == "mul"
    return None


@rule("merge_scales_and_shifts", "add", "mul", "sub")
def _merge_chain(b: Builder, node: Node) -> Rewritten:
    """A chain of additions and products with constants is one scale and one shift."""
    last = node.result.users
    if len(node.result.uses) == 1 and len(last) == 1 and _step(last[0]) is not None:
        return None  # the last node of the chain merges all
    scale, shift = np.ones(()), np.zeros(())
    largest, length = 1, 0
    current: Node | None = node
    value = node.result
    while current is not None and (found := _step(current)) is not None and (length == 0 or len(value.uses) == 1):
        source, array, product = found
        if not product and _rounds(array, node.result.dtype):
            return Refusal.at("merge_scales_and_shifts", node, "a number is added to round")
        with np.errstate(all="ignore"):
            # The steps so far come after this one: y = scale * step(x) + shift.
            if product:
                scale = scale * array
            else:
                shift = shift + scale * (array if current.op.name == "add" else -array)
        largest, length, value = max(largest, array.size), length + 1, source
        current = source.producer
    wanted = int(bool(np.any(scale != 1))) + int(bool(np.any(shift != 0)))
    if wanted >= length or max(scale.size, shift.size) > largest:
        return None
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift)) and np.all(scale != 0)):
        return None  # 0 * inf and the like are to come out as they did
    return _scale_shift(b, value, scale, shift)


@register_pass
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds batch norms and per-channel scales and shifts with constant numbers into the convolution before them.

    Where there is none, a batch norm is one scale and one shift, and chains of these merge. Products are formed in f64
    and rounded once; results change by rounding only. A group norm that was written with reshapes becomes one op.
    """

    name: ClassVar[str] = "fold_batch_norm"

    def run(self, graph: Graph) -> PassResult:
        """Rewrites the graph and nested graphs."""
        return apply_rules(graph, [*NORMS, _batch_norm, _scale_and_shift, _batch_norm_alone, _merge_chain])
