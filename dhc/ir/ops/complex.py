"""Complex numbers and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import COMPLEX, c64, f32, f64
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_shapes, same_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import Call, OpDef, Operand
from dhc.ir.precision import complex_of
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _part_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    return [TensorType(f32 if x.dtype == c64 else f64, x.shape)]


def _grad_real(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (b.complex(g, b.zeros_like(g)),)


def _grad_imag(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (b.complex(b.zeros_like(g), b.neg(g)),)


def _grad_complex(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    re, im = node.operands
    return unbroadcast(b, b.real(g), re), unbroadcast(b, b.neg(b.imag(g)), im)


register(
    OpDef(
        name="real",
        doc="Real part.",
        operands=(Operand("x", COMPLEX),),
        infer=_part_type,
        reference=lambda call, x: np.real(x).copy(),
        kind=Elementwise(lambda call, x: s.unary("real", x)),
        grad=_grad_real,
        source="NumPy real",
    )
)

register(
    OpDef(
        name="imag",
        doc="Imaginary part.",
        operands=(Operand("x", COMPLEX),),
        infer=_part_type,
        reference=lambda call, x: np.imag(x).copy(),
        kind=Elementwise(lambda call, x: s.unary("imag", x)),
        grad=_grad_imag,
        source="NumPy imag",
    )
)

register(
    OpDef(
        name="conj",
        doc="Complex conjugate.",
        operands=(Operand("x", COMPLEX),),
        infer=same_type,
        reference=lambda call, x: np.conj(x),
        kind=Elementwise(lambda call, x: s.unary("conj", x)),
        grad=lambda b, node, g: (b.conj(g),),
        source="NumPy conj",
    )
)


def _complex_type(call: Call) -> list[TensorType]:
    shape = broadcast_shapes(call, *(t.shape for t in call.types))
    return [TensorType(complex_of(call.types[0].dtype), shape)]


def _complex(call: Call, re: Any, im: Any) -> Any:
    result = np.empty(np.broadcast_shapes(re.shape, im.shape), complex_of(call.types[0].dtype).numpy)
    result.real, result.imag = re, im
    return result


register(
    OpDef(
        name="complex",
        doc="A complex number from its real and imaginary part.",
        operands=(Operand("re", frozenset({f32, f64})), Operand("im", frozenset({f32, f64}), same="re")),
        infer=_complex_type,
        reference=_complex,
        kind=Elementwise(lambda call, re, im: s.binary("complex", re, im)),
        grad=_grad_complex,
        source="LAPACK-style pairs; JAX lax.complex",
    )
)
