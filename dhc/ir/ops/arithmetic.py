"""Arithmetic on numbers, element by element, with NumPy broadcasting.

Integers wrap around. Dividing an integer by zero is an error (kernel status 2), never a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import NUMERIC, REALS, c64, f32, f64
from dhc.ir.gradients import refuse_complex, unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_type, same_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import Call, Gradient, OpDef, Operand
from dhc.ir.precision import rounded, widened
from dhc.ir.registry import register
from dhc.ir.types import TensorType

Array = Any  # a NumPy array of any dtype
Grads = Sequence["Value | None"]


def _binary(
    name: str, doc: str, reference: Any, expr: Any, grad: Gradient, *, dtypes: Any = NUMERIC, commutative: bool = False,
    source: str = "",
) -> OpDef:  # fmt: skip
    compute = rounded(reference)
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("a", dtypes), Operand("b", dtypes, same="a")),
            infer=broadcast_type,
            reference=lambda call, a, b: compute(a, b),
            kind=Elementwise(widened(lambda call, a, b: expr(a, b))),
            grad=grad,
            commutative=commutative,
            source=source,
        )
    )


# ---- sums and products -----------------------------------------------------------------------------------------------


def _grad_add(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    return unbroadcast(b, g, x), unbroadcast(b, g, y)


def _grad_sub(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    return unbroadcast(b, g, x), unbroadcast(b, b.neg(g), y)


def _grad_mul(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    return unbroadcast(b, b.mul(g, y), x), unbroadcast(b, b.mul(g, x), y)


_binary("add", "Sum.", np.add, lambda a, b: a + b, _grad_add, commutative=True, source="ONNX Add")
_binary("sub", "Difference.", np.subtract, lambda a, b: a - b, _grad_sub, source="ONNX Sub")
_binary("mul", "Product.", np.multiply, lambda a, b: a * b, _grad_mul, commutative=True, source="ONNX Mul")


# ---- quotients and remainders ----------------------------------------------------------------------------------------


def _integers_checked(name: str, a: Array, b: Array) -> bool:
    """True for integers, after refusing a zero divisor."""
    if a.dtype.kind not in "iu":
        return False
    if np.size(a) and np.any(b == 0):
        raise DhcError(f"{name}: integer division by zero")
    return True


def truncated_quotient(a: Array, b: Array) -> Array:
    """Integer quotient rounded toward zero; min / -1 wraps around to min."""
    quotient = np.floor_divide(a, b)
    # floor_divide rounds down; where signs differ and something is left over, truncation is one higher.
    inexact = (np.multiply(quotient, b) != a) & ((a < 0) != (b < 0))
    return np.asarray(quotient + inexact.astype(a.dtype), dtype=a.dtype)


def _div(a: Array, b: Array) -> Array:
    return truncated_quotient(a, b) if _integers_checked("div", a, b) else np.divide(a, b)


def _mod(a: Array, b: Array) -> Array:
    _integers_checked("mod", a, b)
    return np.mod(a, b)


def _fmod(a: Array, b: Array) -> Array:
    _integers_checked("fmod", a, b)
    return np.fmod(a, b)


def _guarded(function: str, a: s.ScalarExpr, b: s.ScalarExpr) -> s.ScalarExpr:
    """Integer division without the one case that overflows, min / -1: processors trap on it."""
    if a.dtype.kind != "i":
        return s.binary(function, a, b)
    minus_one = b.eq(-1)
    special: s.Scalar = -a if function == "div" else 0
    return s.select(minus_one, special, s.binary(function, a, s.select(minus_one, 1, b)))


def _grad_div(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    by_x = b.div(g, y)
    return unbroadcast(b, by_x, x), unbroadcast(b, b.neg(b.mul(by_x, node.result)), y)


def _grad_mod(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    return unbroadcast(b, g, x), unbroadcast(b, b.neg(b.mul(g, b.floor(b.div(x, y)))), y)


def _grad_fmod(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    return unbroadcast(b, g, x), unbroadcast(b, b.neg(b.mul(g, b.trunc(b.div(x, y)))), y)


_binary(
    "div", "Quotient; integers truncate toward zero, dividing an integer by zero is an error.", _div,
    lambda a, b: _guarded("div", a, b), _grad_div, source="ONNX Div",
)  # fmt: skip
_binary(
    "mod", "Remainder with the sign of the divisor.", _mod, lambda a, b: _guarded("mod", a, b), _grad_mod,
    dtypes=REALS, source="ONNX Mod (fmod=0)",
)  # fmt: skip
_binary(
    "fmod", "Remainder with the sign of the dividend.", _fmod, lambda a, b: _guarded("fmod", a, b), _grad_fmod,
    dtypes=REALS, source="ONNX Mod (fmod=1)",
)  # fmt: skip


# ---- powers ----------------------------------------------------------------------------------------------------------


def _pow(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.power(a, b)
    power = np.power(a, np.maximum(b, 0))
    if a.dtype.kind == "u":
        return power
    unit = np.where(np.abs(a) == 1, np.where((a == -1) & (b % 2 != 0), -1, 1), 0)
    return np.where(b < 0, unit, power).astype(a.dtype)


def _pow_expr(a: s.ScalarExpr, b: s.ScalarExpr) -> s.ScalarExpr:
    if a.dtype.kind != "i":
        return s.binary("pow", a, b)
    sign = s.select((b & 1).eq(0), s.const(1, a.dtype), s.const(-1, a.dtype))
    unit = s.select(a.eq(1), s.const(1, a.dtype), s.select(a.eq(-1), sign, 0))
    return s.select(b < 0, unit, s.binary("pow", a, s.select(b < 0, 0, b)))


def _grad_pow(b: Builder, node: Node, g: Value) -> Grads:
    x, y = node.operands
    # x**(y-1) rather than result/x: right at x = 0; and there log(x) is replaced, as 0**y is flat in y for y > 0.
    by_x = b.mul(g, b.mul(y, b.pow(x, b.sub(y, 1.0))))
    by_x = b.where(b.eq(y, 0.0), b.like(0, g), by_x)
    log = b.log(b.where(b.eq(x, 0.0), b.like(1, x), x))
    return unbroadcast(b, by_x, x), unbroadcast(b, b.mul(g, b.mul(node.result, log)), y)


_binary(
    "pow", "Power; for integers with a negative exponent the real result truncated: 0 or ±1 (0 for base 0).", _pow,
    _pow_expr, _grad_pow, dtypes=REALS, source="ONNX Pow (operands of one dtype)",
)  # fmt: skip


# ---- minimum, maximum, clamp -----------------------------------------------------------------------------------------


def _grad_extreme(compare: str) -> Gradient:
    def rule(b: Builder, node: Node, g: Value) -> Grads:
        x, y = node.operands
        first = b.call(compare, x, y)
        zero = b.like(0, g)
        return unbroadcast(b, b.where(first, g, zero), x), unbroadcast(b, b.where(first, zero, g), y)

    return rule


_binary(
    "minimum", "The smaller; NaN when either is NaN. The gradient goes to the first operand on ties.", np.minimum,
    s.minimum, _grad_extreme("le"), dtypes=REALS, commutative=True, source="ONNX Min",
)  # fmt: skip
_binary(
    "maximum", "The larger; NaN when either is NaN. The gradient goes to the first operand on ties.", np.maximum,
    s.maximum, _grad_extreme("ge"), dtypes=REALS, commutative=True, source="ONNX Max",
)  # fmt: skip


def _grad_clamp(b: Builder, node: Node, g: Value) -> Grads:
    x, low, high = node.operands
    zero = b.like(0, g)
    raised = b.maximum(x, low)
    inside = b.le(raised, high)
    below = b.lt(x, low)
    return (
        unbroadcast(b, b.where(b.logical_and(inside, b.logical_not(below)), g, zero), x),
        unbroadcast(b, b.where(b.logical_and(inside, below), g, zero), low),
        unbroadcast(b, b.where(inside, zero, g), high),
    )


_clamp = rounded(lambda x, low, high: np.minimum(np.maximum(x, low), high))

register(
    OpDef(
        name="clamp",
        doc="min(max(x, low), high); NaN stays NaN. At a bound the gradient goes to x.",
        operands=(Operand("x", REALS), Operand("low", REALS, same="x"), Operand("high", REALS, same="x")),
        infer=broadcast_type,
        reference=lambda call, x, low, high: _clamp(x, low, high),
        kind=Elementwise(widened(lambda call, x, low, high: s.minimum(s.maximum(x, low), high))),
        grad=_grad_clamp,
        source="ONNX Clip",
    )
)


# ---- signs -----------------------------------------------------------------------------------------------------------


def _abs_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if x.dtype.kind == "c":
        return [TensorType(f32 if x.dtype == c64 else f64, x.shape)]
    return same_type(call)


def _grad_abs(b: Builder, node: Node, g: Value) -> Grads:
    refuse_complex(node)
    return (b.mul(g, b.sign(node.operands[0])),)


_sign = rounded(np.sign)

register(
    OpDef(
        name="neg",
        doc="The number with the other sign; integers wrap around.",
        operands=(Operand("x", NUMERIC),),
        infer=same_type,
        reference=lambda call, x: np.negative(x),
        kind=Elementwise(widened(lambda call, x: -x)),
        grad=lambda b, node, g: (b.neg(g),),
        source="ONNX Neg",
    )
)

register(
    OpDef(
        name="abs",
        doc="Absolute value, of complex numbers the modulus; the smallest integer stays (wraparound). Gradient 0 at 0.",
        operands=(Operand("x", NUMERIC),),
        infer=_abs_type,
        reference=lambda call, x: np.abs(x),
        kind=Elementwise(widened(lambda call, x: x if x.dtype.kind == "u" else s.unary("abs", x))),
        grad=_grad_abs,
        source="ONNX Abs",
    )
)

register(
    OpDef(
        name="sign",
        doc="-1, 0 or 1; NaN stays NaN.",
        operands=(Operand("x", REALS),),
        infer=same_type,
        reference=lambda call, x: _sign(x),
        kind=Elementwise(widened(lambda call, x: s.unary("sign", x))),
        grad=lambda b, node, g: (None,),
        source="ONNX Sign",
    )
)
