"""Transposed convolution in 1 to 3 dimensions: the adjoint of `conv` for its operand."""

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
from dhc.ir.ops.conv import GROUPS, bias_gradient, bias_or_zero, check_bias, check_groups, weight_gradient
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
from dhc.ir.symbols import Shape
from dhc.ir.types import TensorType

OUTPUT_PADDING = Attr("output_padding", "dims", (), "elements added after each spatial axis of the result; none: 0")


def _extra(call: Call) -> Shape:
    rank = call.types[0].rank - 2
    extra = tuple(call.attrs.output_padding) or (0,) * rank
    if len(extra) != rank:
        call.fail(f"output_padding needs {rank} values, got {len(extra)}")
    return extra


def _sizes(call: Call, window: Window) -> Shape:
    result = []
    for size, extent, stride, low, high, extra in zip(
        window.spatial, window.extents, window.strides, window.low, window.high, _extra(call)
    ):
        length = (size - 1) * stride + extent + extra - low - high
        if isinstance(length, int) and length < 0:
            call.fail(f"a result size would be {length}")
        result.append(length)
    return tuple(result)


def _transpose_type(call: Call) -> list[TensorType]:
    x, w = call.types[:2]
    groups = check_groups(call)
    if w.rank != x.rank:
        call.fail(f"the weights have rank {w.rank}, the operand {x.rank}")
    window = Window.of(call, w.shape[2:])
    require_equal(call, x.shape[1], w.shape[0], "operand channels and weights")
    call.require(symbols.mod(x.shape[1], groups), 0, f"channels divide into {groups} groups")
    out = contraction_dtype(call)
    channels = w.shape[1] * groups
    check_bias(call, channels, out)
    return [TensorType(out, (x.shape[0], channels, *_sizes(call, window)))]


def _transpose_reference(call: Call, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    out, groups = call.results[0].dtype, call.attrs.groups
    n, o, *sizes = ints(call.results[0].shape)
    channels, spatial = x.shape[1], x.shape[2:]
    window = Window.of(call, w.shape[2:])
    accumulator = compute_dtype(out)
    factor = exact_factor_dtype(x, w, accumulator, math.prod(w.shape))
    count = math.prod(spatial)
    columns = np.ascontiguousarray(x.astype(factor, copy=False)).reshape(n, groups, channels // groups, count)
    weights = w.astype(factor, copy=False).reshape(groups, channels // groups, o // groups, math.prod(w.shape[2:]))
    low = ints(window.low)
    # The whole scatter target, from the first contribution to the last; the result is cut out of it.
    reach = [max((i - 1) * t + e, 0) for i, t, e in zip(spatial, window.strides, ints(window.extents))]
    full = np.zeros((n, o, *reach), factor)
    if count:
        for k, position in enumerate(window.positions()):
            kernel = np.swapaxes(weights[..., k], 1, 2)
            part = np.matmul(kernel, columns).reshape(n, o, *spatial)
            window.taken(full, position, spatial)[...] += part
    total = np.zeros((n, o, *sizes), factor)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    for start, size, have in zip(low, sizes, reach):
        first, last = max(start, 0), min(start + size, have)
        source.append(slice(first, max(last, first)))
        target.append(slice(first - start, max(last, first) - start))
    total[tuple(target)] = full[tuple(source)]
    if bias is not None:
        total = total + bias.astype(factor).reshape(o, *(1 for _ in sizes))
    return round_once(total, accumulator, out)


def _transpose_spec(call: Call) -> ReduceSpec:
    x, w = call.types[:2]
    out, groups = call.results[0].dtype, call.attrs.groups
    accumulator = compute_dtype(out)
    window = Window.of(call, w.shape[2:])
    per_group = symbols.floordiv(x.shape[1], groups)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        channel, output = red[0], index[1]
        if groups > 1:
            group = output // s.size(w.shape[1])
            output = output - group * s.size(w.shape[1])
            channel = group * s.size(per_group) + channel
        source: list[s.ScalarExpr] = []
        inside: list[s.ScalarExpr] = []
        for axis, stride in enumerate(window.strides):
            # Result element p takes operand element q when q * stride + offset * dilation - low == p.
            reach = index[axis + 2] + s.size(window.low[axis]) - red[axis + 1] * window.dilations[axis]
            at = reach
            if stride > 1:
                at = reach // stride
                inside.append((at * stride).eq(reach))
            inside += [at >= 0, at < s.size(window.spatial[axis])]
            source.append(at)
        element = load_as(load, 0, [index[0], channel, *source], accumulator)
        weight = load_as(load, 1, [channel, output, *red[1:]], accumulator)
        return (accs[0] + s.select(s.logical_and(*inside), element, 0) * weight,)

    return ReduceSpec(
        domain=(per_group, *w.shape[2:]),
        init=bias_or_zero(call),
        step=step,
        finish=lambda index, accs: (s.cast(accs[0], out),),
    )


def _grad_transpose(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, w = node.operands[:2]
    call = Call.of(node)
    window = Window.of(call, w.shape[2:])
    groups = call.attrs.groups
    # As a convolution this reads the result and gives the operand; the padding makes the sizes meet exactly.
    high = tuple(
        (size - 1) * stride + extent - length - low
        for size, stride, extent, length, low in zip(
            window.spatial, window.strides, window.extents, g.shape[2:], window.low
        )
    )
    dx = b.conv(
        g, converted(b, w, g.dtype), strides=window.strides, dilations=window.dilations, pads_low=window.low,
        pads_high=high, groups=groups,
    )  # fmt: skip
    back = Window(tuple(g.shape[2:]), window.kernel, window.strides, window.dilations, window.low, high)
    dw = weight_gradient(b, g, converted(b, x, g.dtype), back, groups)
    return [converted(b, dx, x.dtype), converted(b, dw, w.dtype), *bias_gradient(b, node, g)]


def _transpose_cost(call: Call) -> Cost:
    x, w = call.types[:2]
    return Cost(x.numel * symbols.product(w.shape[1:]) * 2, moved_bytes(call))


def _transpose_examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(2)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return [
        ([f(2, 3, 4, 3), f(3, 2, 3, 3), f(2)],
         {"strides": (2, 2), "pads_low": (1, 1), "pads_high": (1, 1), "output_padding": (1, 1)}),
        ([f(1, 4, 3, 3), f(4, 1, 2, 2), f(2)], {"groups": 2, "strides": (2, 2)}),
        ([f(1, 2, 5), f(2, 3, 3)], {"dilations": (2,), "pads_low": (1,), "pads_high": (0,)}),
        ([f(1, 2, 2, 3, 2), f(2, 2, 2, 2, 3)], {"strides": (3, 1, 2), "pads_low": (0, 1, 0)}),
        ([f(1, 1, 3, 3), f(1, 1, 2, 2)], {"strides": (3, 4), "output_padding": (1, 2)}),
        ([f(0, 2, 3, 3), f(2, 2, 2, 2)], {}),
    ]  # fmt: skip


register(
    OpDef(
        name="conv_transpose",
        doc="Transposed convolution of x[N, C, *spatial] with w[C, O/groups, *kernel], plus a bias[O] if given.",
        operands=(Operand("x", REALS), Operand("w", REALS), Operand("bias", REALS, optional=True)),
        attrs=(*WINDOW, OUTPUT_PADDING, GROUPS, OUT),
        infer=_transpose_type,
        reference=_transpose_reference,
        kind=Contract("conv_transpose", _transpose_spec),
        grad=_grad_transpose,
        cost=_transpose_cost,
        examples=_transpose_examples,
        source="ONNX ConvTranspose",
    )
)
