"""Gathers and scatters against onnxruntime, on random shapes and indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhc.errors import DhcError, ShapeError
from dhc.ir.autodiff import gradient
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import graph_of, run_onnx, run_op

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40)


def floats(rng: np.random.Generator, shape: Any) -> np.ndarray:
    return np.asarray(rng.integers(-8, 9, shape)).astype(np.float32)


def indices(rng: np.random.Generator, size: int, shape: Any) -> np.ndarray:
    return np.asarray(rng.integers(-size, size, shape)).astype(np.int64)


@FEW
@given(shape=SHAPES, index_shape=st.lists(st.integers(0, 3), max_size=3), seed=SEEDS)
def test_gather_is_onnx(shape: list[int], index_shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = int(rng.integers(-len(shape), len(shape)))
    x, i = floats(rng, shape), indices(rng, shape[axis], index_shape)
    (expected,) = run_onnx("Gather", [x, i], axis=axis)
    np.testing.assert_array_equal(run_op("gather", x, i, axis=axis), expected)


@FEW
@given(shape=SHAPES, seed=SEEDS)
def test_elements_are_onnx(shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = int(rng.integers(-len(shape), len(shape)))
    smaller = [int(rng.integers(1, n + 1)) for n in shape]
    x, i = floats(rng, shape), indices(rng, shape[axis], smaller)
    (expected,) = run_onnx("GatherElements", [x, i], axis=axis)
    np.testing.assert_array_equal(run_op("gather_elements", x, i, axis=axis), expected)
    updates = floats(rng, smaller)
    for reduction in ("none", "add", "mul", "max", "min"):
        (expected,) = run_onnx("ScatterElements", [x, i, updates], axis=axis, reduction=reduction)
        actual = run_op("scatter_elements", x, i, updates, axis=axis, reduction=reduction)
        np.testing.assert_array_equal(actual, expected)


@FEW
@given(shape=SHAPES, outer=st.lists(st.integers(1, 3), max_size=2), seed=SEEDS)
def test_tuples_are_onnx(shape: list[int], outer: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, len(shape) + 1))
    x = floats(rng, shape)
    i = np.stack([indices(rng, shape[k], outer) for k in range(width)], axis=-1)
    (expected,) = run_onnx("GatherND", [x, i])
    np.testing.assert_array_equal(run_op("gather_nd", x, i), expected)
    updates = floats(rng, [*outer, *shape[width:]])
    for reduction in ("none", "add", "mul", "max", "min"):
        (expected,) = run_onnx("ScatterND", [x, i, updates], reduction=reduction)
        np.testing.assert_array_equal(run_op("scatter_nd", x, i, updates, reduction=reduction), expected)


def test_batches_of_tuples_are_onnx() -> None:
    rng = np.random.default_rng(5)
    x = floats(rng, (2, 3, 4, 5))
    i = np.stack([indices(rng, n, (2, 3, 2)) for n in (4, 5)], axis=-1)
    (expected,) = run_onnx("GatherND", [x, i], batch_dims=2)
    np.testing.assert_array_equal(run_op("gather_nd", x, i, batch_dims=2), expected)
    check_gradient(graph_of("gather_nd", [x.astype(np.float64), i], {"batch_dims": 2}), [x.astype(np.float64), i])


@pytest.mark.parametrize("index", [3, -4])
def test_indices_out_of_range_fail(index: int) -> None:
    x, i, one = np.zeros(3, np.float32), np.array([index], np.int64), np.ones(1, np.float32)
    for op, operands in [
        ("gather", (x, i)), ("gather_elements", (x, i)), ("gather_nd", (x, i)),
        ("scatter_elements", (x, i, one)), ("scatter_nd", (x, i[None], one)),
    ]:  # fmt: skip
        with pytest.raises(DhcError, match=f"index {index} is out of range for axis 0 of size 3"):
            run_op(op, *operands)


def test_shapes_are_checked() -> None:
    x, i = np.zeros((2, 3), np.float32), np.zeros((3, 3), np.int64)
    with pytest.raises(ShapeError, match="no more indices than elements: 3 is more than 2"):
        run_op("gather_elements", x, i, axis=1)
    with pytest.raises(ShapeError, match="do not fit rank 2"):
        run_op("gather_nd", x, i)
    with pytest.raises(ShapeError, match="axis 0 of the updates"):
        run_op("scatter_nd", x, np.zeros((2, 1), np.int64), np.zeros((1, 3), np.float32))
    with pytest.raises(DhcError, match="truth values"):
        run_op("scatter_nd", np.zeros(2, bool), np.zeros((1, 1), np.int64), np.zeros(1, bool), reduction="add")


def test_repeated_rows_collect_their_cotangents() -> None:
    arrays = [np.zeros((3, 2), np.float32), np.array([1, -2, 0], np.int64)]
    seed = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    (found,) = gradient(graph_of("gather", arrays, symbolic=True)).evaluate(*arrays, seed)
    np.testing.assert_array_equal(found, [[5, 6], [4, 6], [0, 0]])


def test_equal_candidates_share_the_cotangent() -> None:
    arrays = [np.array([2.0, 1]), np.array([0, 0, 1], np.int64), np.array([2.0, 2, 5])]
    graph = graph_of("scatter_elements", arrays, {"reduction": "max"})
    x, updates = gradient(graph).evaluate(*arrays, np.array([3.0, 1]))
    np.testing.assert_array_equal(x, [1, 0])
    np.testing.assert_array_equal(updates, [1, 1, 1])


@pytest.mark.parametrize("zeros", [(), (0,), (1,), (3,), (1, 2)])
def test_factors_of_products_may_be_zero(zeros: tuple[int, ...]) -> None:
    """Factors 0 and 1 are the operand, 2 and 3 multiply its second element, 4 its first."""
    factors = np.array([2.0, -3, 0.5, 1.5, 4])
    factors[list(zeros)] = 0
    arrays = [factors[:2], np.array([1, -1, 0], np.int64), factors[2:]]
    check_gradient(graph_of("scatter_elements", arrays, {"reduction": "mul"}), arrays)
    arrays[1] = arrays[1][:, None]
    check_gradient(graph_of("scatter_nd", arrays, {"reduction": "mul"}), arrays)
