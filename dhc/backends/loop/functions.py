"""Exact meanings of the scalar functions in terms of the primitive set that printers know (see `ir.py`).

This is the one place where rounding, NaN, overflow, division and shifts are decided, for every device alike. Values of
f16 and bf16 are held as f32 numbers that are exactly representable; i4 and u4 as i8 and u8 in range.
"""

from __future__ import annotations

from typing import Protocol

from dhc_runtime.errors import UnsupportedError

from dhc.backends.loop import elementary
from dhc.ir import scalar as s
from dhc.ir.dtypes import MINIFLOATS, SUB_BYTE, DType, bf16, boolean, f16, f32, f64, i8, i32, i64, u8, u32, u64
from dhc.ir.scalar import ScalarExpr

HALF = frozenset({f16, bf16})
LIBRARY = frozenset({"exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
                     "tanh", "asinh", "acosh", "atanh", "erf"})  # fmt: skip
_DIRECT_FLOAT = frozenset({"neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint"})


class Writer(Protocol):
    """What expansions write statements with."""

    def let(self, value: ScalarExpr) -> ScalarExpr:
        """Names a value (numbers and names stay as they are)."""

    def check(self, condition: ScalarExpr, code: int) -> None:
        """Makes the kernel return `code` unless the condition holds."""

    def repeat(self, count: int, initial: list[ScalarExpr], step: object) -> list[ScalarExpr]:
        """Runs `step(*values) -> values` a fixed number of times."""


def register(dtype: DType) -> DType:
    """The type in which a value of `dtype` is held; small floats are held as their bits."""
    if dtype in SUB_BYTE:
        return i8 if dtype.kind == "i" else u8
    return f32 if dtype in HALF else u8 if dtype in MINIFLOATS else dtype


def stored(dtype: DType) -> DType:
    """The element type of a buffer: small floats are bytes there."""
    return u8 if dtype in MINIFLOATS else dtype


def literal(e: s.Const) -> s.Const:
    """A literal in the type in which values of its dtype are held."""
    if e.dtype in MINIFLOATS:
        import numpy as np

        return s.Const(u8, int(np.float32(e.value).astype(e.dtype.numpy).view(np.uint8)))  # type: ignore[arg-type]
    return s.Const(register(e.dtype), e.value)


def _fit(value: ScalarExpr, dtype: DType) -> ScalarExpr:
    """Brings an arithmetic result of the register type back into the range or precision of `dtype`."""
    if dtype in HALF:
        return s.Cast(f32, s.Cast(dtype, value))
    if dtype in SUB_BYTE:
        unused = 8 - dtype.bits
        return (value << unused) >> unused if dtype.kind == "i" else value & ((1 << dtype.bits) - 1)
    return value


def unary(w: Writer, function: str, x: ScalarExpr, dtype: DType) -> ScalarExpr:
    """A function of UNARY on a real operand of logical type `dtype`, held in its register type."""
    held = x.dtype
    if function == "isnan":
        return x.ne(x) if held.is_float else s.const(False, boolean)
    if function == "isinf":
        return s.unary("abs", x).eq(float("inf")) if held.is_float else s.const(False, boolean)
    if function in ("real", "conj"):
        return x
    if function == "imag":
        return s.const(0, held)
    if function == "not":
        return s.binary("xor", x, True) if held == boolean else _fit(s.Binary(held, "xor", x, _ones(held)), dtype)
    if held == boolean:
        raise UnsupportedError(f"{function} of bool has no meaning", hint="cast to a number first")
    if function == "sign":
        return _sign(w.let(x))
    if not held.is_float:
        return _integer_unary(w, function, x, dtype)
    if function == "rsqrt":
        return _fit(s.lift(1.0, held) / s.Unary(held, "sqrt", x), dtype)
    if function in _DIRECT_FLOAT:
        return _fit(s.Unary(held, function, x), dtype)
    if held == f32 and function in elementary.EXPANSIONS:
        return _fit(elementary.EXPANSIONS[function](w.let(x), w.let), dtype)
    if function in LIBRARY:
        return _fit(s.Unary(held, function, x), dtype)
    raise UnsupportedError(f"no loop-level form of {function}")


