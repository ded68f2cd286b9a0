"""Floats of 8 and 4 bits: storage formats, computed with in f32.

One table of formats gives both directions as NumPy code (the reference) and as scalar expressions on the raw bits (what
devices run). Source: Micikevicius et al., FP8 Formats for Deep Learning (2022); OCP Microscaling Formats 1.0; the
conversion rules are those of the ONNX Cast operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, f4e2m1, f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0, f32, i32, u8


@dataclass(frozen=True)
class Format:
    """Layout of a small float with a sign bit.

    Attributes:
        exponent: bits of the exponent.
        mantissa: bits of the mantissa.
        bias: of the exponent.
        largest: code of the largest finite value.
        overflow: code (without sign) that values beyond it get when they do not saturate.
        nan_code: what NaN is stored as (f4e2m1 has none: -0, as ml_dtypes does).
        signed_zero: whether -0 exists.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    overflow: int
    nan_code: int
    signed_zero: bool = True

    @property
    def sign_shift(self) -> int:
        """Position of the sign bit."""
        return self.exponent + self.mantissa


FORMATS: dict[DType, Format] = {
    f8e4m3fn: Format(4, 3, 7, 0x7E, 0x7F, 0x7F),
    f8e4m3fnuz: Format(4, 3, 8, 0x7F, 0x80, 0x80, signed_zero=False),
    f8e5m2: Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    f8e5m2fnuz: Format(5, 2, 16, 0x7F, 0x80, 0x80, signed_zero=False),
    f4e2m1: Format(2, 1, 1, 0x7, 0x7, 0x8),
}
ROUNDINGS = ("up", "down", "nearest")
"""How f8e8m0, which has powers of two only, rounds what lies between: away from zero, towards it, to the nearer one."""


def decode(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Small floats as f32 (exact)."""
    return x.astype(np.float32)


def encode(x: np.ndarray[Any, Any], target: DType, saturate: bool = True, rounding: str = "up") -> np.ndarray[Any, Any]:
    """f32 numbers as small floats: nearest, halves to even; too large ones saturate or become infinite or NaN."""
    with np.errstate(all="ignore"):
        x = np.asarray(x, np.float32)
        if target == f8e8m0:
            return _encode_power(x, saturate, rounding).view(target.numpy)
        stored = x.astype(target.numpy)
        if saturate and target != f4e2m1:
            limit = np.float32(target.max)
            stored = np.where(np.isnan(x), stored, np.clip(x, -limit, limit).astype(target.numpy))
        canonical = np.array(FORMATS[target].nan_code, np.uint8).view(target.numpy)
        return np.where(np.isnan(x), canonical, stored).astype(target.numpy)


def _encode_power(x: np.ndarray[Any, Any], saturate: bool, rounding: str) -> np.ndarray[Any, Any]:
    """The biased exponent; negative numbers lose their sign, as ONNX's own conversion does."""
    bits = x.view(np.uint32)
    code = ((bits >> 23) & 0xFF).astype(np.int32)
    mantissa = (bits & 0x7FFFFF).astype(np.int64)
    special = code == 0xFF
    if rounding == "up":
        code = code + (mantissa > 0)
    elif rounding == "nearest":
        # Halves go up, except below the smallest power of two.
        code = code + ((mantissa > 0x400000) | ((mantissa == 0x400000) & (code > 0)))
    code = np.where(special, 0xFF, np.clip(code, 0, 0xFE if saturate else 0xFF))
    return code.astype(np.uint8)


def decode_expr(x: s.ScalarExpr) -> s.ScalarExpr:
    """One element as f32, from its raw bits."""
    bits = s.cast(s.Bitcast(u8, x), i32)
    if x.dtype == f8e8m0:
        normal = s.select(bits.eq(0), s.const(0x00400000, i32), bits << 23)
        return s.Bitcast(f32, s.select(bits.eq(0xFF), s.const(0x7FC00000, i32), normal))
    form = FORMATS[x.dtype]
    magnitude = bits & ((1 << form.sign_shift) - 1)
    exponent = magnitude >> form.mantissa
    fraction = magnitude & ((1 << form.mantissa) - 1)
    shifted = ((exponent + (127 - form.bias)) << 23) | (fraction << (23 - form.mantissa))
    small = s.cast(fraction, f32) * 2.0 ** (1 - form.bias - form.mantissa)
    value = s.select(exponent.eq(0), small, s.Bitcast(f32, shifted))
    if x.dtype == f8e5m2:
        endless = s.select(fraction.eq(0), s.const(float("inf"), f32), s.const(float("nan"), f32))
        value = s.select(exponent.eq(31), endless, value)
    elif x.dtype == f8e4m3fn:
        value = s.select(magnitude.eq(0x7F), s.const(float("nan"), f32), value)
    signed = s.select((bits >> form.sign_shift).ne(0), -value, value)
    if not form.signed_zero:
        signed = s.select(bits.eq(0x80), s.const(float("nan"), f32), signed)
    return signed


def encode_expr(x: s.ScalarExpr, target: DType, saturate: bool = True, rounding: str = "up") -> s.ScalarExpr:
    """One f32 as a small float, by integer arithmetic on its bits."""
    raw = s.Bitcast(i32, x)
    if target == f8e8m0:
        return s.Bitcast(target, s.cast(_power_expr(raw, saturate, rounding), u8))
    form = FORMATS[target]
    magnitude = raw & 0x7FFFFFFF
    drop = 23 - form.mantissa
    # Nearest, halves to even: add half of the last place, minus one where the kept part is even.
    rounded = (magnitude + (((magnitude >> drop) & 1) + ((1 << (drop - 1)) - 1))) >> drop
    normal = rounded - ((127 - form.bias) << form.mantissa)
    absolute = s.Bitcast(f32, magnitude)
    small = s.cast(s.unary("rint", absolute * 2.0 ** (form.bias - 1 + form.mantissa)), i32, saturate=True)
    code = s.select(absolute < 2.0 ** (1 - form.bias), small, normal)
    limit = form.largest if saturate or target == f4e2m1 else form.overflow
    code = s.select(code > form.largest, s.const(limit, i32), code)
    negative = raw < 0
    with_sign = s.select(negative, code | (1 << form.sign_shift), code)
    if not form.signed_zero:
        with_sign = s.select(code.eq(0), s.const(0, i32), with_sign)
        with_sign = s.select(code.eq(form.overflow), s.const(form.overflow, i32), with_sign)
    result = s.select(magnitude > 0x7F800000, s.const(form.nan_code, i32), with_sign)
    return s.Bitcast(target, s.cast(result, u8))


def _power_expr(raw: s.ScalarExpr, saturate: bool, rounding: str) -> s.ScalarExpr:
    code = (raw >> 23) & 0xFF
    mantissa = raw & 0x7FFFFF
    one, zero = s.const(1, i32), s.const(0, i32)
    if rounding == "up":
        step = s.select(mantissa > 0, one, zero)
    elif rounding == "nearest":
        half = s.select(mantissa.eq(0x400000), s.select(code > 0, one, zero), zero)
        step = s.select(mantissa > 0x400000, one, half)
    else:
        step = zero
    bounded = s.minimum(code + step, 0xFE if saturate else 0xFF)
    return s.select(code.eq(0xFF), s.const(0xFF, i32), bounded)
