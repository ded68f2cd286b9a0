"""Elementary functions of real numbers and roundings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS
from dhc.ir.graph import Node, Value
from dhc.ir.inference import same_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import OpDef, Operand
from dhc.ir.precision import rounded, widened
from dhc.ir.registry import register

Derivative = Callable[[Builder, Value, Value], Any]  # (builder, x, result) -> slope


def _function(
    name: str, doc: str, reference: Callable[..., Any], derivative: Derivative | None, *, expr: Any = None,
    source: str = "",
) -> OpDef:  # fmt: skip
    """Registers a function of one real variable; `derivative` None: flat, the gradient is zero."""
    compute = rounded(reference)
    definition = expr or (lambda x: s.unary(name, x))

    def rule(b: Builder, node: Node, g: Value) -> tuple[Value | None]:
        return (None if derivative is None else b.mul(g, derivative(b, node.operands[0], node.result)),)

    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", FLOATS),),
            infer=same_type,
            reference=lambda call, x: compute(x),
            kind=Elementwise(widened(lambda call, x: definition(x))),
            grad=rule,
            source=source or f"ONNX {name.capitalize()}",
        )
    )


def _inverse_root(b: Builder, inside: Value) -> Value:
    result: Value = b.rsqrt(inside)
    return result


def _square(b: Builder, x: Value) -> Value:
    result: Value = b.mul(x, x)
    return result


erf64 = np.vectorize(math.erf, otypes=[np.float64])
"""The error function of an array in f64 (NumPy has none)."""


def erf_array(x: Any) -> Any:
    """The error function in the array's own dtype."""
    return np.asarray(erf64(x)).astype(x.dtype)


# ---- exponentials and logarithms -------------------------------------------------------------------------------------

_function("exp", "e to the power x.", np.exp, lambda b, x, y: y)
_function("expm1", "exp(x) - 1, exact near 0.", np.expm1, lambda b, x, y: b.add(y, 1.0), source="C expm1")
_function("log", "Natural logarithm; -inf at 0, NaN below.", np.log, lambda b, x, y: b.div(1.0, x))
_function("log1p", "log(1 + x), exact near 0.", np.log1p, lambda b, x, y: b.div(1.0, b.add(x, 1.0)), source="C log1p")

# ---- roots -----------------------------------------------------------------------------------------------------------

_function("sqrt", "Square root; NaN below 0.", np.sqrt, lambda b, x, y: b.div(0.5, y))
_function(
    "rsqrt", "1 / sqrt(x), correctly rounded in both steps.", lambda x: np.divide(1, np.sqrt(x), dtype=x.dtype),
    lambda b, x, y: b.mul(b.div(y, x), -0.5), source="LLVM and CUDA rsqrt",
    expr=lambda x: 1.0 / s.unary("sqrt", x),
)  # fmt: skip

# ---- circular and hyperbolic functions -------------------------------------------------------------------------------

_function("sin", "Sine of radians.", np.sin, lambda b, x, y: b.cos(x))
_function("cos", "Cosine of radians.", np.cos, lambda b, x, y: b.neg(b.sin(x)))
_function("tan", "Tangent of radians.", np.tan, lambda b, x, y: b.add(_square(b, y), 1.0))
_function(
    "asin", "Arc sine; NaN outside of [-1, 1].", np.arcsin,
    lambda b, x, y: _inverse_root(b, b.sub(1.0, _square(b, x))),
)  # fmt: skip
_function(
    "acos", "Arc cosine; NaN outside of [-1, 1].", np.arccos,
    lambda b, x, y: b.neg(_inverse_root(b, b.sub(1.0, _square(b, x)))),
)  # fmt: skip
_function("atan", "Arc tangent.", np.arctan, lambda b, x, y: b.div(1.0, b.add(_square(b, x), 1.0)))
_function("sinh", "Hyperbolic sine.", np.sinh, lambda b, x, y: b.cosh(x))
_function("cosh", "Hyperbolic cosine.", np.cosh, lambda b, x, y: b.sinh(x))
_function("tanh", "Hyperbolic tangent.", np.tanh, lambda b, x, y: b.sub(1.0, _square(b, y)))
_function("asinh", "Inverse hyperbolic sine.", np.arcsinh, lambda b, x, y: _inverse_root(b, b.add(_square(b, x), 1.0)))
_function(
    "acosh", "Inverse hyperbolic cosine; NaN below 1.", np.arccosh,
    lambda b, x, y: _inverse_root(b, b.mul(b.sub(x, 1.0), b.add(x, 1.0))),
)  # fmt: skip
_function(
    "atanh", "Inverse hyperbolic tangent; ±inf at ±1, NaN outside.", np.arctanh,
    lambda b, x, y: b.div(1.0, b.sub(1.0, _square(b, x))),
)  # fmt: skip
_function(
    "erf", "Error function 2/sqrt(pi) * integral of exp(-t²) from 0 to x.", erf_array,
    lambda b, x, y: b.mul(b.exp(b.neg(_square(b, x))), 2.0 / math.sqrt(math.pi)),
)  # fmt: skip

# ---- roundings -------------------------------------------------------------------------------------------------------

_function("floor", "The largest whole number that is not above x.", np.floor, None)
_function("ceil", "The smallest whole number that is not below x.", np.ceil, None)
_function("round", "The nearest whole number, halves to even.", np.rint, None, expr=lambda x: s.unary("rint", x))
_function("trunc", "x without its fraction.", np.trunc, None, source="C trunc")
