"""Reductions over axes.

Half floats accumulate in f32 and round once. NaN propagates through every float reduction. Over nothing, sums are 0,
products 1, means NaN, the largest is -inf (integers: the smallest number) and the smallest +inf (the largest).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import BOOL, FLOATS, NUMERIC, REALS, DType, i64, u64
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node, Value
from dhc.ir.inference import reduced_shape
from dhc.ir.kinds import Composite, Index, Reduce, ReduceSpec
from dhc.ir.op import Attr, Call, Cost, Gradient, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.arithmetic import truncated_quotient
from dhc.ir.precision import compute_dtype, half_result, rounded, widened_load
from dhc.ir.registry import register
from dhc.ir.types import TensorType

AXES = (
    Attr("axes", "ints", (), "axes to reduce; none means all"),
    Attr("keepdims", "bool", False, "keep reduced axes with size 1"),
)

Combine = Callable[[s.ScalarExpr, s.ScalarExpr], s.ScalarExpr]


def reduced_type(call: Call) -> list[TensorType]:
    """One result of the operand's dtype without the reduced axes."""
    (x,) = call.types
    return [TensorType(x.dtype, reduced_shape(x.shape, call.axes(call.attrs.axes), call.attrs.keepdims))]


def full_index(call: Call, index: Index, red: Index) -> list[s.ScalarExpr]:
    """Position in the operand: kept axes from the result's index, reduced axes from the domain's."""
    axes = call.axes(call.attrs.axes)
    kept = iter(index if not call.attrs.keepdims else [e for i, e in enumerate(index) if i not in axes])
    inner = iter(red)
    return [next(inner) if i in axes else next(kept) for i in range(call.types[0].rank)]


def reduction_domain(call: Call) -> symbols.Shape:
    """Sizes of the reduced axes."""
    return tuple(call.types[0].shape[a] for a in call.axes(call.attrs.axes))


def reduction_cost(call: Call) -> Cost:
    """One operation per element of the operand."""
    x = call.types[0]
    moved = x.nbytes
    for result in call.results:
        moved = moved + result.nbytes
    return Cost(x.numel, moved)


def _spec(combine: Combine, start: Callable[[DType], Any]) -> Callable[[Call], ReduceSpec]:
    """A fold with one accumulator in the dtype in which the op computes."""

    def spec(call: Call) -> ReduceSpec:
        dtype = call.types[0].dtype
        compute = compute_dtype(dtype)
        return ReduceSpec(
            domain=reduction_domain(call),
            init=lambda index, load: (s.const(start(compute), compute),),
            step=lambda index, red, load, accs: (
                combine(accs[0], widened_load(load)(0, full_index(call, index, red))),
            ),
            finish=lambda index, accs: (half_result(accs[0], dtype),),
        )

    return spec


def expand_reduced(b: Builder, node: Node, g: Value) -> Value:
    """A value of the result's type, repeated over the reduced axes."""
    x = node.operands[0]
    axes = Call.of(node).axes(node.attrs["axes"])
    kept = b.reshape(g, shape=reduced_shape(x.type.shape, axes, True))
    result: Value = b.broadcast_to(kept, shape=x.type.shape)
    return result


def _reduction(
    name: str, doc: str, dtypes: Any, reference: Callable[..., Any], spec: Callable[[Call], ReduceSpec],
    grad: Gradient, source: str,
) -> OpDef:  # fmt: skip
    def run(call: Call, x: Any) -> Any:
        axes = call.axes(call.attrs.axes)
        return rounded(lambda wide: reference(wide, axis=axes, keepdims=call.attrs.keepdims))(x)

    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", dtypes),),
            attrs=AXES,
            infer=reduced_type,
            reference=run,
            kind=Reduce(spec),
            grad=grad,
            cost=reduction_cost,
            source=source,
        )
    )


# ---- sum and mean ----------------------------------------------------------------------------------------------------


