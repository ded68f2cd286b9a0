"""Elementwise ops, casts and complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dhc.ir import dtype
from tests.support.random_graphs import Item, Maker
from tests.support.random_ops.rule import least_grid, rule


def positive(m: Maker, x: Item, least: float) -> Item | None:
    """|x| + least."""
    return m.add(m.b.add(m.b.abs(x.value), least), x.bound + least, x.error, least_grid(x, Item(x.value, 0, grid=0.5)))


def within(m: Maker, x: Item, limit: float) -> Item | None:
    """x scaled by a power of two so that it stays within the limit."""
    if x.bound <= limit:
        return x
    scale = 2.0 ** -math.ceil(math.log2(x.bound / limit))
    grid = None if x.grid is None else x.grid * scale
    return m.add(m.b.mul(x.value, scale), x.bound * scale, x.error * scale, grid)


def _grows(limit: float) -> Callable[[Maker, Item], Item | None]:
    return lambda m, x: within(m, x, limit)


SMOOTH: dict[
    str, tuple[Callable[[Maker, Item], Item | None] | None, Callable[[float], float], Callable[[float], float]]
]
SMOOTH = {  # op: (how to bring the operand into its domain, bound of the result, steepest slope), both of the bound
    "exp": (_grows(4), math.exp, math.exp),
    "expm1": (_grows(4), math.exp, math.exp),
    "sinh": (_grows(4), math.exp, math.exp),
    "cosh": (_grows(4), math.exp, math.exp),
    "log": (lambda m, x: positive(m, x, 0.5), lambda b: max(0.7, math.log(b + 1)), lambda b: 2.0),
    "log1p": (lambda m, x: positive(m, x, 0.5), lambda b: math.log(b + 2), lambda b: 1.0),
    "sqrt": (lambda m, x: positive(m, x, 0.5), lambda b: math.sqrt(b), lambda b: 1.0),
    "rsqrt": (lambda m, x: positive(m, x, 0.5), lambda b: 1.5, lambda b: 1.5),
    "acosh": (lambda m, x: positive(m, x, 1.5), lambda b: math.log(2 * b + 1), lambda b: 1.0),
    "asin": (_grows(0.5), lambda b: 0.6, lambda b: 1.2),
    "acos": (_grows(0.5), lambda b: 2.2, lambda b: 1.2),
    "atanh": (_grows(0.5), lambda b: 0.6, lambda b: 1.4),
    "tan": (_grows(1), lambda b: 1.6, lambda b: 3.5),
    "sin": (_grows(64), lambda b: 1.0, lambda b: 1.0),
    "cos": (_grows(64), lambda b: 1.0, lambda b: 1.0),
    "atan": (None, lambda b: 1.6, lambda b: 1.0),
    "asinh": (None, lambda b: math.log(2 * b + 2), lambda b: 1.0),
    "tanh": (None, lambda b: 1.0, lambda b: 1.0),
    "erf": (None, lambda b: 1.0, lambda b: 1.2),
    "sigmoid": (None, lambda b: 1.0, lambda b: 0.3),
    "gelu": (None, lambda b: b, lambda b: 1.2),
    "silu": (None, lambda b: b, lambda b: 1.2),
    "mish": (None, lambda b: b, lambda b: 1.2),
    "softplus": (None, lambda b: b + 0.7, lambda b: 1.0),
    "softsign": (None, lambda b: 1.0, lambda b: 1.0),
    "elu": (None, lambda b: max(b, 1.0), lambda b: 1.0),
    "celu": (None, lambda b: max(b, 1.0), lambda b: 1.0),
    "selu": (None, lambda b: 1.06 * max(b, 1.7), lambda b: 1.8),
    "hard_sigmoid": (None, lambda b: 1.0, lambda b: 0.2),
    "hard_swish": (None, lambda b: b, lambda b: 1.5),
    "leaky_relu": (None, lambda b: b, lambda b: 1.0),
}


@rule(*SMOOTH)
def smooth(m: Maker, op: str) -> None:
    prepare, bound, slope = SMOOTH[op]
    x = m.pick("f")
    if x is not None and prepare is not None and m.has("abs", "mul", "add"):
        x = prepare(m, x)
    if x is None:
        return
    attrs: dict[str, Any] = {}
    if op == "gelu" and m.flip():
        attrs = {"approximate": "tanh"}
    if op == "leaky_relu" and m.flip():
        attrs = {"alpha": 0.25}
    m.add(getattr(m.b, op)(x.value, **attrs), bound(x.bound), slope(x.bound) * x.error)


@rule("neg", "abs", "relu", "copy")
def exact_unary(m: Maker, op: str) -> None:
    x = m.pick("fic" if op in ("neg", "copy") else "fi", special=True)
    if x is not None:
        m.add(getattr(m.b, op)(x.value), x.bound, x.error, x.grid, x.special)


@rule("floor", "ceil", "round", "trunc", "sign", "thresholded_relu")
def jump(m: Maker, op: str) -> None:
    x = m.pick("fiu" if op == "sign" else "f", exact=True, special=op != "thresholded_relu")
    if x is not None:
        grid = x.grid if op == "thresholded_relu" else 1.0
        m.add(getattr(m.b, op)(x.value), x.bound + 1, 0.0, grid, x.special)


@rule("add", "sub", "mul", "minimum", "maximum")
def binary(m: Maker, op: str) -> None:
    x = m.pick("fiu" if op in ("minimum", "maximum") else "fiuc", special=True)
    if x is None:
        return
    y = m.partner(x, special=True)
    special = x.special or y.special
    if op == "mul":
        grid = None if x.grid is None or y.grid is None else x.grid * y.grid
        error = x.error * y.bound + y.error * x.bound + x.error * y.error
        m.add(m.b.mul(x.value, y.value), x.bound * y.bound, error, grid, special)
        return
    bound = max(x.bound, y.bound) if op in ("minimum", "maximum") else x.bound + y.bound
    m.add(getattr(m.b, op)(x.value, y.value), bound, x.error + y.error, least_grid(x, y), special)


@rule("div", "mod", "fmod")
def division(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=op != "div")
    if x is None or not m.has("maximum"):
        return
    y = m.partner(x, exact=True)
    if x.dtype.kind == "f":
        d = positive(m, y, 0.5)
    else:
        d = m.add(m.b.maximum(y.value, 1), max(y.bound, 1))
    if d is None:
        return
    if op == "div":
        bound = x.bound * (2 if x.dtype.kind == "f" else 1)
        m.add(m.b.div(x.value, d.value), bound, 2 * x.error + 4 * x.bound * d.error)
    elif d.exact:
        m.add(getattr(m.b, op)(x.value, d.value), d.bound, 0.0, least_grid(x, d))


@rule("pow")
def power(m: Maker) -> None:
    x = m.pick("fiu")
    if x is None:
        return
    if x.dtype.kind != "f":
        m.add(m.b.pow(x.value, m.integer(0, 3)), math.inf)
        return
    base = positive(m, x, 0.5)
    if base is None or base.bound > 16:
        return
    exponent = m.choose([2.0, 0.5, 1.5, -1.0, 3.0])
    largest = max(base.bound**exponent, 0.5**exponent)
    steepest = abs(exponent) * max(base.bound ** (exponent - 1), 0.5 ** (exponent - 1))
    m.add(m.b.pow(base.value, exponent), largest, steepest * base.error)


@rule("eq", "ne", "lt", "le", "gt", "ge")
def comparison(m: Maker, op: str) -> None:
    x = m.pick("fiub" if op in ("eq", "ne") else "fiu", exact=True, special=True)
    if x is None:
        return
    m.add(getattr(m.b, op)(x.value, m.partner(x, exact=True, special=True).value), 1)


@rule("logical_and", "logical_or", "logical_xor", "logical_not")
def logical(m: Maker, op: str) -> None:
    x = m.pick("b")
    if x is None:
        return
    rest = [] if op == "logical_not" else [m.partner(x).value]
    m.add(getattr(m.b, op)(x.value, *rest), 1)


@rule("bit_and", "bit_or", "bit_xor", "bit_not", "shift_left", "shift_right")
def bits(m: Maker, op: str) -> None:
    x = m.pick("iu")
    if x is None:
        return
    if op == "bit_not":
        m.add(m.b.bit_not(x.value), math.inf)
    elif op.startswith("shift"):
        by = m.fresh(x.dtype.name, m.partner_shape(x.shape), 0, x.dtype.bits - 1)
        m.add(getattr(m.b, op)(x.value, by.value), math.inf)
    else:
        m.add(getattr(m.b, op)(x.value, m.partner(x).value), math.inf)


@rule("is_nan", "is_inf")
def classify(m: Maker, op: str) -> None:
    x = m.pick("f", special=True)
    if x is not None:
        m.add(getattr(m.b, op)(x.value), 1)


@rule("where")
def where(m: Maker) -> None:
    x = m.pick("fiubc", special=True)
    if x is None:
        return
    y = m.partner(x, special=True)
    shape = x.shape if x.rank >= y.rank else y.shape
    condition = m.pick("b", where=lambda c: m.broadcasts(c.shape, x.shape) and m.broadcasts(c.shape, y.shape))
    if condition is None:
        condition = m.fresh("bool", m.partner_shape(shape))
        if not (m.broadcasts(condition.shape, x.shape) and m.broadcasts(condition.shape, y.shape)):
            return
    bound, error = max(x.bound, y.bound), max(x.error, y.error)
    m.add(m.b.where(condition.value, x.value, y.value), bound, error, least_grid(x, y), x.special or y.special)


@rule("clamp")
def clamp(m: Maker) -> None:
    x = m.pick("fiu")
    if x is not None:
        low = 0 if x.dtype.kind == "u" else -1
        m.add(m.b.clamp(x.value, m.b.constant(low, x.dtype), m.b.constant(2, x.dtype)), 2, x.error, x.grid)


@rule("cast")
def cast(m: Maker) -> None:
    target = m.choose(m.dtypes)
    kind = dtype(target)
    x = m.pick("fiub" + ("c" if kind.kind == "c" else ""), exact=kind.kind in "iub")
    if x is None:
        return
    if kind.kind in "iu" and x.dtype.kind == "f" and x.bound > kind.max:
        return  # saturation upwards has tests of its own
    m.add(m.b.cast(x.value, dtype=target), x.bound, x.error, x.grid if kind.kind in "fc" else 1.0)


@rule("bitcast")
def bitcast(m: Maker) -> None:
    x = m.pick("iu")
    if x is not None:
        other = ("u" if x.dtype.kind == "i" else "i") + x.dtype.name[1:]
        m.add(m.b.bitcast(x.value, dtype=other), math.inf)


@rule("real", "imag", "conj")
def complex_parts(m: Maker, op: str) -> None:
    x = m.pick("c")
    if x is not None:
        m.add(getattr(m.b, op)(x.value), x.bound, x.error, x.grid)


@rule("complex")
def make_complex(m: Maker) -> None:
    x = m.pick("f", where=lambda i: i.dtype.name in ("f32", "f64"))
    if x is not None:
        y = m.partner(x)
        m.add(m.b.complex(x.value, y.value), x.bound + y.bound, x.error + y.error, least_grid(x, y))
