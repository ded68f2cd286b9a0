"""Arithmetic on numbers, element by element, with NumPy broadcasting."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import NUMERIC
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import Call, Gradient, OpDef, Operand
from dhc.ir.registry import register


def _binary(
    name: str, doc: str, reference: Any, expr: Any, grad: Gradient, *, dtypes: Any = NUMERIC, commutative: bool = False,
    source: str = "",
) -> OpDef:  # fmt: skip
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("a", dtypes), Operand("b", dtypes, same="a")),
            infer=broadcast_type,
            reference=lambda call, a, b: reference(a, b),
            kind=Elementwise(lambda call, a, b: expr(a, b)),
            grad=grad,
            commutative=commutative,
            source=source,
        )
    )


def _grad_add(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, y = node.operands
    return unbroadcast(b, g, x), unbroadcast(b, g, y)


def _grad_mul(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, y = node.operands
    return unbroadcast(b, b.mul(g, y), x), unbroadcast(b, b.mul(g, x), y)


_binary("add", "Sum.", np.add, lambda a, b: a + b, _grad_add, commutative=True, source="ONNX Add")
_binary("mul", "Product.", np.multiply, lambda a, b: a * b, _grad_mul, commutative=True, source="ONNX Mul")
