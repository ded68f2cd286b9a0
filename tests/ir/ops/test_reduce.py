"""Reductions and running totals against exact sums and onnxruntime."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dhc.errors import DhcError, ShapeError
from tests.ir.single_op import run_onnx, run_op

ONNX_NAMES = {
    "reduce_sum": "ReduceSum", "reduce_mean": "ReduceMean", "reduce_prod": "ReduceProd", "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin", "logsumexp": "ReduceLogSumExp",
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX_NAMES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [(0,), (1, 2), (-1,), ()])
def test_against_onnxruntime(name: str, axes: tuple[int, ...], keepdims: bool) -> None:
    x = np.random.default_rng(1).uniform(-2, 2, (3, 4, 5)).astype(np.float32)
    operands = [x, np.array(axes, np.int64)] if axes else [x]
    (wanted,) = run_onnx(ONNX_NAMES[name], operands, keepdims=int(keepdims))
    got = run_op(name, x, axes=axes, keepdims=keepdims)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


def test_sums_and_means_of_halves_accumulate_in_f32() -> None:
    x = np.full(5000, 0.1, np.float16)
    exact = math.fsum(float(v) for v in x)
    assert run_op("reduce_sum", x) == np.float16(exact)
    assert run_op("reduce_mean", x) == x[0]
    ones = np.ones(3000, ml_dtypes.bfloat16)
    assert float(run_op("reduce_sum", ones)) == 3008  # the bf16 number next to 3000


def test_integers() -> None:
    x = np.int8([100, 100, 100])
    assert run_op("reduce_sum", x) == np.int8(300 - 256)
    assert run_op("reduce_mean", x) == 100  # no wraparound on the way
    assert run_op("reduce_mean", np.int32([-1, -2])) == -1  # toward zero
    assert run_op("reduce_prod", np.uint8([16, 16, 3])) == 0
    assert run_op("reduce_mean", np.full(300, 255, np.uint8)) == 255
    with pytest.raises(DhcError, match="mean of nothing"):
        run_op("reduce_mean", np.zeros((0,), np.int32))


def test_nan_and_infinity() -> None:
    x = np.float32([[1, np.nan, 3], [np.inf, 1, 2], [-np.inf, -np.inf, -np.inf]])
    for name in ("reduce_max", "reduce_min", "reduce_sum", "reduce_mean", "reduce_prod", "logsumexp"):
        assert np.isnan(run_op(name, x, axes=(1,))[0]), name
    np.testing.assert_array_equal(run_op("logsumexp", x, axes=(1,))[1:], [np.inf, -np.inf])


def test_over_nothing() -> None:
    x = np.zeros((2, 0), np.float32)
    inf = np.float32(np.inf)
    for name, value in (("reduce_sum", 0), ("reduce_prod", 1), ("reduce_max", -inf), ("reduce_min", inf)):
        np.testing.assert_array_equal(run_op(name, x, axes=(1,)), [value, value])
    assert np.isnan(run_op("reduce_mean", x, axes=(1,))).all()
    assert run_op("reduce_max", np.zeros((0,), np.int16)) == -32768
    assert run_op("reduce_min", np.zeros((0,), np.uint16)) == 65535
    assert run_op("logsumexp", np.zeros((0,), np.float32)) == -np.inf
    assert not run_op("reduce_any", np.zeros((0,), np.bool_))
    assert run_op("reduce_all", np.zeros((0,), np.bool_))


def test_bools() -> None:
    x = np.array([[True, False], [True, True], [False, False]])
    np.testing.assert_array_equal(run_op("reduce_any", x, axes=(1,)), [any(r) for r in x.tolist()])
    np.testing.assert_array_equal(run_op("reduce_all", x, axes=(1,)), [all(r) for r in x.tolist()])


def test_logsumexp_does_not_overflow() -> None:
    assert run_op("logsumexp", np.float32([1000, 1000])) == np.float32(1000 + math.log(2))
    assert run_op("logsumexp", np.float16([-1000, -1000])) == np.float16(-1000 + math.log(2))


def test_axes_are_checked() -> None:
    with pytest.raises(ShapeError, match="axis 2 is out of range"):
        run_op("reduce_sum", np.zeros((2, 2), np.float32), axes=(2,))
    with pytest.raises(ShapeError, match="repeat"):
        run_op("reduce_sum", np.zeros((2, 2), np.float32), axes=(1, -1))


@pytest.mark.parametrize(("name", "onnx"), [("argmax", "ArgMax"), ("argmin", "ArgMin")])
@pytest.mark.parametrize(
    ("last", "keepdims", "axis"), list(itertools.product([False, True], [False, True], [0, 1, -1]))
)
def test_positions_against_onnxruntime(name: str, onnx: str, last: bool, keepdims: bool, axis: int) -> None:
    x = np.random.default_rng(2).integers(0, 3, (4, 5)).astype(np.float32)  # many ties
    (wanted,) = run_onnx(onnx, [x], axis=axis, keepdims=int(keepdims), select_last_index=int(last))
    got = run_op(name, x, axis=axis, keepdims=keepdims, last=last)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, wanted)


def test_positions_of_nan() -> None:
    x = np.float32([1, np.nan, 5, np.nan, 0])
    for name in ("argmax", "argmin"):
        assert run_op(name, x, axis=0) == 1
        assert run_op(name, x, axis=0, last=True) == 3
    with pytest.raises(ShapeError, match="axis 0 is empty"):
        run_op("argmax", np.zeros((0,), np.float32), axis=0)


def _totals(row: list[int], product: bool, exclusive: bool, reverse: bool) -> list[int]:
    row = row[::-1] if reverse else row
    found = []
    for n in range(len(row)):
        part = row[: n if exclusive else n + 1]
        found.append(math.prod(part) if product else sum(part))
    return found[::-1] if reverse else found


@pytest.mark.parametrize(("exclusive", "reverse"), list(itertools.product([False, True], [False, True])))
@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_running_totals(name: str, exclusive: bool, reverse: bool) -> None:
    x = np.random.default_rng(3).integers(-4, 5, (3, 6)).astype(np.int32)
    options: dict[str, Any] = {"exclusive": exclusive, "reverse": reverse}
    by_row = run_op(name, x, axis=1, **options)
    np.testing.assert_array_equal(by_row, [_totals(r, name == "cumprod", exclusive, reverse) for r in x.tolist()])
    np.testing.assert_array_equal(run_op(name, x.T.copy(), axis=0, **options), by_row.T)
    if name == "cumsum":
        flags = {"exclusive": int(exclusive), "reverse": int(reverse)}
        np.testing.assert_array_equal(by_row, run_onnx("CumSum", [x, np.array(1, np.int64)], **flags)[0])
