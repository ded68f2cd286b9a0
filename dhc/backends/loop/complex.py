"""Complex arithmetic on pairs of real parts."""

from __future__ import annotations

from dataclasses import dataclass

from dhc_runtime.errors import UnsupportedError

from dhc.backends.loop.functions import Writer
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, boolean, c64, f32, f64
from dhc.ir.scalar import ScalarExpr


@dataclass(frozen=True)
class Pair:
    """A complex value as its parts."""

    re: ScalarExpr
    im: ScalarExpr


def part_dtype(dtype: DType) -> DType:
    """The real type of the parts."""
    return f32 if dtype == c64 else f64


def literal(value: complex, dtype: DType) -> Pair:
    """A constant."""
    part = part_dtype(dtype)
    value = complex(value)
    return Pair(s.const(value.real, part), s.const(value.imag, part))


def unary(w: Writer, function: str, x: Pair) -> Pair | ScalarExpr:
    """A function of UNARY."""
    if function == "real":
        return x.re
    if function == "imag":
        return x.im
    if function == "conj":
        return Pair(x.re, -x.im)
    if function == "neg":
        return Pair(-x.re, -x.im)
    if function == "abs":
        return _magnitude(w, x)
    if function in ("isnan", "isinf"):
        kind = _is_nan if function == "isnan" else _is_inf
        return s.binary("or", kind(x.re), kind(x.im))
    raise UnsupportedError(f"{function} of complex numbers has no definition")


def _is_nan(x: ScalarExpr) -> ScalarExpr:
    return x.ne(x)


def _is_inf(x: ScalarExpr) -> ScalarExpr:
    return s.unary("abs", x).eq(float("inf"))


def _magnitude(w: Writer, x: Pair) -> ScalarExpr:
    """sqrt(re² + im²) without overflow: scaled by the larger part; infinite when a part is, even beside NaN."""
    re, im = w.let(s.unary("abs", x.re)), w.let(s.unary("abs", x.im))
    large = w.let(s.maximum(re, im))
    ratio = w.let(s.minimum(re, im) / large)
    size = w.let(large * s.unary("sqrt", ratio * ratio + 1.0))
    infinity = s.const(float("inf"), re.dtype)
    infinite = s.binary("or", re.eq(float("inf")), im.eq(float("inf")))
    return w.let(s.select(infinite, infinity, s.select(large.eq(0.0), large, size)))


def binary(w: Writer, function: str, a: Pair, b: Pair) -> Pair | ScalarExpr:
    """A function of BINARY or COMPARE."""
    if function == "eq":
        return s.Binary(boolean, "and", a.re.eq(b.re), a.im.eq(b.im))
    if function == "ne":
        return s.Binary(boolean, "or", a.re.ne(b.re), a.im.ne(b.im))
    if function in ("add", "sub"):
        return Pair(s.binary(function, a.re, b.re), s.binary(function, a.im, b.im))
    a, b = _named(w, a), _named(w, b)
    if function == "mul":
        return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)
    if function == "div":
        return _quotient(w, a, b)
    raise UnsupportedError(f"{function} of complex numbers has no definition")


def _named(w: Writer, x: Pair) -> Pair:
    return Pair(w.let(x.re), w.let(x.im))


def _quotient(w: Writer, a: Pair, b: Pair) -> Pair:
    """Smith's method (1962): scaled by the larger part of the divisor."""
    wide = w.let(s.unary("abs", b.re) >= s.unary("abs", b.im))
    large = w.let(s.select(wide, b.re, b.im))
    small = w.let(s.select(wide, b.im, b.re))
    both_zero = w.let(large.eq(0.0))
    ratio = w.let(s.select(both_zero, s.const(0.0, large.dtype), small / large))
    scale = w.let(1.0 / (large + small * ratio))
    re = s.select(wide, a.re + a.im * ratio, a.re * ratio + a.im) * scale
    im = s.select(wide, a.im - a.re * ratio, a.im * ratio - a.re) * scale
    zero = s.unary("abs", large)
    return Pair(s.select(both_zero, a.re / zero, re), s.select(both_zero, a.im / zero, im))
