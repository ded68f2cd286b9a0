"""Reductions over axes."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import NUMERIC
from dhc.ir.graph import Node, Value
from dhc.ir.inference import reduced_shape
from dhc.ir.kinds import Index, Reduce, ReduceSpec
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType

AXES = (
    Attr("axes", "ints", (), "axes to reduce; none means all"),
    Attr("keepdims", "bool", False, "keep reduced axes with size 1"),
)


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


def _sum_spec(call: Call) -> ReduceSpec:
    (x,) = call.types
    return ReduceSpec(
        domain=tuple(x.shape[a] for a in call.axes(call.attrs.axes)),
        init=lambda index, load: (s.const(0, x.dtype),),
        step=lambda index, red, load, accs: (accs[0] + load(0, full_index(call, index, red)),),
        finish=lambda index, accs: accs,
    )


def expand_reduced(b: Builder, node: Node, g: Value) -> Value:
    """A cotangent of the result, repeated over the reduced axes."""
    x = node.operands[0]
    axes = Call.of(node).axes(node.attrs["axes"])
    kept = b.reshape(g, shape=reduced_shape(x.type.shape, axes, True))
    result: Value = b.broadcast_to(kept, shape=x.type.shape)
    return result


def _grad_sum(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (expand_reduced(b, node, g),)


register(
    OpDef(
        name="reduce_sum",
        doc="Sum over axes, accumulated in the operand's dtype.",
        operands=(Operand("x", NUMERIC),),
        attrs=AXES,
        infer=reduced_type,
        reference=lambda call, x: np.sum(x, axis=call.axes(call.attrs.axes), keepdims=call.attrs.keepdims, dtype=x.dtype),
        kind=Reduce(_sum_spec),
        grad=_grad_sum,
        source="ONNX ReduceSum",
    )
)
