"""Convolution in 1 to 3 dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import REALS
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_equal
from dhc.ir.kinds import Contract, Index, LoadFn, ReduceSpec
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.matmul import (
    OUT,
    Accumulators,
    contraction_dtype,
    converted,
    exact_factor_dtype,
    load_as,
    moved_bytes,
    round_once,
)
from dhc.ir.ops.window import WINDOW, Window, ints
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

PATCH_BYTES = 1 << 24
"""Memory that the reference takes for copies of the operand."""

GROUPS = Attr("groups", "int", 1, "blocks of channels that do not mix")


def check_groups(call: Call) -> int:
    """The number of groups.

    Raises:
        ShapeError: it is not positive.
    """
    groups: int = call.attrs.groups
    if groups < 1:
        call.fail(f"groups = {groups} is not positive")
    return groups


def check_bias(call: Call, channels: Dim, out: Any) -> None:
    """The optional third operand is a vector of the result's dtype, one number per result channel."""
    if len(call.types) < 3:
        return
    bias = call.types[2]
    if bias.rank != 1:
        call.fail(f"the bias has rank {bias.rank}, needs 1")
    require_equal(call, bias.shape[0], channels, "bias and result channels")
    if bias.dtype != out:
        call.fail_type(f"the bias is {bias.dtype}, the result {out}")


def _conv_type(call: Call) -> list[TensorType]:
    x, w = call.types[:2]
    groups = check_groups(call)
    if w.rank != x.rank:
        call.fail(f"the weights have rank {w.rank}, the operand {x.rank}")
    window = Window.of(call, w.shape[2:])
    require_equal(call, x.shape[1], w.shape[1] * groups, "operand channels and weights")
    channels = w.shape[0]
    call.require(symbols.mod(channels, groups), 0, f"result channels divide into {groups} groups")
    out = contraction_dtype(call)
    check_bias(call, channels, out)
    return [TensorType(out, (x.shape[0], channels, *window.sizes(call)))]


