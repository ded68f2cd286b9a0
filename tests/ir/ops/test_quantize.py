"""Quantization against onnxruntime and against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dhc.errors import ShapeError
from dhc.ir import dtypes as dt
from tests.ir.single_op import run_onnx, run_op

STORED = [np.uint8, np.int8, np.uint16, np.int16]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_against_onnxruntime(stored: type, axis: int | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-300, 300, (3, 4, 5)).astype(np.float32)
    shape = () if axis is None else (x.shape[axis],)
    scale = rng.uniform(0.05, 3, shape).astype(np.float32)
    zero_point = rng.integers(0, 100, shape).astype(stored)
    attrs = {} if axis is None else {"axis": axis}
    (wanted,) = run_onnx("QuantizeLinear", [x, scale, zero_point], **attrs)
    got = run_op("quantize", x, scale, zero_point, **attrs)
    assert got.dtype == stored
    np.testing.assert_array_equal(got, wanted)
    (back,) = run_onnx("DequantizeLinear", [got, scale, zero_point], **attrs)
    np.testing.assert_array_equal(run_op("dequantize", got, scale, zero_point, **attrs), back)


def test_halves_round_to_even_and_limits_hold() -> None:
    x = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 1e9, -1e9, np.inf, -np.inf, np.nan])
    got = run_op("quantize", x, np.float32(1), np.int8(0))
    np.testing.assert_array_equal(got, [-2, -2, 0, 0, 2, 2, 127, -128, 127, -128, 0])


def test_rounding_comes_before_the_zero_point() -> None:
    # 0.5 + 1 rounded would be 2; 0.5 rounds to 0 first.
    assert run_op("quantize", np.float32([0.5]), np.float32(1), np.uint8(1)) == 1


@pytest.mark.parametrize("stored", ["i4", "u4"])
def test_four_bits(stored: str) -> None:
    kind = dt.dtype(stored)
    x = np.linspace(-20, 20, 41, dtype=np.float32)
    got = run_op("quantize", x, np.float32(1.5), kind.numpy.type(1), dtypes=("f32", "f32", stored))
    wanted = [max(int(kind.min), min(int(kind.max), round(Fraction(float(v)) / Fraction(1.5)) + 1)) for v in x]
    np.testing.assert_array_equal(got, wanted)


def test_blocks() -> None:
    x = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    scale = np.float32([[1, 1, 2, 2], [0.5, 0.5, 4, 4]])
    zero_point = np.zeros((2, 4), np.int8)
    q = run_op("quantize", x, scale, zero_point)
    np.testing.assert_array_equal(q, np.rint(x / scale))
    np.testing.assert_array_equal(run_op("dequantize", q, scale, zero_point), q * scale)


def test_wide_integers_do_not_lose_bits_before_the_scale() -> None:
    q = np.int32([2**30 + 1])
    got = run_op("dequantize", q, np.float64(1), np.int32(2**30))
    assert got == 1
    half = run_op("dequantize", np.int32([100000]), np.float16(0.5), np.int32(0))
    assert half == np.float16(50000)  # 100000 itself is not a f16


def test_parameters_must_fit() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ShapeError):
        run_op("quantize", x, np.ones(2, np.float32), np.zeros(2, np.int8), axis=1)
    with pytest.raises(ShapeError, match="different ranks"):
        run_op("quantize", x, np.ones(3, np.float32), np.int8(0), axis=1)
    with pytest.raises(ShapeError, match="axis 5"):
        run_op("quantize", x, np.ones(3, np.float32), np.zeros(3, np.int8), axis=5)
