"""exp, tanh, erf and relatives on f32 vectors with fused multiply-adds, for kernels that spend their time there.

The definitions of `dhc.backends.loop.elementary` give the same bits on every device; these take about half the
instructions, or a third. Errors are below 2 units in the last place for exp and below 6 for the others; NaN stays NaN.
The coefficients are weighted minimax fits (Lawson's iteration).
"""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.llvm.builder import Function, Value

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits
_ROUND_BITS = 0x4B400000
_EXP = (0.4999999403953552, 0.1666651964187622, 0.041668396443128586, 0.008368796668946743, 0.0013814433477818966)
_LOWEST, _HIGHEST = -86.6, 88.3
_EXP2 = (1.0, 0.6931469825, 0.2402224237, 0.0555073426, 0.0096715127, 0.0013264687)  # of 2^r for |r| <= 1/2
_TANH_P = (
    *(1.0, 0.1308315396308899, 0.0031029984820634127, 1.1144227755721658e-05),
    *(-2.0183856364042185e-08, 5.257727586638339e-11, -8.435918250841029e-14),
)
_TANH_Q = (1.0, 0.4641648232936859, 0.02449136972427368, 0.00025447472580708563)
_TANH_BOUND = 9.0
_ERF_P = (
    *(1.1283791065216064, 0.2008076012134552, 0.05068938434123993, 0.0037368417251855135),
    *(0.00014249503146857023, -1.955375182660646e-06, 1.9815137974887875e-08),
)
_ERF_Q = (1.0, 0.5112926959991455, 0.11536235362291336, 0.01442702952772379, 0.0009639202617108822)
_ERF_BOUND = 3.93


def bounded(f: Function, x: Value, low: float, high: float) -> Value:
    """``x`` within two bounds; NaN stays NaN."""
    least, most = f.constant(low, x.type), f.constant(high, x.type)
    x = f.select(f.compare("olt", x, least), least, x)
    return f.select(f.compare("ogt", x, most), most, x)