def _conv_reference(call: Call, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    out, groups = call.results[0].dtype, call.attrs.groups
    n, o, *sizes = ints(call.results[0].shape)
    window = Window.of(call, w.shape[2:])
    accumulator = compute_dtype(out)
    factor = exact_factor_dtype(x, w, accumulator, math.prod(w.shape[1:]))
    padded = window.padded(x.astype(factor, copy=False), 0)
    kernel = w.astype(factor, copy=False).reshape(groups, o // groups, math.prod(w.shape[1:]))
    total = np.zeros((n, o, *sizes), factor)
    # Slabs of the first spatial axis whose copies stay small: one product each.
    bytes_per_row = n * x.shape[1] * math.prod(w.shape[2:]) * math.prod(sizes[1:]) * factor.itemsize
    rows = max(1, PATCH_BYTES // max(1, bytes_per_row))
    for first in range(0, sizes[0], rows):
        slab = [min(rows, sizes[0] - first), *sizes[1:]]
        below = padded[:, :, first * window.strides[0] :]
        patches = np.stack([window.taken(below, position, slab) for position in window.positions()], axis=2)
        product = np.matmul(kernel, patches.reshape(n, groups, kernel.shape[2], math.prod(slab)))
        total[:, :, first : first + slab[0]] = product.reshape(n, o, *slab)
    if bias is not None:
        total = total + bias.astype(factor).reshape(o, *(1 for _ in sizes))
    return round_once(total, accumulator, out)


def _conv_spec(call: Call) -> ReduceSpec:
    w = call.types[1]
    out, groups = call.results[0].dtype, call.attrs.groups
    accumulator = compute_dtype(out)
    window = Window.of(call, w.shape[2:])
    outputs = symbols.floordiv(w.shape[0], groups)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        source, inside = window.source(index[2:], red[1:])
        channel = red[0]
        if groups > 1:
            channel = index[1] // s.size(outputs) * s.size(w.shape[1]) + channel
        element = load_as(load, 0, [index[0], channel, *source], accumulator)
        weight = load_as(load, 1, [index[1], *red], accumulator)
        return (accs[0] + s.select(inside, element, 0) * weight,)

    return ReduceSpec(
        domain=(w.shape[1], *w.shape[2:]),
        init=bias_or_zero(call),
        step=step,
        finish=lambda index, accs: (s.cast(accs[0], out),),
    )


def bias_or_zero(call: Call) -> Any:
    """Start of the sum: the bias of the result channel when there is one."""
    accumulator = compute_dtype(call.results[0].dtype)

    def init(index: Index, load: LoadFn) -> Accumulators:
        if len(call.types) < 3:
            return (s.const(0, accumulator),)
        return (load_as(load, 2, [index[1]], accumulator),)

    return init


def weight_gradient(b: Builder, x: Value, g: Value, window: Window, groups: int) -> Value:
    """Gradient of a convolution for its weights: a convolution whose kernel is the cotangent.

    Batch and channels swap roles, and so do stride and dilation. The padding after the last element is chosen such
    that the result has exactly the kernel's size (rows that no window reached are cut off).

    Args:
        b: where to write.
        x: the convolution's operand ``[N, C, *spatial]``.
        g: cotangent ``[N, O, *positions]``.
        window: the convolution's window.
        groups: its groups.

    Returns:
        ``[O, C/groups, *kernel]``.
    """
    rank = len(window.kernel)
    spatial = range(2, rank + 2)
    n, channels = x.shape[:2]
    per_group = symbols.floordiv(channels, groups)
    swapped = x
    if groups > 1:
        split = b.reshape(x, shape=(n, groups, per_group, *x.shape[2:]))
        swapped = b.transpose(split, perm=[2, 1, 0, *(a + 1 for a in spatial)])
        swapped = b.reshape(swapped, shape=(per_group, n * groups, *x.shape[2:]))
    else:
        swapped = b.transpose(x, perm=[1, 0, *spatial])
    kernel = b.transpose(g, perm=[1, 0, *spatial])
    high = [
        extent + (positions - 1) * stride - size - low
        for extent, positions, stride, size, low in zip(
            window.extents, g.shape[2:], window.strides, window.spatial, window.low
        )
    ]
    result = b.conv(
        swapped, kernel, strides=window.dilations, dilations=window.strides, pads_low=window.low, pads_high=high,
        groups=groups,
    )  # fmt: skip
    turned: Value = b.transpose(result, perm=[1, 0, *spatial])
    return turned


def bias_gradient(b: Builder, node: Node, g: Value) -> list[Value | None]:
    """Gradient for the optional third operand, as a list of none or one."""
    if len(node.operands) < 3:
        return []
    return [b.reduce_sum(g, axes=[0, *range(2, g.type.rank)])]


def _grad_conv(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, w = node.operands[:2]
    call = Call.of(node)
    window = Window.of(call, w.shape[2:])
    groups = call.attrs.groups
    missing = [
        size - ((positions - 1) * stride + extent - low - high)
        for size, positions, stride, extent, low, high in zip(
            window.spatial, g.shape[2:], window.strides, window.extents, window.low, window.high
        )
    ]
    dx = b.conv_transpose(
        g, converted(b, w, g.dtype), strides=window.strides, dilations=window.dilations, pads_low=window.low,
        pads_high=window.high, output_padding=missing, groups=groups,
    )  # fmt: skip
    dw = weight_gradient(b, converted(b, x, g.dtype), g, window, groups)
    return [converted(b, dx, x.dtype), converted(b, dw, w.dtype), *bias_gradient(b, node, g)]


def _conv_cost(call: Call) -> Cost:
    (result,) = call.results
    return Cost(result.numel * symbols.product(call.types[1].shape[1:]) * 2, moved_bytes(call))


def _conv_examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(1)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def q(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    return [
        ([f(2, 3, 6, 5), f(4, 3, 3, 3), f(4)], {"pads_low": (1, 1), "pads_high": (1, 1)}),
        ([f(1, 4, 7, 7), f(6, 2, 3, 2)], {"groups": 2, "strides": (2, 1), "pads_low": (0, 1), "pads_high": (2, 0)}),
        ([f(1, 3, 8), f(3, 1, 3), f(3)], {"groups": 3, "dilations": (2,), "pads_low": (2,), "pads_high": (1,)}),
        ([f(1, 2, 4, 5, 4), f(3, 2, 2, 3, 2)], {"strides": (1, 2, 2), "dilations": (2, 1, 1), "pads_low": (1, 0, 1)}),
        ([f(1, 2, 9, 9), f(2, 2, 2, 2)], {"strides": (4, 3)}),
        ([f(1, 2, 6, 6), f(2, 2, 3, 3)], {"pads_low": (-1, 2), "pads_high": (1, -2)}),
        ([f(2, 3, 4, 4), f(5, 3, 1, 1), f(5)], {}),
        ([f(0, 3, 5, 5), f(2, 3, 3, 3)], {}),
        ([q(1, 3, 6, 6), q(4, 3, 3, 3)], {"out": "i32", "pads_low": (1, 1), "pads_high": (1, 1)}),
    ]


register(
    OpDef(
        name="conv",
        doc="Convolution (correlation) of x[N, C, *spatial] with w[O, C/groups, *kernel], plus a bias[O] if given.",
        operands=(Operand("x", REALS), Operand("w", REALS), Operand("bias", REALS, optional=True)),
        attrs=(*WINDOW, GROUPS, OUT),
        infer=_conv_type,
        reference=_conv_reference,
        kind=Contract("conv", _conv_spec),
        grad=_grad_conv,
        cost=_conv_cost,
        examples=_conv_examples,
        source="ONNX Conv, ConvInteger",
    )
)
