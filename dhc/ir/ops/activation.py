"""Activation functions of neural networks. f(NaN) is NaN for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS, SIGNED
from dhc.ir.graph import Node, Value
from dhc.ir.inference import same_type
from dhc.ir.kinds import Elementwise
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.ops.math import erf_array
from dhc.ir.precision import rounded, widened
from dhc.ir.registry import register

SELU_ALPHA = 1.6732632423543772
SELU_GAMMA = 1.0507009873554805
_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715

Derivative = Callable[[Builder, Any, Value, Value], Value]  # (builder, attributes, x, result) -> slope


def _activation(
    name: str, doc: str, reference: Callable[..., Any], expr: Callable[..., Any], derivative: Derivative, *,
    attrs: tuple[Attr, ...] = (), dtypes: Any = FLOATS, source: str = "",
) -> OpDef:  # fmt: skip
    """Registers an activation; `reference` and `expr` take ``(attributes, x)``."""

    def run(call: Call, x: Any) -> Any:
        return rounded(lambda wide: reference(call.attrs, wide))(x)

    def rule(b: Builder, node: Node, g: Value) -> tuple[Value]:
        slope = derivative(b, Call.of(node).attrs, node.operands[0], node.result)
        return (b.mul(g, slope),)

    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", dtypes),),
            attrs=attrs,
            infer=same_type,
            reference=run,
            kind=Elementwise(widened(lambda call, x: expr(call.attrs, x))),
            grad=rule,
            source=source,
        )
    )


def _step(b: Builder, x: Value, threshold: float, above: Any, otherwise: Any) -> Value:
    """`above` where x > threshold, else `otherwise`; numbers or values."""

    def lift(v: Any) -> Value:
        return v if isinstance(v, Value) else b.like(v, x)

    result: Value = b.where(b.gt(x, threshold), lift(above), lift(otherwise))
    return result


def _number(x: Any, value: float) -> Any:
    return x.dtype.type(value)


# ---- piecewise linear ------------------------------------------------------------------------------------------------

_activation(
    "relu", "max(x, 0); gradient 0 at 0.", lambda at, x: np.maximum(x, _number(x, 0)), lambda at, x: s.maximum(x, 0),
    lambda b, at, x, y: _step(b, x, 0.0, 1.0, 0.0), dtypes=FLOATS | SIGNED, source="ONNX Relu",
)  # fmt: skip
_activation(
    "leaky_relu", "x where x > 0, else alpha * x; gradient alpha at 0.",
    lambda at, x: np.where(x > 0, x, _number(x, at.alpha) * x),
    lambda at, x: s.select(x > 0, x, x * at.alpha),
    lambda b, at, x, y: _step(b, x, 0.0, 1.0, at.alpha),
    attrs=(Attr("alpha", "float", 0.01, "slope below 0"),), source="ONNX LeakyRelu",
)  # fmt: skip
_activation(
    "thresholded_relu", "x where x > alpha, else 0; gradient 0 at alpha.",
    lambda at, x: np.where((x > _number(x, at.alpha)) | np.isnan(x), x, _number(x, 0)),
    lambda at, x: s.select(x <= at.alpha, 0, x),
    lambda b, at, x, y: _step(b, x, at.alpha, 1.0, 0.0),
    attrs=(Attr("alpha", "float", 1.0, "threshold"),), source="ONNX ThresholdedRelu",
)  # fmt: skip


def _ramp(x: Any, alpha: float, beta: float) -> Any:
    return np.minimum(np.maximum(_number(x, alpha) * x + _number(x, beta), _number(x, 0)), _number(x, 1))


def _ramp_expr(x: s.ScalarExpr, alpha: float, beta: float) -> s.ScalarExpr:
    return s.minimum(s.maximum(x * alpha + beta, 0), 1)


def _ramp_slope(b: Builder, x: Value, alpha: float, beta: float) -> Value:
    line = b.add(b.mul(x, alpha), beta)
    inside = b.logical_and(b.gt(line, 0.0), b.lt(line, 1.0))
    result: Value = b.where(inside, b.like(alpha, x), b.like(0.0, x))
    return result


_activation(
    "hard_sigmoid", "min(max(alpha * x + beta, 0), 1); gradient 0 at both corners.",
    lambda at, x: _ramp(x, at.alpha, at.beta), lambda at, x: _ramp_expr(x, at.alpha, at.beta),
    lambda b, at, x, y: _ramp_slope(b, x, at.alpha, at.beta),
    attrs=(Attr("alpha", "float", 0.2, "slope"), Attr("beta", "float", 0.5, "value at 0")), source="ONNX HardSigmoid",
)  # fmt: skip
_activation(
    "hard_swish", "x * min(max(x / 6 + 1/2, 0), 1).",
    lambda at, x: x * _ramp(x, 1 / 6, 0.5), lambda at, x: x * _ramp_expr(x, 1 / 6, 0.5),
    lambda b, at, x, y: b.add(b.hard_sigmoid(x, alpha=1 / 6, beta=0.5), b.mul(x, _ramp_slope(b, x, 1 / 6, 0.5))),
    source="ONNX HardSwish",
)  # fmt: skip


# ---- exponential linear units ----------------------------------------------------------------------------------------

_ALPHA = Attr("alpha", "float", 1.0, "limit below 0, negated")

_activation(
    "elu", "x where x > 0, else alpha * (exp(x) - 1).",
    lambda at, x: np.where(x > 0, x, _number(x, at.alpha) * np.expm1(x)),
    lambda at, x: s.select(x > 0, x, s.unary("expm1", x) * at.alpha),
    lambda b, at, x, y: _step(b, x, 0.0, 1.0, b.add(y, at.alpha)), attrs=(_ALPHA,), source="ONNX Elu",
)  # fmt: skip
_activation(
    "selu", "gamma * x where x > 0, else gamma * alpha * (exp(x) - 1).",
    lambda at, x: _number(x, at.gamma) * np.where(x > 0, x, _number(x, at.alpha) * np.expm1(x)),
    lambda at, x: s.select(x > 0, x, s.unary("expm1", x) * at.alpha) * at.gamma,
    lambda b, at, x, y: _step(b, x, 0.0, at.gamma, b.add(y, at.gamma * at.alpha)),
    attrs=(Attr("alpha", "float", SELU_ALPHA, "limit below 0, negated"), Attr("gamma", "float", SELU_GAMMA, "scale")),
    source="ONNX Selu",
)  # fmt: skip
_activation(
    "celu", "max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0).",
    lambda at, x: np.where(x > 0, x, _number(x, at.alpha) * np.expm1(x / _number(x, at.alpha))),
    lambda at, x: s.select(x > 0, x, s.unary("expm1", x / at.alpha) * at.alpha),
    lambda b, at, x, y: _step(b, x, 0.0, 1.0, b.add(b.div(y, at.alpha), 1.0)), attrs=(_ALPHA,), source="ONNX Celu",
)  # fmt: skip


# ---- smooth ----------------------------------------------------------------------------------------------------------


def _sigmoid(x: Any) -> Any:
    return _number(x, 1) / (_number(x, 1) + np.exp(-x))


def _sigmoid_expr(x: s.ScalarExpr) -> s.ScalarExpr:
    return 1.0 / (s.unary("exp", -x) + 1.0)


def _softplus(x: Any) -> Any:
    # The argument of exp is never positive, so nothing overflows.
    return np.maximum(x, _number(x, 0)) + np.log1p(np.exp(-np.abs(x)))


def _softplus_expr(x: s.ScalarExpr) -> s.ScalarExpr:
    return s.maximum(x, 0) + s.unary("log1p", s.unary("exp", -s.unary("abs", x)))


def _grad_silu(b: Builder, at: Any, x: Value, y: Value) -> Value:
    slope = b.sigmoid(x)
    result: Value = b.add(slope, b.mul(y, b.sub(1.0, slope)))
    return result


def _grad_mish(b: Builder, at: Any, x: Value, y: Value) -> Value:
    t = b.tanh(b.softplus(x))
    result: Value = b.add(t, b.mul(b.mul(x, b.sigmoid(x)), b.sub(1.0, b.mul(t, t))))
    return result


def _grad_softsign(b: Builder, at: Any, x: Value, y: Value) -> Value:
    below = b.add(b.abs(x), 1.0)
    result: Value = b.div(1.0, b.mul(below, below))
    return result


_activation(
    "sigmoid", "1 / (1 + exp(-x)).", lambda at, x: _sigmoid(x), lambda at, x: _sigmoid_expr(x),
    lambda b, at, x, y: b.mul(y, b.sub(1.0, y)), source="ONNX Sigmoid",
)  # fmt: skip
_activation(
    "silu", "x / (1 + exp(-x)), also known as swish.", lambda at, x: x / (_number(x, 1) + np.exp(-x)),
    lambda at, x: x / (s.unary("exp", -x) + 1.0), _grad_silu, source="Elfwing et al. 2017; ONNX Swish",
)  # fmt: skip
_activation(
    "softplus", "log(1 + exp(x)), without overflow.", lambda at, x: _softplus(x), lambda at, x: _softplus_expr(x),
    lambda b, at, x, y: b.sigmoid(x), source="ONNX Softplus",
)  # fmt: skip
_activation(
    "mish", "x * tanh(softplus(x)).", lambda at, x: x * np.tanh(_softplus(x)),
    lambda at, x: x * s.unary("tanh", _softplus_expr(x)), _grad_mish, source="ONNX Mish",
)  # fmt: skip
_activation(
    "softsign", "x / (1 + |x|).", lambda at, x: x / (_number(x, 1) + np.abs(x)),
    lambda at, x: x / (s.unary("abs", x) + 1.0), _grad_softsign, source="ONNX Softsign",
)  # fmt: skip


def _gelu(at: Any, x: Any) -> Any:
    half, one = _number(x, 0.5), _number(x, 1)
    if at.approximate == "none":
        return half * x * (one + erf_array(x * _number(x, _SQRT_HALF)))
    inner = _number(x, _SQRT_2_OVER_PI) * (x + _number(x, _GELU_CUBIC) * (x * x * x))
    return half * x * (one + np.tanh(inner))


def _gelu_expr(at: Any, x: s.ScalarExpr) -> s.ScalarExpr:
    if at.approximate == "none":
        return x * 0.5 * (s.unary("erf", x * _SQRT_HALF) + 1.0)
    inner = (x + x * x * x * _GELU_CUBIC) * _SQRT_2_OVER_PI
    return x * 0.5 * (s.unary("tanh", inner) + 1.0)


def _grad_gelu(b: Builder, at: Any, x: Value, y: Value) -> Value:
    square = b.mul(x, x)
    if at.approximate == "none":
        share = b.mul(b.add(b.erf(b.mul(x, _SQRT_HALF)), 1.0), 0.5)
        density = b.mul(b.exp(b.mul(square, -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
        exact: Value = b.add(share, b.mul(x, density))
        return exact
    inner = b.mul(b.mul(x, b.add(b.mul(square, _GELU_CUBIC), 1.0)), _SQRT_2_OVER_PI)
    t = b.tanh(inner)
    slope = b.mul(b.add(b.mul(square, 3.0 * _GELU_CUBIC), 1.0), _SQRT_2_OVER_PI)
    bend = b.mul(b.mul(b.mul(x, b.sub(1.0, b.mul(t, t))), slope), 0.5)
    result: Value = b.add(b.mul(b.add(t, 1.0), 0.5), bend)
    return result


_activation(
    "gelu", "x times the standard normal distribution function of x, exact or by the tanh formula.", _gelu, _gelu_expr,
    _grad_gelu, attrs=(Attr("approximate", "str", "none", "formula", choices=("none", "tanh")),),
    source="Hendrycks and Gimpel 2016; ONNX Gelu",
)  # fmt: skip
