"""Conversions of element types against Python's exact numbers and against bit-level rounding."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from dhc.errors import TypeMismatchError
from dhc.ir import dtypes as dt
from tests.ir.single_op import run_onnx, run_op


def _bf16_bits(value: float) -> int:
    """Rounds f32 to bf16 by hand: to the nearest, halves to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if math.isnan(value):
        return (bits >> 16) | 0x40
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def test_bf16_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32)])
    x = np.concatenate([x[np.isfinite(x)], np.float32([1.00390625, 1.01171875, 3.4e38, np.inf, -np.inf])])
    got = run_op("cast", x, dtype="bf16")
    np.testing.assert_array_equal(got.view(np.uint16), [_bf16_bits(float(v)) for v in x])


def test_f16_rounds_to_nearest_even() -> None:
    x = np.float32([2049, 2051, 65519.99, 65520, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 1.5 * 2**-24])
    np.testing.assert_array_equal(
        run_op("cast", x, dtype="f16"), np.float16([2048, 2052, 65504, np.inf, 1, 1 + 2**-9, 0, 2**-23])
    )
    # Doubles go through f32: this one lies above a half only beyond f32's precision.
    assert run_op("cast", np.float64([1 + 2**-11 + 2**-40]), dtype="f16") == 1


@pytest.mark.parametrize("target", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "i4", "u4"])
@pytest.mark.parametrize("source", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_to_integers_truncate_and_saturate(source: type, target: str) -> None:
    kind = dt.dtype(target)
    raw = [0.0, 0.99, -0.99, 1.5, -1.5, 2.5, 7.9, 15.5, 127.4, 128.0, -128.9, 255.5, 256.0, 3e4, -4e4]
    raw += [math.inf, -math.inf]
    if source in (np.float32, np.float64):
        raw += [2.0**31, 2.0**31 - 128, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 2.0**64, 1e30]
    x = np.array(raw).astype(source)

    def truth(value: float) -> int:
        if math.isinf(value):
            return int(kind.max if value > 0 else kind.min)
        return max(int(kind.min), min(int(kind.max), math.trunc(Fraction(value))))

    got = run_op("cast", x, dtype=target)
    assert got.dtype == kind.numpy
    assert [int(v) for v in got] == [truth(float(v)) for v in x.astype(np.float64)]
    assert run_op("cast", np.array([np.nan]).astype(source), dtype=target) == 0


@pytest.mark.parametrize("target", ["i8", "u8", "i16", "u32", "i64", "u64", "i4", "u4"])
def test_integers_to_integers_wrap_around(target: str) -> None:
    kind = dt.dtype(target)
    values = [0, 1, -1, 7, 8, -9, 127, 128, 255, 256, -(2**63), 2**63 - 1, 2**40 + 5]
    got = run_op("cast", np.array(values, np.int64), dtype=target)

    def truth(value: int) -> int:
        low = value & ((1 << kind.bits) - 1)
        return low - (1 << kind.bits) if kind.kind == "i" and low >> (kind.bits - 1) else low

    assert [int(v) for v in got] == [truth(v) for v in values]


def test_bools() -> None:
    x = np.float32([0, -0.0, 0.1, np.nan, -3])
    np.testing.assert_array_equal(run_op("cast", x, dtype="bool"), [False, False, True, True, True])
    np.testing.assert_array_equal(run_op("cast", np.array([True, False]), dtype="f16"), np.float16([1, 0]))
    np.testing.assert_array_equal(run_op("cast", np.complex64([0, 1j]), dtype="bool"), [False, True])


def test_large_integers_to_floats_round_to_nearest() -> None:
    values = np.int64([2**24 + 1, 2**53 + 1, -(2**53) - 3, 2**63 - 1])
    np.testing.assert_array_equal(run_op("cast", values, dtype="f64"), [float(int(v)) for v in values])
    assert run_op("cast", values[:1], dtype="f32") == 2.0**24


def test_complex_to_real_is_refused() -> None:
    with pytest.raises(TypeMismatchError, match="take real, imag or abs"):
        run_op("cast", np.complex64([1j]), dtype="f32")
    np.testing.assert_array_equal(run_op("cast", np.float32([2]), dtype="c128"), np.complex128([2]))


@pytest.mark.parametrize("target", ["f32", "f64", "f16", "i32", "i64", "u8", "bool"])
@pytest.mark.parametrize("source", [np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
def test_against_onnxruntime(source: type, target: str) -> None:
    import onnx

    numbers = [0, 1, 2, 100, 3] if source in (np.uint8, np.bool_) else [0, 1, -2, 100, 3]
    x = np.array(numbers).astype(source)
    kind = dt.dtype(target).numpy
    if kind.kind == "u":
        x = np.abs(x.astype(np.float64)).astype(source)
    to = onnx.helper.np_dtype_to_tensor_dtype(kind)
    np.testing.assert_array_equal(run_op("cast", x, dtype=target), run_onnx("Cast", [x], to=to)[0])


def test_bitcast_keeps_the_bits() -> None:
    x = np.float32([1, -2, np.nan])
    bits = run_op("bitcast", x, dtype="u32")
    assert bits.tolist() == [struct.unpack("<I", struct.pack("<f", v))[0] for v in x]
    np.testing.assert_array_equal(run_op("bitcast", bits, dtype="f32"), x)
    with pytest.raises(TypeMismatchError, match="f32 has 32 bits, f64 has 64"):
        run_op("bitcast", x, dtype="f64")


def test_complex_parts() -> None:
    z = np.complex128([1 + 2j, -3.5j])
    np.testing.assert_array_equal(run_op("real", z), [1, 0])
    np.testing.assert_array_equal(run_op("imag", z), [2, -3.5])
    np.testing.assert_array_equal(run_op("conj", z), [1 - 2j, 3.5j])
    built = run_op("complex", np.float32([[np.inf], [1]]), np.float32([2, -np.inf]))
    assert built.dtype == np.complex64 and built.shape == (2, 2)
    assert (built[0, 1].real, built[0, 1].imag) == (np.inf, -np.inf)
