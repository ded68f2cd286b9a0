"""Sorting, selections and suppression against NumPy and onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhc.errors import ShapeError
from dhc.ir import symbols
from tests.ir.single_op import graph_of, run_onnx, run_op

KEYS = st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, np.inf, -np.inf, np.nan]), min_size=1, max_size=40)
FEW = settings(max_examples=40)


@given(keys=KEYS)
def test_sort_is_stable_in_both_directions(keys: list[float]) -> None:
    """Python's own sort with NaN as the greatest key."""
    x = np.array(keys, np.float32)

    def rank(i: int) -> tuple[bool, float]:
        return (True, 0.0) if np.isnan(x[i]) else (False, float(x[i]))

    for descending in (False, True):
        expected = sorted(range(len(x)), key=rank, reverse=descending)
        values, order = run_op("sort", x, axis=0, descending=descending)
        np.testing.assert_array_equal(order, expected)
        np.testing.assert_array_equal(values, x[expected])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_topk_is_onnx(largest: bool, axis: int) -> None:
    x = np.random.default_rng(1).integers(0, 5, (4, 5, 6)).astype(np.float32)
    expected = run_onnx("TopK", [x, np.array([3], np.int64)], 2, axis=axis, largest=int(largest), sorted=1)
    for a, e in zip(run_op("topk", x, k=3, axis=axis, largest=largest), expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_topk_takes_no_more_than_there_is() -> None:
    x = np.zeros(2, np.float32)
    with pytest.raises(ShapeError, match="k must not exceed"):
        run_op("topk", x, k=3)
    graph = graph_of("topk", [x], {"k": symbols.sym("s0_0")}, symbolic=True)
    np.testing.assert_array_equal(graph.evaluate(x)[1], [0, 1])


@FEW
@given(shape=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 2**32 - 1))
def test_nonzero_is_numpy(shape: list[int], seed: int) -> None:
    x = np.asarray(np.random.default_rng(seed).integers(0, 2, shape)).astype(np.float32)
    expected = np.array(np.nonzero(np.atleast_1d(x)))
    actual = run_op("nonzero", x)
    assert actual.shape == (x.ndim, int(np.count_nonzero(x)))
    if x.ndim:
        np.testing.assert_array_equal(actual, expected)


def test_the_size_found_is_a_symbol_for_what_follows() -> None:
    graph = graph_of("nonzero", [np.zeros(4, np.float32)], {"count": "hits"})
    assert graph.outputs[0].shape == (1, symbols.sym("hits"))
    (positions,) = graph.evaluate(np.array([0, 5, 0, 7], np.float32))
    np.testing.assert_array_equal(positions, [[1, 3]])


@pytest.mark.parametrize("in_order", [0, 1])
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20))
@FEW
def test_unique_is_onnx(in_order: int, values: list[int]) -> None:
    x = np.array(values, np.float32)
    expected = run_onnx("Unique", [x], 4, sorted=in_order)
    for a, e in zip(run_op("unique", x, sorted=bool(in_order)), expected, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("axis", [0, 1])
def test_compress_is_onnx(axis: int) -> None:
    x, condition = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([True, False, True])
    (expected,) = run_onnx("Compress", [x, condition], axis=axis)
    np.testing.assert_array_equal(run_op("compress", x, condition, axis=axis), expected)


@FEW
@given(
    seed=st.integers(0, 2**32 - 1),
    most=st.integers(0, 8),
    iou=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    score=st.sampled_from([0.0, 0.25, 0.5]),
    center=st.integers(0, 1),
)
def test_nms_is_onnx(seed: int, most: int, iou: float, score: float, center: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    corner = rng.integers(0, 8, (2, n, 2))
    extent = rng.integers(1, 6, (2, n, 2))
    boxes = np.concatenate([corner, extent if center else corner + extent], axis=-1).astype(np.float32) / 4
    if not center and rng.integers(2):
        boxes = boxes[..., [2, 1, 0, 3]]  # any two opposite corners
    scores = (rng.integers(0, 8, (2, 3, n)) / 8).astype(np.float32)
    scalars = [np.array(most, np.int64), np.array(iou, np.float32), np.array(score, np.float32)]
    (expected,) = run_onnx("NonMaxSuppression", [boxes, scores, *scalars], center_point_box=center)
    actual = run_op("nms", boxes, scores, *scalars, center_point_box=center)
    np.testing.assert_array_equal(actual, expected.reshape(-1, 3))
