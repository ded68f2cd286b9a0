"""Comparisons, tests for special values, and choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import ANY, BOOL, FLOATS, MINIFLOATS, REALS, SUB_BYTE, boolean
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_shapes
from dhc.ir.kinds import Elementwise
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.precision import rounded, widened
from dhc.ir.registry import register
from dhc.ir.types import TensorType

_BOOL_RESULT = NotDifferentiable("boolean result")


def _bool_type(call: Call) -> list[TensorType]:
    return [TensorType(boolean, broadcast_shapes(call, *(t.shape for t in call.types)))]


def _comparison(name: str, doc: str, reference: Callable[..., Any], dtypes: Any, commutative: bool, onnx: str) -> OpDef:
    compute = rounded(reference)
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("a", dtypes), Operand("b", dtypes, same="a")),
            infer=_bool_type,
            reference=lambda call, a, b: np.asarray(compute(a, b)).astype(np.bool_),
            kind=Elementwise(widened(lambda call, a, b: s.compare(name, a, b))),
            grad=_BOOL_RESULT,
            commutative=commutative,
            source=onnx,
        )
    )


_ORDERED = REALS | BOOL | SUB_BYTE
_comparison("eq", "True where equal; NaN equals nothing.", np.equal, ANY - MINIFLOATS, True, "ONNX Equal")
_comparison("ne", "True where not equal.", np.not_equal, ANY - MINIFLOATS, True, "ONNX Not(Equal)")
_comparison("lt", "True where a < b.", np.less, _ORDERED, False, "ONNX Less")
_comparison("le", "True where a <= b.", np.less_equal, _ORDERED, False, "ONNX LessOrEqual")
_comparison("gt", "True where a > b.", np.greater, _ORDERED, False, "ONNX Greater")
_comparison("ge", "True where a >= b.", np.greater_equal, _ORDERED, False, "ONNX GreaterOrEqual")


register(
    OpDef(
        name="is_nan",
        doc="True where x is not a number.",
        operands=(Operand("x", FLOATS),),
        infer=_bool_type,
        reference=lambda call, x: np.isnan(x),
        kind=Elementwise(widened(lambda call, x: s.unary("isnan", x))),
        grad=_BOOL_RESULT,
        source="ONNX IsNaN",
    )
)


def _is_inf(call: Call, x: Any) -> Any:
    found = np.isinf(x)
    if not call.attrs.positive:
        found = found & (x < 0)
    if not call.attrs.negative:
        found = found & (x > 0)
    return found


def _is_inf_expr(call: Call, x: s.ScalarExpr) -> s.ScalarExpr:
    found = s.unary("isinf", x)
    if not call.attrs.positive:
        found = found & (x < 0)
    if not call.attrs.negative:
        found = found & (x > 0)
    return found


register(
    OpDef(
        name="is_inf",
        doc="True where x is infinite, of the signs asked for.",
        operands=(Operand("x", FLOATS),),
        attrs=(
            Attr("negative", "bool", True, "count -inf"),
            Attr("positive", "bool", True, "count +inf"),
        ),
        infer=_bool_type,
        reference=_is_inf,
        kind=Elementwise(widened(_is_inf_expr)),
        grad=_BOOL_RESULT,
        source="ONNX IsInf",
    )
)


def _where_type(call: Call) -> list[TensorType]:
    shape = broadcast_shapes(call, *(t.shape for t in call.types))
    return [TensorType(call.types[1].dtype, shape)]


def _grad_where(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    condition, x, y = node.operands
    zero = b.like(0, g)
    return (
        None,
        unbroadcast(b, b.where(condition, g, zero), x),
        unbroadcast(b, b.where(condition, zero, g), y),
    )


register(
    OpDef(
        name="where",
        doc="a where the condition holds, else b.",
        operands=(Operand("condition", BOOL), Operand("a", ANY), Operand("b", ANY, same="a")),
        infer=_where_type,
        reference=lambda call, condition, a, b: np.where(condition, a, b),
        kind=Elementwise(lambda call, condition, a, b: s.select(condition, a, b)),
        grad=_grad_where,
        source="ONNX Where",
    )
)
