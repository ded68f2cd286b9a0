"""Arithmetic against Python's own exact integers and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from dhc.errors import DhcError, ShapeError, TypeMismatchError
from tests.ir.single_op import run_op

BYTES = np.arange(-128, 128, dtype=np.int8)


def _wrapped(value: int, bits: int = 8) -> int:
    low = value & ((1 << bits) - 1)
    return low - (1 << bits) if low >> (bits - 1) else low


def _truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("div", _truncated),
        ("mod", lambda a, b: a % b),
        ("fmod", lambda a, b: a - b * _truncated(a, b)),
        ("minimum", min),
        ("maximum", max),
    ],
)
def test_every_pair_of_bytes(name: str, truth: Callable[[int, int], int]) -> None:
    divisors = BYTES[BYTES != 0] if name in ("div", "mod", "fmod") else BYTES
    got = run_op(name, BYTES[:, None], divisors)
    assert got.dtype == np.int8
    wanted = [[_wrapped(truth(a, b)) for b in divisors.tolist()] for a in BYTES.tolist()]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["div", "mod", "fmod"])
def test_integers_by_zero_are_an_error_and_floats_are_not(name: str) -> None:
    with pytest.raises(DhcError, match="integer division by zero"):
        run_op(name, np.int32([1, 2]), np.int32([1, 0]))
    run_op(name, np.int32(np.zeros((0,))), np.int32([0]))  # nothing is divided
    with np.errstate(all="ignore"):
        assert not np.isfinite(run_op(name, np.float32([1]), np.float32([0]))).any()


def test_remainders_of_floats_have_the_sign_that_they_say() -> None:
    a, b = np.float64([5.5, -5.5, 5.5, -5.5]), np.float64([2, 2, -2, -2])
    np.testing.assert_array_equal(run_op("mod", a, b), [1.5, 0.5, -0.5, -1.5])
    np.testing.assert_array_equal(run_op("fmod", a, b), [math.fmod(x, y) for x, y in zip(a, b)])


def test_powers_of_integers() -> None:
    bases, exponents = np.arange(-9, 10, dtype=np.int16), np.arange(-4, 9, dtype=np.int16)
    got = run_op("pow", bases[:, None], exponents)

    def truth(base: int, exponent: int) -> int:
        if exponent >= 0:
            return _wrapped(base**exponent, 16)
        return 0 if base == 0 else math.trunc(base**exponent)

    np.testing.assert_array_equal(got, [[truth(b, e) for e in exponents.tolist()] for b in bases.tolist()])


def test_negation_and_absolute_value_wrap_around() -> None:
    np.testing.assert_array_equal(run_op("neg", np.int8([-128, 127])), [-128, -127])
    np.testing.assert_array_equal(run_op("abs", np.int8([-128, -5, 7])), [-128, 5, 7])
    np.testing.assert_array_equal(run_op("neg", np.uint8([0, 1])), [0, 255])
    modulus = run_op("abs", np.complex64([3 + 4j, -5]))
    assert modulus.dtype == np.float32
    np.testing.assert_array_equal(modulus, [5, 5])


def test_nan_wins_in_minimum_maximum_and_clamp() -> None:
    nan = np.nan
    for name in ("minimum", "maximum"):
        assert np.isnan(run_op(name, np.float32([1, nan, nan]), np.float32([nan, 1, nan]))).all()
    got = run_op("clamp", np.float32([nan, -3, 3, 0.5]), np.float32(0), np.float32(1))
    np.testing.assert_array_equal(got, [nan, 0, 1, 0.5])
    # The upper bound wins where the bounds cross, as in ONNX Clip.
    assert run_op("clamp", np.float32(0), np.float32(2), np.float32(1)) == 1


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_floats_round_once(half: type) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=500).astype(half), rng.normal(size=500).astype(half)
    for name, truth in (("add", np.add), ("mul", np.multiply), ("div", np.divide)):
        exact = truth(a.astype(np.float64), b.astype(np.float64))
        got = run_op(name, a, b)
        assert got.dtype == half
        np.testing.assert_array_equal(got, exact.astype(np.float32).astype(half))


def test_mixed_types_and_unfit_shapes_are_refused() -> None:
    with pytest.raises(TypeMismatchError, match="insert a cast"):
        run_op("add", np.float32([1]), np.float64([1]))
    with pytest.raises(ShapeError, match="do not broadcast"):
        run_op("add", np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(TypeMismatchError, match="is one of"):
        run_op("mod", np.complex64([1]), np.complex64([1]))
