"""Comparisons, logic, shifts and choice against Python."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ir.single_op import run_op

COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_])
def test_comparisons(name: str, dtype: type) -> None:
    numbers = [0, 1, 2, 3] if dtype in (np.uint64, np.bool_) else [-2, 0, 1, 3]
    x = np.array(numbers).astype(dtype)
    got = run_op(name, x[:, None], x)
    assert got.dtype == np.bool_
    values = x.astype(np.float64).tolist()
    np.testing.assert_array_equal(got, [[COMPARISONS[name](a, b) for b in values] for a in values])


@pytest.mark.parametrize("name", COMPARISONS)
def test_nan_is_different_from_everything(name: str) -> None:
    assert run_op(name, np.float32([np.nan, 1]), np.float32([np.nan, np.nan])).tolist() == [name == "ne"] * 2


def test_large_integers_are_not_compared_as_floats() -> None:
    a, b = np.int64([2**62 + 1]), np.int64([2**62])
    assert run_op("gt", a, b).all() and not run_op("eq", a, b).any()
    assert run_op("lt", np.uint64([1]), np.uint64([2**63])).all()


def test_equality_of_complex_numbers_and_text() -> None:
    np.testing.assert_array_equal(run_op("eq", np.complex64([1 + 2j, 1]), np.complex64([1 + 2j, 1j])), [True, False])
    words = np.array(["left", "right"], dtype=object)
    np.testing.assert_array_equal(run_op("eq", words, words[:1]), [True, False])


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("logical_and", lambda a, b: a and b),
        ("logical_or", lambda a, b: a or b),
        ("logical_xor", lambda a, b: a != b),
    ],
)
def test_logic(name: str, truth: Callable[[bool, bool], bool]) -> None:
    x = np.array([False, True])
    table = [[truth(a, b) for b in (False, True)] for a in (False, True)]
    np.testing.assert_array_equal(run_op(name, x[:, None], x), table)
    np.testing.assert_array_equal(run_op("logical_not", x), [True, False])


@pytest.mark.parametrize(
    ("name", "truth"), [("bit_and", operator.and_), ("bit_or", operator.or_), ("bit_xor", operator.xor)]
)
def test_bits(name: str, truth: Callable[[int, int], int]) -> None:
    x = np.arange(-128, 128, 7, dtype=np.int8)
    np.testing.assert_array_equal(run_op(name, x[:, None], x), [[truth(a, b) for b in x.tolist()] for a in x.tolist()])
    np.testing.assert_array_equal(run_op("bit_not", x), [~v for v in x.tolist()])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_shifts(dtype: type) -> None:
    info = np.iinfo(dtype)
    values = np.array([info.min, info.min + 1, 1, 5, info.max], dtype)
    distances = np.array([0, 1, 3, info.bits - 1, info.bits, info.bits + 5], dtype)
    left = run_op("shift_left", values[:, None], distances)
    right = run_op("shift_right", values[:, None], distances)

    def wrap(value: int) -> int:
        low = value & ((1 << info.bits) - 1)
        return low - (1 << info.bits) if info.min < 0 and low >> (info.bits - 1) else low

    pairs: list[list[Any]] = [[(v, d) for d in distances.tolist()] for v in values.tolist()]
    np.testing.assert_array_equal(left, np.array([[wrap(v << d) for v, d in row] for row in pairs], dtype))
    np.testing.assert_array_equal(right, np.array([[v >> d for v, d in row] for row in pairs], dtype))


def test_negative_shift_distances_push_everything_out() -> None:
    values, away = np.int32([5, -5]), np.int32([-1, -1])
    np.testing.assert_array_equal(run_op("shift_left", values, away), [0, 0])
    np.testing.assert_array_equal(run_op("shift_right", values, away), [0, -1])


def test_special_values() -> None:
    x = np.float32([1, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(run_op("is_nan", x), [False, True, False, False])
    np.testing.assert_array_equal(run_op("is_inf", x), [False, False, True, True])
    np.testing.assert_array_equal(run_op("is_inf", x, negative=False), [False, False, True, False])
    np.testing.assert_array_equal(run_op("is_inf", x, positive=False), [False, False, False, True])
    assert not run_op("is_inf", x, positive=False, negative=False).any()


def test_where_does_not_mix_what_it_leaves_out() -> None:
    got = run_op("where", np.array([[True], [False]]), np.float32([np.nan, 1]), np.float32(7))
    np.testing.assert_array_equal(got, np.float32([[np.nan, 1], [7, 7]]))