def _horner(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    total = f.constant(coefficients[-1], x.type)
    for coefficient in reversed(coefficients[:-1]):
        total = f.fma(total, x, f.constant(coefficient, x.type))
    return total


def _reduced(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """e^x as 2^n times a number near 1: that number, n, and n in the low bits of another."""
    kind = x.type
    shifted = f.fma(x, f.constant(_LOG2_E, kind), f.constant(_ROUND, kind))
    n = f.binary("fsub", shifted, f.constant(_ROUND, kind))
    r = f.fma(n, f.constant(-_LN2_HIGH, kind), x)
    r = f.fma(n, f.constant(-_LN2_LOW, kind), r)
    tail = _horner(f, r, _EXP)
    mantissa = f.fma(tail, f.binary("fmul", r, r), f.binary("fadd", r, f.constant(1.0, kind)))
    return mantissa, n, f.emit(_integers(x), f"bitcast {kind} {shifted.ref} to {_integers(x)}")


def _scales(f: Function, x: Value) -> bool:
    """Whether one instruction multiplies by a power of two over the whole range."""
    return "avx512f" in f.module.target.features and x.type == "<16 x float>"


def _scaled(f: Function, x: Value, n: Value) -> Value:
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    symbol = f.module.declare(name, x.type, [x.type, x.type, x.type, "i16", "i32"])
    return f.emit(
        x.type, f"call {x.type} {symbol}({x.type} {x.ref}, {x.type} {n.ref}, {x.type} {x.ref}, i16 -1, i32 4)"
    )


def _integers(x: Value) -> str:
    return f"<{x.type[1:-1].split(' x ')[0]} x i32>"


def _whole(f: Function, op: str, x: Value, number: int) -> Value:
    """An operation of every lane with one integer."""
    lanes = x.type[1:-1].split(" x ")[0]
    literal = "<" + ", ".join([f"i32 {number}"] * int(lanes)) + ">"
    return f.emit(x.type, f"{op} {x.type} {x.ref}, {literal}")


def _exp_within(f: Function, x: Value) -> Value:
    """Computes e^x for ``_LOWEST <= x <= _HIGHEST``: the power is added to the exponent."""
    mantissa, n, power = _reduced(f, x)
    if _scales(f, x):
        return _scaled(f, mantissa, n)
    bits = power.type
    # The whole number in the low bits goes to the exponent; the bits of the constant that was added shift out.
    power = _whole(f, "shl", power, 23)
    whole = f.emit(bits, f"bitcast {x.type} {mantissa.ref} to {bits}")
    whole = f.emit(bits, f"add {bits} {whole.ref}, {power.ref}")
    return f.emit(x.type, f"bitcast {bits} {whole.ref} to {x.type}")


def exp(f: Function, x: Value) -> Value:
    """e^x over the whole range, denormal results and infinity included: scaled in two steps."""
    mantissa, n, power = _reduced(f, bounded(f, x, -105.0, 90.0))
    if _scales(f, x):
        return _scaled(f, mantissa, n)
    bits = power.type
    power = _whole(f, "sub", power, _ROUND_BITS)
    half = _whole(f, "ashr", power, 1)
    for part in (half, f.emit(bits, f"sub {bits} {power.ref}, {half.ref}")):
        scale = _whole(f, "shl", _whole(f, "add", part, 127), 23)
        mantissa = f.binary("fmul", mantissa, f.emit(x.type, f"bitcast {bits} {scale.ref} to {x.type}"))
    return mantissa


def exp_of_difference(f: Function, x: Value) -> Value:
    """e^x for x that is not positive (an element less the largest): 0 far below, NaN for NaN."""
    if _scales(f, x):
        least = f.constant(-105.0, x.type)
        mantissa, n, _ = _reduced(f, f.select(f.compare("olt", x, least), least, x))
        return _scaled(f, mantissa, n)
    least = f.constant(_LOWEST, x.type)
    under = f.compare("olt", x, least)
    found = _exp_within(f, f.select(under, least, x))
    found = f.select(under, f.constant(0.0, x.type), found)
    return f.select(f.compare("uno", x, x), x, found)


def logistic_divisor(f: Function, x: Value) -> Value:
    """``1 + e^-x`` over the whole range, infinity included; where e^-x is huge, its error grows to 12 units."""
    kind, one = x.type, f.constant(1.0, x.type)
    if not _scales(f, x):
        return f.binary("fadd", exp(f, f.emit(kind, f"fneg {kind} {x.ref}")), one)
    within = bounded(f, x, -90.0, 105.0)
    shifted = f.fma(within, f.constant(-_LOG2_E, kind), f.constant(_ROUND, kind))
    n = f.binary("fsub", shifted, f.constant(_ROUND, kind))
    r = f.fma(within, f.constant(-_LOG2_E, kind), f.emit(kind, f"fneg {kind} {n.ref}"))
    return f.binary("fadd", _scaled(f, _horner(f, r, _EXP2), n), one)


def one_plus_exp_of_minus(f: Function, x: Value) -> Value:
    """``1 + e^-x``, the reciprocal of the logistic function; bounded by e^40, so that products stay finite."""
    minus = f.emit(x.type, f"fneg {x.type} {x.ref}")
    found = f.binary("fadd", _exp_within(f, bounded(f, minus, -40.0, 40.0)), f.constant(1.0, x.type))
    if _scales(f, x):
        return found  # NaN goes through
    return f.select(f.compare("uno", x, x), x, found)


def tanh_parts(f: Function, x: Value) -> tuple[Value, Value]:
    """Numerator and denominator of tanh x; the denominator is between 1 and 300."""
    x = bounded(f, x, -_TANH_BOUND, _TANH_BOUND)
    square = f.binary("fmul", x, x)
    return f.binary("fmul", x, _horner(f, square, _TANH_P)), _horner(f, square, _TANH_Q)


def tanh(f: Function, x: Value) -> Value:
    """The hyperbolic tangent."""
    return _one_beyond(f, x, _TANH_BOUND, f.binary("fdiv", *tanh_parts(f, x)))


def _one_beyond(f: Function, x: Value, bound: float, within: Value) -> Value:
    """Exactly 1 and -1 from a bound on."""
    over = f.compare("oge", x, f.constant(bound, x.type))
    under = f.compare("ole", x, f.constant(-bound, x.type))
    return f.select(under, f.constant(-1.0, x.type), f.select(over, f.constant(1.0, x.type), within))


def erf(f: Function, x: Value) -> Value:
    """The error function."""
    inside = bounded(f, x, -_ERF_BOUND, _ERF_BOUND)
    square = f.binary("fmul", inside, inside)
    found = f.binary("fdiv", f.binary("fmul", inside, _horner(f, square, _ERF_P)), _horner(f, square, _ERF_Q))
    return _one_beyond(f, x, _ERF_BOUND, found)
