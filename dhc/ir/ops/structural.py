"""Ops that the compiler itself handles: constants, copies, sizes, fused groups, symbols bound at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import ANY, FIXED, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import same_type
from dhc.ir.kinds import Elementwise, Index, LoadFn, Map, Structural
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _constant_type(call: Call) -> list[TensorType]:
    value, dtype = call.attrs.value, call.attrs.dtype
    if dtype.kind != "s" and value.dtype != dtype.numpy:
        call.fail_type(f"the array is {value.dtype}, the attribute dtype says {dtype}")
    return [TensorType(dtype, value.shape)]


register(
    OpDef(
        name="constant",
        doc="A tensor known at compile time.",
        operands=(),
        attrs=(Attr("value", "tensor", doc="the elements"), Attr("dtype", "dtype", doc="element type")),
        infer=_constant_type,
        reference=lambda call: call.attrs.value,
        kind=Structural("constant"),
        grad=lambda b, node, g: (),
        examples=lambda: [([], {"value": np.array([[1, 2]], np.float32), "dtype": "f32"})],
        source="ONNX Constant",
    )
)

register(
    OpDef(
        name="copy",
        doc="The same tensor in other memory (on another device after placement).",
        operands=(Operand("x", FIXED),),
        attrs=(Attr("device", "str", "", "device to copy to; empty: the same"),),
        infer=same_type,
        reference=lambda call, x: x.copy(),
        kind=Elementwise(lambda call, x: x),
        grad=lambda b, node, g: (g,),
    )
)


def _dims_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    values = call.attrs.values
    result: s.ScalarExpr = s.size(values[-1]) if values else s.const(0, i64)
    for position in range(len(values) - 2, -1, -1):
        result = s.select(index[0].eq(position), s.size(values[position]), result)
    return result


register(
    OpDef(
        name="dims",
        doc="A vector of sizes, which may be symbolic.",
        operands=(),
        attrs=(Attr("values", "dims", doc="the sizes"),),
        infer=lambda call: [TensorType(i64, (len(call.attrs.values),))],
        reference=lambda call: np.array(call.attrs.values, dtype=np.int64),
        kind=Map(_dims_element, role="generate"),
        examples=lambda: [([], {"values": (2, 3)}), ([], {"values": ()})],
        grad=NotDifferentiable("integer result"),
        source="ONNX Shape",
    )
)


def _read_dims_type(call: Call) -> list[TensorType]:
    (t,) = call.types
    if t.rank != 1 or t.shape[0] != len(call.attrs.names):
        call.fail(f"needs one element for each of the symbols {list(call.attrs.names)}")
    return [TensorType(i64, t.shape)]


register(
    OpDef(
        name="read_dims",
        doc="Binds symbols to the elements of a tensor at run time: sizes that depend on data.",
        operands=(Operand("t", frozenset({i64})),),
        attrs=(Attr("names", "strs", doc="one new symbol per element"),),
        infer=_read_dims_type,
        reference=lambda call, t: t,
        kind=Structural("bind"),
        grad=NotDifferentiable("integer result"),
        pure=False,
        examples=lambda: [([np.array([4, 5])], {"names": ("rows", "columns")})],
    )
)


def _fused_type(call: Call) -> list[Any]:
    (body,) = call.regions
    if len(body.inputs) != len(call.types):
        call.fail(f"the group takes {len(body.inputs)} values, got {len(call.types)}")
    return [v.type for v in body.outputs]


def _grad_fused(b: Builder, node: Node, *cotangents: Value) -> Sequence[Value | None]:
    from dhc.ir.autodiff import region_gradient

    return region_gradient(b, node.regions[0], node.operands, cotangents)


register(
    OpDef(
        name="fused",
        doc="A group of ops that runs as one kernel; the nested graph says what it computes.",
        operands=(Operand("inputs", ANY, variadic=True),),
        infer=_fused_type,
        reference=lambda call, *arrays: tuple(call.run(call.regions[0], arrays)),
        kind=Structural("group"),
        grad=_grad_fused,
    )
)
