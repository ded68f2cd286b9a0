"""exp, log, tanh, erf and relatives in f32 as branch-free polynomials, so that loops over them vectorise.

Each takes and gives primitive scalar expressions; `let` names an intermediate value. No fused multiply-add is assumed
and none is made: results are the same bits on every device with IEEE arithmetic. Errors are below 2 units in the last
place over the whole range, infinities, NaN, zeros and denormals included (tested exhaustively on a sample). The
coefficients are weighted minimax fits (Lawson's iteration) of the functions named beside them.

f64 and the functions that are not here go to the C library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dhc.ir import scalar as s
from dhc.ir.dtypes import f32, i32
from dhc.ir.scalar import ScalarExpr

Let = Callable[[ScalarExpr], ScalarExpr]

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; the first has 9 significant bits
_LOG2_E = 1.4426950408889634
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits
_ROUND_BITS = 0x4B400000
_EXP = (0.5, 0.1666666567325592, 0.04166628047823906, 0.00833350419998169, 0.0013945753453299403, 0.00019789271755144)
_EXPM1 = (0.5, 0.1666666716337204, 0.0416666679084301, 0.008333125151693821, 0.0013888514367863536,
          0.0001997940125875175, 2.4977081920951605e-05)  # fmt: skip
_LOG = (0.3333331048488617, -0.24999985098838806, 0.20002272725105286, -0.1666935682296753, 0.14217710494995117,
        -0.12381809204816818, 0.11877954006195068, -0.11807854473590851, 0.06925775110721588)  # fmt: skip
_TANH = (-0.3333333134651184, 0.13333195447921753, -0.053945258259773254, 0.021691927686333656,
         -0.00815457385033369, 0.0021211637649685144)  # fmt: skip
_ERF = (0.12837916612625122, -0.37612634897232056, 0.11283694207668304, -0.026859275996685028, 0.005200648680329323,
        -0.0008137602126225829, 8.345917740371078e-05)  # fmt: skip
_ERFC = (-0.000153384156874381, 1.1293970346450806, 0.6336272954940796, 0.10790573805570602, -0.024812821298837662,
         0.004013409838080406, -0.00038478962960653007, 1.2330696335993707e-05, 6.627604420827993e-07)  # fmt: skip


def _polynomial(x: ScalarExpr, coefficients: Sequence[float], let: Let) -> ScalarExpr:
    """Horner's rule, lowest coefficient first."""
    total: ScalarExpr = s.const(coefficients[-1], f32)
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return let(total)


def _bits(x: ScalarExpr) -> ScalarExpr:
    return s.Bitcast(i32, x)


def _from_bits(x: ScalarExpr) -> ScalarExpr:
    return s.Bitcast(f32, x)


def _power_of_two(n: ScalarExpr) -> ScalarExpr:
    """Computes 2^n for -126 <= n <= 127."""
    return _from_bits((n + 127) << 23)


def exp(x: ScalarExpr, let: Let) -> ScalarExpr:
    """Computes 2^n · e^r, r = x - n·ln 2; scaled in two steps, so that the last rounding is right for denormals."""
    bounded = let(s.minimum(s.maximum(x, -105.0), 90.0))
    rounded = let(bounded * _LOG2_E + _ROUND)
    n = let(rounded - _ROUND)
    r = let((bounded - n * _LN2_HIGH) - n * _LN2_LOW)
    mantissa = let(_polynomial(r, _EXP, let) * (r * r) + r + 1.0)
    # NaN gives wild bits here: the shifts keep them harmless, and NaN times anything is NaN.
    whole = let(_bits(rounded) - _ROUND_BITS)
    half = let(whole >> 1)
    return let(mantissa * _power_of_two(half) * _power_of_two(whole - half))


def expm1(x: ScalarExpr, let: Let) -> ScalarExpr:
    """A polynomial near zero, e^x - 1 elsewhere."""
    near = let(_polynomial(x, _EXPM1, let) * (x * x) + x)
    small = s.unary("abs", x) < 0.5
    return let(s.select(small, s.select(x.eq(0.0), x, near), exp(x, let) - 1.0))


def log(x: ScalarExpr, let: Let) -> ScalarExpr:
    """With x = 2^e·(1 + m), 1 + m in [sqrt 1/2, sqrt 2]: e·ln 2 + log1p of m by a polynomial."""
    tiny = let(x < 1.1754943508222875e-38)
    scaled = let(_bits(s.select(tiny, x * 8388608.0, x)))
    # Adding the bits of 1 - sqrt(1/2) moves the split of exponent and mantissa to sqrt(1/2).
    moved = let(scaled + 0x004AFB0D)
    exponent = let((moved >> 23) - 127)
    m = let(_from_bits((moved & 0x007FFFFF) + 0x3F3504F3) - 1.0)
    e = let(s.cast(exponent, f32) - s.select(tiny, s.const(23.0, f32), 0.0))
    square = let(m * m)
    tail = let(_polynomial(m, _LOG, let) * m * square + e * _LN2_LOW - square * 0.5)
    finite = let(m + tail + e * _LN2_HIGH)
    infinite = s.const(float("inf"), f32)
    below = s.select(x.eq(0.0), s.const(float("-inf"), f32), s.const(float("nan"), f32))
    return let(s.select(x > 0.0, s.select(x.eq(infinite), infinite, finite), below))


def log1p(x: ScalarExpr, let: Let) -> ScalarExpr:
    """Takes log(u) + c / u, where u = 1 + x rounded and c is what the rounding lost."""
    u = let(x + 1.0)
    lost = s.select(x >= 1.0, 1.0 - (u - x), x - (u - 1.0))
    of_u = log(u, let)
    special = s.binary("or", u.eq(0.0), s.unary("abs", u).eq(float("inf")))
    return let(s.select(u.eq(1.0), x, s.select(special, of_u, of_u + lost / u)))


def _with_sign(magnitude: ScalarExpr, sign: ScalarExpr) -> ScalarExpr:
    return _from_bits((_bits(magnitude) & 0x7FFFFFFF) | (_bits(sign) & -0x80000000))


def tanh(x: ScalarExpr, let: Let) -> ScalarExpr:
    """A polynomial near zero, 1 - 2 / (e^2|x| + 1) elsewhere."""
    square = let(x * x)
    near = let(_polynomial(square, _TANH, let) * square * x + x)
    size = let(s.unary("abs", x))
    far = let(1.0 - 2.0 / (exp(size * 2.0, let) + 1.0))
    return let(s.select(size < 0.625, s.select(x.eq(0.0), x, near), _with_sign(far, x)))


def erf(x: ScalarExpr, let: Let) -> ScalarExpr:
    """A polynomial near zero, 1 - e^-p(|x|) elsewhere."""
    square = let(x * x)
    near = let(_polynomial(square, _ERF, let) * x + x)
    size = let(s.unary("abs", x))
    bounded = let(s.minimum(size, 4.0))
    far = let(1.0 - exp(-_polynomial(bounded, _ERFC, let), let))
    return let(s.select(size < 0.93, near, _with_sign(far, x)))


EXPANSIONS: dict[str, Callable[[ScalarExpr, Let], ScalarExpr]] = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "tanh": tanh, "erf": erf,
}  # fmt: skip