def _ones(dtype: DType) -> ScalarExpr:
    return s.const(dtype.max if dtype.kind == "u" else -1, dtype)


def _sign(x: ScalarExpr) -> ScalarExpr:
    if x.dtype.kind == "u":
        return s.select(x.ne(0), s.const(1, x.dtype), 0)
    below = s.select(x < 0, s.const(-1, x.dtype), 0)
    if x.dtype.is_float:
        below = s.select(x < 0, s.const(-1, x.dtype), s.select(x.eq(0), s.const(0, x.dtype), x))
    return s.select(x > 0, s.const(1, x.dtype), below)


def _integer_unary(w: Writer, function: str, x: ScalarExpr, dtype: DType) -> ScalarExpr:
    held = x.dtype
    if function == "neg":
        return _fit(s.Binary(held, "sub", s.const(0, held), x), dtype)
    if function == "abs":
        if held.kind == "u":
            return x
        x = w.let(x)
        return _fit(s.select(x < 0, s.Binary(held, "sub", s.const(0, held), x), x), dtype)
    if function in ("floor", "ceil", "trunc", "rint"):
        return x
    raise UnsupportedError(f"{function} of {dtype} has no meaning", hint="cast to a float first")


def binary(w: Writer, function: str, a: ScalarExpr, b: ScalarExpr, dtype: DType, trusted: bool) -> ScalarExpr:
    """A function of BINARY or COMPARE on real operands of logical type `dtype`.

    `trusted`: index arithmetic, whose divisors are sizes: no check for division by zero.
    """
    held = a.dtype
    if function in s.COMPARE:
        return _compare(function, a, b)
    if held == boolean:
        if function in ("and", "or", "xor"):
            return s.Binary(boolean, function, a, b)
        if function in ("add", "max"):
            return s.Binary(boolean, "or", a, b)
        if function in ("mul", "min"):
            return s.Binary(boolean, "and", a, b)
        raise UnsupportedError(f"{function} of bool has no meaning", hint="cast to a number first")
    if function in ("add", "sub", "mul", "min", "max", "and", "or", "xor"):
        return _fit(s.Binary(held, function, a, b), dtype)
    if held.is_float:
        return _fit(_float_binary(w, function, a, b), dtype)
    if function in ("shl", "shr"):
        return _fit(_shift(w, function, a, b), dtype)
    if function == "pow":
        return _fit(_integer_power(w, a, b), dtype)
    return _fit(_divide(w, function, w.let(a), w.let(b), trusted), dtype)