def _grad_sum(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (expand_reduced(b, node, g),)


_reduction(
    "reduce_sum", "Sum over axes; integers wrap around in their own dtype.", NUMERIC,
    lambda x, **kw: np.sum(x, dtype=x.dtype, **kw), _spec(lambda acc, x: acc + x, lambda d: 0), _grad_sum,
    "ONNX ReduceSum",
)  # fmt: skip


def _mean(x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    count = int(np.prod([x.shape[a] for a in axis], dtype=np.int64))
    if x.dtype.kind not in "iu":
        return np.divide(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype), x.dtype.type(count))
    wide = np.uint64 if x.dtype == np.uint64 else np.int64
    total = np.sum(x, axis=axis, keepdims=keepdims, dtype=wide)
    if count == 0 and np.size(total):
        raise DhcError("reduce_mean: integer division by zero (mean of nothing)")
    return truncated_quotient(total, np.asarray(max(count, 1), wide)).astype(x.dtype)


def _mean_spec(call: Call) -> ReduceSpec:
    dtype = call.types[0].dtype
    # The sum of integers does not wrap in 64 bits, so the mean is exact up to its truncation.
    compute = compute_dtype(dtype) if not dtype.is_integer else u64 if dtype == u64 else i64
    domain = reduction_domain(call)

    def finish(index: Index, accs: tuple[s.ScalarExpr, ...]) -> tuple[s.ScalarExpr, ...]:
        mean = accs[0] / s.cast(s.size(symbols.product(domain)), compute)
        return (half_result(mean, dtype) if not dtype.is_integer else s.cast(mean, dtype),)

    return ReduceSpec(
        domain=domain,
        init=lambda index, load: (s.const(0, compute),),
        step=lambda index, red, load, accs: (accs[0] + s.cast(load(0, full_index(call, index, red)), compute),),
        finish=finish,
    )


def count_of(b: Builder, dims: Sequence[symbols.Dim], dtype: DType) -> Value:
    """The product of sizes as a scalar."""
    total = symbols.product(dims)
    if isinstance(total, int):
        return b.constant(total, dtype)
    result: Value = b.cast(b.reshape(b.dims(values=(total,)), shape=()), dtype=dtype)
    return result


def _grad_mean(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    # A half float cannot count beyond 65504 (f16) or exactly beyond 256 (bf16).
    compute = compute_dtype(g.dtype)
    share = b.div(b.cast(g, dtype=compute), count_of(b, reduction_domain(Call.of(node)), compute))
    return (expand_reduced(b, node, b.cast(share, dtype=g.dtype)),)


_reduction(
    "reduce_mean", "Mean over axes; of integers truncated toward zero.", NUMERIC, _mean, _mean_spec, _grad_mean,
    "ONNX ReduceMean",
)  # fmt: skip


# ---- product ---------------------------------------------------------------------------------------------------------


def _grad_prod(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    """The product of all others, from both sides: right where elements are zero."""
    x = node.operands[0]
    axes = Call.of(node).axes(node.attrs["axes"])
    kept = [a for a in range(x.type.rank) if a not in axes]
    perm = [*kept, *axes]
    moved = b.transpose(x, perm=perm)
    flat = b.reshape(moved, shape=(*(x.shape[a] for a in kept), symbols.product(x.shape[a] for a in axes)))
    before = b.cumprod(flat, axis=-1, exclusive=True)
    after = b.cumprod(flat, axis=-1, exclusive=True, reverse=True)
    others = b.reshape(b.mul(before, after), shape=moved.shape)
    others = b.transpose(others, perm=[int(p) for p in np.argsort(perm)])
    return (b.mul(expand_reduced(b, node, g), others),)


_reduction(
    "reduce_prod", "Product over axes; integers wrap around in their own dtype.", NUMERIC,
    lambda x, **kw: np.prod(x, dtype=x.dtype, **kw), _spec(lambda acc, x: acc * x, lambda d: 1), _grad_prod,
    "ONNX ReduceProd",
)  # fmt: skip


# ---- largest and smallest --------------------------------------------------------------------------------------------


def lowest(dtype: DType) -> int | float:
    """The neutral element of max."""
    return -float("inf") if dtype.is_float else dtype.min


def highest(dtype: DType) -> int | float:
    """The neutral element of min."""
    return float("inf") if dtype.is_float else dtype.max


def _extreme(function: Any, neutral: Callable[[DType], Any]) -> Callable[..., Any]:
    return lambda x, **kw: function(x, initial=x.dtype.type(neutral(as_dtype(x.dtype))), **kw)


def _grad_extreme(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x = node.operands[0]
    axes = Call.of(node).axes(node.attrs["axes"])
    chosen = b.eq(x, expand_reduced(b, node, node.result))
    # The number of ties may exceed what a half float can count.
    marks = b.cast(chosen, dtype=compute_dtype(x.dtype))
    share = b.div(marks, b.reduce_sum(marks, axes=axes, keepdims=True))
    return (b.mul(expand_reduced(b, node, g), b.cast(share, dtype=x.dtype)),)


_reduction(
    "reduce_max", "Largest over axes; NaN when one is NaN. The gradient is shared evenly by ties.", REALS,
    _extreme(np.max, lowest), _spec(s.maximum, lowest), _grad_extreme, "ONNX ReduceMax",
)  # fmt: skip
_reduction(
    "reduce_min", "Smallest over axes; NaN when one is NaN. The gradient is shared evenly by ties.", REALS,
    _extreme(np.min, highest), _spec(s.minimum, highest), _grad_extreme, "ONNX ReduceMin",
)  # fmt: skip

# ---- bools -----------------------------------------------------------------------------------------------------------

_reduction(
    "reduce_any", "True where one is.", BOOL, np.any, _spec(lambda acc, x: acc | x, lambda d: False),
    NotDifferentiable("boolean result"), "ONNX ReduceMax on bool",
)  # fmt: skip
_reduction(
    "reduce_all", "True where all are.", BOOL, np.all, _spec(lambda acc, x: acc & x, lambda d: True),
    NotDifferentiable("boolean result"), "ONNX ReduceMin on bool",
)  # fmt: skip


# ---- log-sum-exp -----------------------------------------------------------------------------------------------------


def _build_logsumexp(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    (x,) = operands
    compute = compute_dtype(x.dtype)
    wide = x if x.dtype == compute else b.cast(x, dtype=compute)
    axes = call.axes(call.attrs.axes)
    if not axes:
        return [x]
    largest = b.reduce_max(wide, axes=axes, keepdims=True)
    # ±inf would make inf - inf; without the shift the sum is exact for them.
    shift = b.where(b.is_inf(largest), b.like(0.0, largest), largest)
    total = b.reduce_sum(b.exp(b.sub(wide, shift)), axes=axes, keepdims=True)
    result = b.add(b.log(total), shift)
    if not call.attrs.keepdims:
        result = b.reshape(result, shape=reduced_shape(x.shape, axes, False))
    return [result if x.dtype == compute else b.cast(result, dtype=x.dtype)]


def _logsumexp(x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    if not axis:
        return x
    largest = np.max(x, axis=axis, keepdims=True, initial=x.dtype.type(-np.inf))
    shift = np.where(np.isinf(largest), x.dtype.type(0), largest)
    result = np.log(np.sum(np.exp(x - shift), axis=axis, keepdims=True, dtype=x.dtype)) + shift
    return result if keepdims else np.squeeze(result, axis)


def _grad_logsumexp(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    share = b.exp(b.sub(node.operands[0], expand_reduced(b, node, node.result)))
    return (b.mul(expand_reduced(b, node, g), share),)


def _run_logsumexp(call: Call, x: Any) -> Any:
    axes = call.axes(call.attrs.axes)
    return rounded(lambda wide: _logsumexp(wide, axes, call.attrs.keepdims))(x)


register(
    OpDef(
        name="logsumexp",
        doc="log of the sum of exp over axes, without overflow.",
        operands=(Operand("x", FLOATS),),
        attrs=AXES,
        infer=reduced_type,
        reference=_run_logsumexp,
        kind=Composite(_build_logsumexp),
        grad=_grad_logsumexp,
        cost=reduction_cost,
        source="ONNX ReduceLogSumExp",
    )
)
