"""Pooling in 1 to 3 dimensions: maximum (with or without positions), average and p-norm of sliding windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS, REALS, DType, i64
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Index, LoadFn, Reduce, ReduceSpec
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.matmul import Accumulators, load_as, moved_bytes
from dhc.ir.ops.view import linear_index
from dhc.ir.ops.window import WINDOW, Window, ints
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

KERNEL = Attr("kernel", "ints", doc="elements of the window per spatial axis")
ATTRS = (KERNEL, *WINDOW)


def _pool_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    window = Window.of(call, call.attrs.kernel)
    return [TensorType(x.dtype, (*x.shape[:2], *window.sizes(call)))]


def _pool_cost(call: Call) -> Cost:
    return Cost(call.results[0].numel * math.prod(call.attrs.kernel), moved_bytes(call))


def _window(call: Call) -> tuple[Window, tuple[int, ...]]:
    """The window and the number of its positions per axis (sizes known)."""
    return Window.of(call, call.attrs.kernel), ints(call.results[0].shape[2:])


# ---- maximum ---------------------------------------------------------------------------------------------------------


def _lowest(dtype: DType) -> int | float:
    return -math.inf if dtype.is_float else dtype.min


def _max_reference(call: Call, x: np.ndarray) -> np.ndarray:
    window, sizes = _window(call)
    lowest = x.dtype.type(_lowest(call.types[0].dtype))
    padded = window.padded(x, lowest)
    best = np.full((*x.shape[:2], *sizes), lowest, x.dtype)
    for position in window.positions():
        best = np.maximum(best, window.taken(padded, position, sizes))
    return best


def _max_spec(call: Call) -> ReduceSpec:
    (x,) = call.types
    window = Window.of(call, call.attrs.kernel)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        source, inside = window.source(index[2:], red)
        element = load(0, [*index[:2], *source])
        return (s.maximum(accs[0], s.select(inside, element, _lowest(x.dtype))),)

    return ReduceSpec(
        domain=window.kernel,
        init=lambda index, load: (s.const(_lowest(x.dtype), x.dtype),),
        step=step,
        finish=lambda index, accs: accs,
    )


def _scatter_to(b: Builder, x: Value, g: Value, positions: Value) -> Value:
    """Adds each cotangent to the element of `x` that its window chose (-1: none)."""
    count = symbols.product(g.shape)
    chosen = b.reshape(positions, shape=(count,))
    amount = b.reshape(g, shape=(count,))
    amount = b.where(b.ge(chosen, b.like(0, chosen)), amount, b.like(0, amount))
    chosen = b.maximum(chosen, b.like(0, chosen))
    flat = b.full((symbols.product(x.shape),), 0, g.dtype)
    result: Value = b.reshape(b.scatter_elements(flat, chosen, amount, axis=0, reduction="add"), shape=x.shape)
    return result


def _grad_max(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    (x,) = node.operands
    _, positions = b.call("max_pool_indices", x, attrs=dict(node.attrs))
    return (_scatter_to(b, x, g, positions),)


def _max_indices_type(call: Call) -> list[TensorType]:
    (y,) = _pool_type(call)
    return [y, TensorType(i64, y.shape)]


def _max_indices_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window, sizes = _window(call)
    padded = window.padded(x, x.dtype.type(0))
    flat = window.padded(np.arange(x.size, dtype=np.int64).reshape(x.shape), -1)
    best = np.full((*x.shape[:2], *sizes), x.dtype.type(_lowest(call.types[0].dtype)), x.dtype)
    chosen = np.full(best.shape, -1, np.int64)
    for position in window.positions():
        value = window.taken(padded, position, sizes)
        where = window.taken(flat, position, sizes)
        better = (chosen < 0) | (value > best)
        if call.types[0].dtype.is_float:
            better |= np.isnan(value) & ~np.isnan(best)
        better &= where >= 0
        best = np.where(better, value, best)
        chosen = np.where(better, where, chosen)
    return best, chosen


def _max_indices_spec(call: Call) -> ReduceSpec:
    (x,) = call.types
    window = Window.of(call, call.attrs.kernel)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        best, chosen = accs
        source, inside = window.source(index[2:], red)
        full = [*index[:2], *source]
        value = s.select(inside, load(0, full), _lowest(x.dtype))
        better = s.binary("or", chosen < 0, value > best)
        if x.dtype.is_float:
            news = s.logical_and(s.unary("isnan", value), s.unary("not", s.unary("isnan", best)))
            better = s.binary("or", better, news)
        better = s.logical_and(inside, better)
        return s.select(better, value, best), s.select(better, linear_index(full, x.shape), chosen)

    return ReduceSpec(
        domain=window.kernel,
        init=lambda index, load: (s.const(_lowest(x.dtype), x.dtype), s.const(-1, i64)),
        step=step,
        finish=lambda index, accs: accs,
        associative=False,
    )


def _grad_max_indices(b: Builder, node: Node, g: Value | None, _: Value | None = None) -> Sequence[Value | None]:
    (x,) = node.operands
    return (None if g is None else _scatter_to(b, x, g, node.results[1]),)


# ---- sums over windows -----------------------------------------------------------------------------------------------


def _spread(b: Builder, g: Value, window: Window) -> Value:
    """Adds each cotangent ``[N, C, *positions]`` to every element of its window: ``[N, C, *spatial]``."""
    n, c = g.shape[:2]
    ones = b.full((1, 1, *window.kernel), 1, g.dtype)
    missing = [
        size - ((positions - 1) * stride + extent - low - high)
        for size, positions, stride, extent, low, high in zip(
            window.spatial, g.shape[2:], window.strides, window.extents, window.low, window.high
        )
    ]
    planes = b.reshape(g, shape=(n * c, 1, *g.shape[2:]))
    spread = b.conv_transpose(
        planes, ones, strides=window.strides, dilations=window.dilations, pads_low=window.low,
        pads_high=window.high, output_padding=missing,
    )  # fmt: skip
    result: Value = b.reshape(spread, shape=(n, c, *window.spatial))
    return result


EXTRA_HIGH = Attr("extra_high", "ints", (), "part of pads_high that never counts (from rounding up); none means 0")
COUNT = Attr("count_include_pad", "bool", False, "divide by the window's size, padding included")


def _counted(call: Call, window: Window) -> list[tuple[Dim, Dim]]:
    """Half-open range of operand positions that count in the divisor, per axis."""
    extra = tuple(call.attrs.extra_high) or (0,) * len(window.kernel)
    if len(extra) != len(window.kernel):
        call.fail(f"extra_high needs {len(window.kernel)} values, got {len(extra)}")
    if not call.attrs.count_include_pad:
        return [(0, size) for size in window.spatial]
    return [(-low, size + high - e) for size, low, high, e in zip(window.spatial, window.low, window.high, extra)]


def _avg_type(call: Call) -> list[TensorType]:
    _counted(call, Window.of(call, call.attrs.kernel))
    return _pool_type(call)


def _avg_reference(call: Call, x: np.ndarray) -> np.ndarray:
    window, sizes = _window(call)
    accumulator = compute_dtype(call.types[0].dtype).numpy
    padded = window.padded(x.astype(accumulator, copy=False), 0)
    total = np.zeros((*x.shape[:2], *sizes), accumulator)
    for position in window.positions():
        total = total + window.taken(padded, position, sizes)
    count = np.ones(sizes, accumulator)
    for axis, (first, beyond) in enumerate(_counted(call, window)):
        (low, begin, end) = ints((window.low[axis], first, beyond))
        start = np.arange(sizes[axis]) * window.strides[axis] - low
        at = start[:, None] + np.arange(call.attrs.kernel[axis]) * window.dilations[axis]
        number = ((at >= begin) & (at < end)).sum(axis=1).astype(accumulator)
        count = count * number.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return (total / np.maximum(count, 1)).astype(x.dtype)


def _count_below(bound: s.ScalarExpr, kernel: int, dilation: int) -> s.ScalarExpr:
    """How many of ``0, dilation, 2 * dilation, ...`` (`kernel` of them) are less than `bound`."""
    number = (bound + (dilation - 1)) // s.const(dilation, i64)
    return s.minimum(s.maximum(number, 0), kernel)


def _divisor(call: Call, window: Window, index: Index) -> s.ScalarExpr:
    """Number of counted elements of the window at a result position (1 when there are none)."""
    counts: s.ScalarExpr = s.const(1, i64)
    for axis, (first, beyond) in enumerate(_counted(call, window)):
        kernel, low, high = call.attrs.kernel[axis], window.low[axis], window.high[axis]
        extra = call.attrs.extra_high[axis] if call.attrs.extra_high else 0
        whole = low == 0 and high == 0 if not call.attrs.count_include_pad else extra == 0
        if whole:
            counts = counts * kernel
            continue
        start = index[axis + 2] * window.strides[axis] - s.size(low)
        dilation = window.dilations[axis]
        number = _count_below(s.size(beyond) - start, kernel, dilation)
        counts = counts * (number - _count_below(s.size(first) - start, kernel, dilation))
    return counts if isinstance(counts, s.Const) else s.maximum(counts, 1)


def _avg_spec(call: Call) -> ReduceSpec:
    (x,) = call.types
    accumulator = compute_dtype(x.dtype)
    window = Window.of(call, call.attrs.kernel)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        source, inside = window.source(index[2:], red)
        element = load_as(load, 0, [*index[:2], *source], accumulator)
        return (accs[0] + s.select(inside, element, 0),)

    def finish(index: Index, accs: Accumulators) -> Accumulators:
        return (s.cast(accs[0] / s.cast(_divisor(call, window, index), accumulator), x.dtype),)

    return ReduceSpec(
        domain=window.kernel,
        init=lambda index, load: (s.const(0, accumulator),),
        step=step,
        finish=finish,
    )


def _grad_avg(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    call = Call.of(node)
    window = Window.of(call, call.attrs.kernel)
    # The divisors are a convolution of ones with ones over the positions that count.
    counted = _counted(call, window)
    ones = b.full((1, 1, *(beyond - first for first, beyond in counted)), 1, g.dtype)
    low = [lo + first for lo, (first, _) in zip(window.low, counted)]
    high = [size + hi - beyond for size, hi, (_, beyond) in zip(window.spatial, window.high, counted)]
    count = b.conv(
        ones, b.full((1, 1, *window.kernel), 1, g.dtype), strides=window.strides, dilations=window.dilations,
        pads_low=low, pads_high=high,
    )  # fmt: skip
    share = b.div(g, b.maximum(count, b.like(1, count)))
    return (_spread(b, share, window),)


P = Attr("p", "int", 2, "exponent of the norm")


def _lp_type(call: Call) -> list[TensorType]:
    if call.attrs.p < 1:
        call.fail(f"p = {call.attrs.p} is not positive")
    return _pool_type(call)


def _lp_reference(call: Call, x: np.ndarray) -> np.ndarray:
    window, sizes = _window(call)
    accumulator = compute_dtype(call.types[0].dtype).numpy
    p = accumulator.type(call.attrs.p)
    padded = window.padded(np.abs(x.astype(accumulator)) ** p, 0)
    total = np.zeros((*x.shape[:2], *sizes), accumulator)
    for position in window.positions():
        total = total + window.taken(padded, position, sizes)
    norm: np.ndarray = (total ** (accumulator.type(1) / p)).astype(x.dtype)
    return norm


def _lp_spec(call: Call) -> ReduceSpec:
    (x,) = call.types
    p = call.attrs.p
    accumulator = compute_dtype(x.dtype)
    window = Window.of(call, call.attrs.kernel)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        source, inside = window.source(index[2:], red)
        size = s.unary("abs", s.select(inside, load_as(load, 0, [*index[:2], *source], accumulator), 0))
        power = size if p == 1 else size * size if p == 2 else s.binary("pow", size, float(p))
        return (accs[0] + power,)

    def finish(index: Index, accs: Accumulators) -> Accumulators:
        (total,) = accs
        root = total if p == 1 else s.unary("sqrt", total) if p == 2 else s.binary("pow", total, 1.0 / p)
        return (s.cast(root, x.dtype),)

    return ReduceSpec(
        domain=window.kernel, init=lambda index, load: (s.const(0, accumulator),), step=step, finish=finish
    )


def _grad_lp(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    (x,) = node.operands
    y = node.results[0]
    call = Call.of(node)
    p = call.attrs.p
    window = Window.of(call, call.attrs.kernel)
    zero = b.like(0, y)
    positive = b.gt(y, zero)
    # d y / d x = sign(x) |x|^(p-1) y^(1-p), taken as 0 where the whole window is 0.
    safe = b.where(positive, y, b.like(1, y))
    share = b.where(positive, b.mul(g, b.pow(safe, b.like(1 - p, y))), zero)
    spread = _spread(b, share, window)
    slope = b.sign(x) if p == 1 else x if p == 2 else b.mul(b.sign(x), b.pow(b.abs(x), b.like(p - 1, x)))
    return (b.mul(spread, slope),)


# ---- records ---------------------------------------------------------------------------------------------------------


def _examples(extra: dict[str, Any], rounding: bool = False) -> Any:
    def make() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
        rng = np.random.default_rng(3)

        def f(*shape: int) -> np.ndarray:
            # Distinct values: the gradient of a maximum is only defined without ties.
            return (rng.permutation(math.prod(shape)).reshape(shape) / 7 - 3).astype(np.float32)

        calls: list[tuple[list[np.ndarray], dict[str, Any]]] = [
            ([f(2, 3, 6, 6)], {"kernel": (2, 2), "strides": (2, 2)}),
            ([f(1, 2, 7, 5)],
             {"kernel": (3, 2), "strides": (2, 1), "pads_low": (1, 0), "pads_high": (1, 1), "dilations": (1, 2)}),
            ([f(1, 2, 9)], {"kernel": (2,), "strides": (4,)}),
            ([f(1, 1, 4, 5, 4)], {"kernel": (2, 3, 2), "strides": (1, 2, 2), "pads_low": (1, 1, 0)}),
            ([f(0, 2, 4, 4)], {"kernel": (3, 3)}),
        ]  # fmt: skip
        if rounding:
            calls += [
                ([f(1, 2, 6, 6)],
                 {"kernel": (3, 3), "strides": (2, 2), "pads_low": (1, 1), "pads_high": (2, 2),
                  "extra_high": (1, 1), "count_include_pad": True}),
                ([f(1, 2, 5, 5)],
                 {"kernel": (2, 2), "strides": (2, 2), "pads_high": (1, 1), "extra_high": (1, 1)}),
            ]  # fmt: skip
        return [(arrays, {**attrs, **extra}) for arrays, attrs in calls]

    return make


register(
    OpDef(
        name="max_pool",
        doc="Maximum of each window; padding never wins, NaN does.",
        operands=(Operand("x", REALS),),
        attrs=ATTRS,
        infer=_pool_type,
        reference=_max_reference,
        kind=Reduce(_max_spec, role="window"),
        grad=_grad_max,
        cost=_pool_cost,
        examples=_examples({}),
        source="ONNX MaxPool",
    )
)

register(
    OpDef(
        name="max_pool_indices",
        doc="Maximum of each window and its row-major position in the whole operand (the first of equals; -1: none).",
        operands=(Operand("x", REALS),),
        attrs=ATTRS,
        infer=_max_indices_type,
        reference=_max_indices_reference,
        kind=Reduce(_max_indices_spec, role="window"),
        grad=_grad_max_indices,
        cost=_pool_cost,
        examples=_examples({}),
        source="ONNX MaxPool with its second output",
    )
)

register(
    OpDef(
        name="avg_pool",
        doc="Mean of each window, over its elements inside the operand or over all that count_include_pad counts.",
        operands=(Operand("x", FLOATS),),
        attrs=(*ATTRS, COUNT, EXTRA_HIGH),
        infer=_avg_type,
        reference=_avg_reference,
        kind=Reduce(_avg_spec, role="window"),
        grad=_grad_avg,
        cost=_pool_cost,
        examples=_examples({}, rounding=True),
        source="ONNX AveragePool",
    )
)

register(
    OpDef(
        name="lp_pool",
        doc="p-norm of each window; padding contributes 0.",
        operands=(Operand("x", FLOATS),),
        attrs=(*ATTRS, P),
        infer=_lp_type,
        reference=_lp_reference,
        kind=Reduce(_lp_spec, role="window"),
        grad=_grad_lp,
        cost=_pool_cost,
        examples=lambda: [*_examples({})(), *_examples({"p": 3})()[:1], *_examples({"p": 1})()[1:2]],
        source="ONNX LpPool",
    )
)