def _compare(function: str, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr:
    if a.dtype == boolean and function not in ("eq", "ne"):
        a, b = s.Cast(u8, a), s.Cast(u8, b)
    return s.Binary(boolean, function, a, b)


def _float_binary(w: Writer, function: str, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr:
    held = a.dtype
    if function in ("div", "fmod", "pow"):
        return s.Binary(held, function, a, b)
    if function not in ("mod", "floordiv"):
        raise UnsupportedError(f"{function} of {held} has no meaning")
    # As Python and NumPy: the remainder has the sign of the divisor, also when it is zero.
    a, b = w.let(a), w.let(b)
    rest = w.let(s.Binary(held, "fmod", a, b))
    zero = s.select(b < 0, s.const(-0.0, held), s.const(0.0, held))
    opposite = s.Binary(boolean, "ne", b < 0, rest < 0)
    remainder = w.let(s.select(rest.eq(0), zero, s.select(opposite, rest + b, rest)))
    if function == "mod":
        return remainder
    moved = s.logical_and(rest.ne(0), opposite)
    quotient = w.let((a - rest) / b - s.select(moved, s.const(1.0, held), 0.0))
    whole = w.let(s.Unary(held, "floor", quotient))
    whole = w.let(s.select(quotient - whole > 0.5, whole + 1.0, whole))
    return s.select(b.eq(0), a / b, whole)


def _shift(w: Writer, function: str, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr:
    """Counts outside of 0 .. width-1 shift everything out; an arithmetic right shift then leaves the sign."""
    held, bits = a.dtype, a.dtype.bits
    if isinstance(b, s.Const) and 0 <= int(b.value) < bits:  # type: ignore[arg-type]
        return s.Binary(held, function, a, b)
    a, b = w.let(a), w.let(b)
    inside = b < bits if held.kind == "u" else s.logical_and(b >= 0, b < bits)
    if function == "shr" and held.kind == "i":
        return s.Binary(held, "shr", a, s.select(inside, b, s.const(bits - 1, held)))
    return s.select(inside, s.Binary(held, function, a, s.select(inside, b, s.const(0, held))), s.const(0, held))


def _divide(w: Writer, function: str, a: ScalarExpr, b: ScalarExpr, trusted: bool) -> ScalarExpr:
    held = a.dtype
    constant = int(b.value) if isinstance(b, s.Const) else None  # type: ignore[arg-type]
    if constant == 0 or (constant is None and not trusted):
        w.check(b.ne(0), 2)
    if constant == 0:
        return s.const(0, held)
    if held.kind == "u":
        return s.Binary(held, "div" if function in ("div", "floordiv") else "fmod", a, b)
    # The smallest number divided by -1 overflows, which stops x86 processors: -1 is handled apart.
    reverse = None
    if (constant is None and not trusted) or constant == -1:
        reverse = w.let(b.eq(-1))
        divisor = w.let(s.select(reverse, s.const(1, held), b))
    else:
        divisor = b
    if function in ("div", "floordiv"):
        quotient = w.let(s.Binary(held, "div", a, divisor))
        if function == "floordiv":
            rest = w.let(s.Binary(held, "sub", a, s.Binary(held, "mul", quotient, divisor)))
            down = s.logical_and(rest.ne(0), s.Binary(boolean, "ne", rest < 0, divisor < 0))
            quotient = w.let(s.Binary(held, "sub", quotient, s.select(down, s.const(1, held), 0)))
        return quotient if reverse is None else s.select(reverse, s.Binary(held, "sub", s.const(0, held), a), quotient)
    rest = w.let(s.Binary(held, "fmod", a, divisor))
    if function == "mod":
        up = s.logical_and(rest.ne(0), s.Binary(boolean, "ne", rest < 0, divisor < 0))
        rest = w.let(s.Binary(held, "add", rest, s.select(up, divisor, s.const(0, held))))
    return rest


def _integer_power(w: Writer, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr:
    """Repeated squaring, wrapping around; negative exponents give the truncated quotient (0, or ±1 for ±1)."""
    held = a.dtype
    a, b = w.let(a), w.let(b)
    exponent = b
    if held.kind == "i":
        exponent = w.let(s.select(b < 0, s.const(0, held), b))

    def step(total: ScalarExpr, base: ScalarExpr, rest: ScalarExpr) -> list[ScalarExpr]:
        odd = (rest & 1).ne(0)
        return [s.select(odd, total * base, total), base * base, rest >> 1]

    total = w.repeat(held.bits, [s.const(1, held), a, exponent], step)[0]
    if held.kind == "u":
        return total
    even = (b & 1).eq(0)
    inverse = s.select(a.eq(1), s.const(1, held), s.select(a.eq(-1), s.select(even, s.const(1, held), -1), 0))
    return s.select(b < 0, inverse, total)


def cast(w: Writer, x: ScalarExpr, source: DType, target: DType, saturate: bool) -> ScalarExpr:
    """Conversion between real types; float to integer always saturates, NaN becomes 0."""
    if source == target:
        return x
    held, wanted = x.dtype, register(target)
    if target == boolean:
        return x if held == boolean else x.ne(0)
    if held == boolean:
        return s.Cast(wanted, x)
    if target in HALF:
        if held == f64 and target == f16:
            x = _round_to_odd(w, w.let(x))
        elif held != f32:
            x = s.Cast(f32, x)
        return s.Cast(f32, s.Cast(target, x))
    if wanted.is_float:
        return x if held == wanted else s.Cast(wanted, x)
    if held.is_float:
        return _float_to_integer(w, w.let(x), wanted, target, saturate)
    if saturate:
        x = _clamp(x, target)
    return _fit(x if held == wanted else s.Cast(wanted, x), target)


def _float_to_integer(w: Writer, x: ScalarExpr, wanted: DType, target: DType, saturate: bool) -> ScalarExpr:
    """Truncates toward zero, saturating in any case: beyond the range the machine's own conversions differ."""
    held = x.dtype
    limits = target if saturate else wanted
    number = w.let(s.select(x.eq(x), x, s.const(0.0, held)))
    exact = limits.bits <= (24 if held == f32 else 53)
    if exact:  # the limits are numbers of the float type: clamp first, by way of i32 or i64, which vectorises
        inside = s.minimum(s.maximum(number, float(limits.min)), float(limits.max))
        step = i32 if limits.bits < 32 else i64
        return _fit(s.Cast(wanted, s.Cast(step, inside)) if wanted != step else s.Cast(step, inside), target)
    low, high = float(limits.min), float(2 ** (limits.bits - (limits.kind == "i")))
    below, above = w.let(number < low), w.let(number >= high)
    inside = s.select(s.binary("or", below, above), s.const(0.0, held), number)
    result = s.select(above, s.const(int(limits.max), wanted), s.Cast(wanted, inside))
    return s.select(below, s.const(int(limits.min), wanted), result)


def _clamp(x: ScalarExpr, target: DType) -> ScalarExpr:
    held = x.dtype
    if held.min < target.min:
        x = s.maximum(x, int(target.min))
    if held.max > target.max:
        x = s.minimum(x, int(target.max))
    return x


def _round_to_odd(w: Writer, x: ScalarExpr) -> ScalarExpr:
    """f64 to f32 such that rounding once more, to f16, gives the correctly rounded result."""
    near = w.let(s.Cast(f32, x))
    back = w.let(s.Cast(f64, near))
    bits = s.Bitcast(i32, near)
    toward_zero = s.select(s.unary("abs", back) > s.unary("abs", x), bits - 1, bits)
    return w.let(s.select(s.logical_and(back.ne(x), x.eq(x)), s.Bitcast(f32, toward_zero | 1), near))


def bitcast(x: ScalarExpr, source: DType, target: DType) -> ScalarExpr:
    """The bits of `x` as another type of the same width."""
    if source == target or source in MINIFLOATS or target in MINIFLOATS:
        return x  # small floats are held as their bits, u8
    if source == boolean:
        return s.Cast(target, x)
    if target == boolean:
        return x.ne(0)
    bits = s.Cast(source, x) if source in HALF else x
    return s.Cast(f32, s.Bitcast(target, bits)) if target in HALF else s.Bitcast(register(target), bits)


def philox(w: Writer, key: ScalarExpr, counter: ScalarExpr) -> list[ScalarExpr]:
    """The four words of Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC'11)."""

    def low(x: ScalarExpr) -> ScalarExpr:
        return s.Cast(u32, x)

    def high(x: ScalarExpr) -> ScalarExpr:
        return s.Cast(u32, s.Binary(u64, "shr", x, s.const(32, u64)))

    def wide(x: ScalarExpr) -> ScalarExpr:
        return x if x.dtype == u64 else s.Cast(u64, x)

    key, counter = w.let(wide(key)), w.let(wide(counter))
    c = [w.let(low(counter)), w.let(high(counter)), s.const(0, u32), s.const(0, u32)]
    k0, k1 = w.let(low(key)), w.let(high(key))
    for turn in range(10):
        first = w.let(wide(c[0]) * s.const(0xD2511F53, u64))
        second = w.let(wide(c[2]) * s.const(0xCD9E8D57, u64))
        round0 = k0 if turn == 0 else s.Binary(u32, "add", k0, s.const(0x9E3779B9 * turn & 0xFFFFFFFF, u32))
        round1 = k1 if turn == 0 else s.Binary(u32, "add", k1, s.const(0xBB67AE85 * turn & 0xFFFFFFFF, u32))
        c = [w.let(high(second) ^ c[1] ^ round0), w.let(low(second)), w.let(high(first) ^ c[3] ^ round1),
             w.let(low(first))]  # fmt: skip
    return c


def index_of(w: Writer, index: ScalarExpr, extent: ScalarExpr) -> ScalarExpr:
    """A checked index: negative ones count from the end."""
    index = w.let(index)
    resolved = w.let(s.select(index < 0, s.Binary(i64, "add", index, extent), index))
    w.check(s.logical_and(resolved >= 0, resolved < extent), 1)
    return resolved
