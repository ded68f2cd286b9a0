"""Logic on bools and on the bits of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.dtypes import BOOL, INTS, DType
from dhc.ir.inference import broadcast_type, same_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register

_BOOL_RESULT = NotDifferentiable("boolean result")
_INTEGER_RESULT = NotDifferentiable("integer result")


def _pairwise(
    name: str, doc: str, dtypes: frozenset[DType], reference: Callable[..., Any], expr: Callable[..., Any],
    source: str, commutative: bool = True,
) -> OpDef:  # fmt: skip
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("a", dtypes), Operand("b", dtypes, same="a")),
            infer=broadcast_type,
            reference=lambda call, a, b: reference(a, b),
            kind=Elementwise(lambda call, a, b: expr(a, b)),
            grad=_BOOL_RESULT if dtypes == BOOL else _INTEGER_RESULT,
            commutative=commutative,
            source=source,
        )
    )


def _negation(name: str, doc: str, dtypes: frozenset[DType], reference: Callable[..., Any], source: str) -> OpDef:
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", dtypes),),
            infer=same_type,
            reference=lambda call, x: reference(x),
            kind=Elementwise(lambda call, x: s.unary("not", x)),
            grad=_BOOL_RESULT if dtypes == BOOL else _INTEGER_RESULT,
            source=source,
        )
    )


_pairwise("logical_and", "True where both are.", BOOL, np.logical_and, lambda a, b: a & b, "ONNX And")
_pairwise("logical_or", "True where one is.", BOOL, np.logical_or, lambda a, b: a | b, "ONNX Or")
_pairwise("logical_xor", "True where exactly one is.", BOOL, np.logical_xor, lambda a, b: a ^ b, "ONNX Xor")
_negation("logical_not", "True where x is false.", BOOL, np.logical_not, "ONNX Not")

_pairwise("bit_and", "Bits set in both.", INTS, np.bitwise_and, lambda a, b: a & b, "ONNX BitwiseAnd")
_pairwise("bit_or", "Bits set in one.", INTS, np.bitwise_or, lambda a, b: a | b, "ONNX BitwiseOr")
_pairwise("bit_xor", "Bits set in exactly one.", INTS, np.bitwise_xor, lambda a, b: a ^ b, "ONNX BitwiseXor")
_negation("bit_not", "Every bit flipped.", INTS, np.bitwise_not, "ONNX BitwiseNot")


# ---- shifts: distances outside of [0, width) push every bit out ------------------------------------------------------


def _outside(distance: Any, width: int) -> Any:
    return (distance < 0) | (distance >= width)


def _shift_left(a: Any, distance: Any) -> Any:
    width = a.dtype.itemsize * 8
    out = _outside(distance, width)
    return np.where(out, 0, np.left_shift(a, np.where(out, 0, distance).astype(a.dtype))).astype(a.dtype)


def _shift_right(a: Any, distance: Any) -> Any:
    width = a.dtype.itemsize * 8
    limited = np.where(_outside(distance, width), width - 1, distance).astype(a.dtype)
    shifted = np.right_shift(a, limited)
    if a.dtype.kind == "u":
        shifted = np.where(_outside(distance, width), 0, shifted)
    return np.asarray(shifted).astype(a.dtype)


def _out_expr(distance: s.ScalarExpr) -> s.ScalarExpr:
    high = distance >= distance.dtype.bits
    return high if distance.dtype.kind == "u" else (distance < 0) | high


def _shift_left_expr(a: s.ScalarExpr, distance: s.ScalarExpr) -> s.ScalarExpr:
    out = _out_expr(distance)
    return s.select(out, 0, a << s.select(out, 0, distance))


def _shift_right_expr(a: s.ScalarExpr, distance: s.ScalarExpr) -> s.ScalarExpr:
    out = _out_expr(distance)
    shifted = a >> s.select(out, a.dtype.bits - 1, distance)
    return s.select(out, 0, shifted) if a.dtype.kind == "u" else shifted


_pairwise(
    "shift_left", "a * 2**b with wraparound; 0 when b is negative or at least the width.", INTS, _shift_left,
    _shift_left_expr, "ONNX BitShift (LEFT)", commutative=False,
)  # fmt: skip
_pairwise(
    "shift_right", "floor(a / 2**b), signed shifts copy the sign; 0 or -1 when b is negative or at least the width.",
    INTS, _shift_right, _shift_right_expr, "ONNX BitShift (RIGHT)", commutative=False,
)  # fmt: skip
