"""Pooling against ONNX Runtime; NaN, padding and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhc.errors import ShapeError
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx


def _case(seed: int, dilated: bool = True) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    kernel = [int(v) for v in rng.integers(1, 4, rank)]
    dilations = [int(v) for v in rng.integers(1, 3, rank)] if dilated else [1] * rank
    low = [int(rng.integers(0, k)) for k in kernel]
    high = [int(rng.integers(0, k)) for k in kernel]
    strides = [int(v) for v in rng.integers(1, 5, rank)]
    x = rng.standard_normal((int(rng.integers(1, 3)), 2, *rng.integers(6, 9, rank))).astype(np.float32)
    ours = {"kernel": kernel, "strides": strides, "dilations": dilations, "pads_low": low, "pads_high": high}
    theirs = {"kernel_shape": kernel, "strides": strides, "pads": [*low, *high]}
    if dilated:
        theirs["dilations"] = dilations
    return x, ours, theirs


@pytest.mark.parametrize("seed", range(18))
def test_max_pool_agrees_with_onnxruntime(seed: int) -> None:
    x, ours, theirs = _case(seed)
    if seed % 2:
        x = np.round(x)  # equal numbers: the first in the window gives the position
    expected = run_onnx("MaxPool", [x], outputs=2, **theirs)
    assert_close(run_dhc("max_pool_indices", [x], **ours), expected)
    assert_close(run_dhc("max_pool", [x], **ours), expected[:1])


@pytest.mark.parametrize("seed", range(18))
@pytest.mark.parametrize("count", [False, True])
def test_avg_pool_agrees_with_onnxruntime(seed: int, count: bool) -> None:
    x, ours, theirs = _case(seed)
    expected = run_onnx("AveragePool", [x], count_include_pad=int(count), **theirs)
    assert_close(run_dhc("avg_pool", [x], count_include_pad=count, **ours), expected)


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_padding_from_rounding_up_never_counts(size: int, count: bool) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((1, 2, size, size)).astype(np.float32)
    expected = run_onnx(
        "AveragePool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1,
        count_include_pad=int(count),
    )  # fmt: skip
    extra = (expected[0].shape[2] - 1) * 2 + 3 - (size + 2)
    extra = max(extra, 0)
    actual = run_dhc(
        "avg_pool", [x], kernel=(3, 3), strides=(2, 2), pads_low=(1, 1), pads_high=(1 + extra, 1 + extra),
        extra_high=(extra, extra), count_include_pad=count,
    )  # fmt: skip
    assert_close(actual, expected)


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool_agrees_with_onnxruntime(seed: int, p: int) -> None:
    x, ours, theirs = _case(seed, dilated=False)
    assert_close(run_dhc("lp_pool", [x], p=p, **ours), run_onnx("LpPool", [x], p=p, **theirs))


def test_nan_wins_and_padding_never_does() -> None:
    x = np.array([[[-5.0, np.nan, -7.0, -8.0]]], np.float32)
    values, positions = run_dhc("max_pool_indices", [x], kernel=(2,), strides=(2,), pads_low=(1,), pads_high=(1,))
    np.testing.assert_array_equal(values[0, 0], np.array([-5, np.nan, -8], np.float32))
    np.testing.assert_array_equal(positions[0, 0], [0, 1, 3])
    np.testing.assert_array_equal(
        run_dhc("max_pool", [x], kernel=(2,), strides=(2,), pads_low=(1,), pads_high=(1,))[0], values
    )


def test_integers_have_their_own_lowest_value() -> None:
    x = np.array([[[-128, -128]]], np.int8)
    values, positions = run_dhc("max_pool_indices", [x], kernel=(2,), strides=(2,), pads_low=(1,), pads_high=(1,))
    np.testing.assert_array_equal(values[0, 0], np.array([-128, -128], np.int8))
    np.testing.assert_array_equal(positions[0, 0], [0, 1])


@pytest.mark.parametrize("op", ["max_pool", "avg_pool", "lp_pool"])
def test_gradients_know_symbolic_sizes(op: str) -> None:
    attrs: dict[str, Any] = {"kernel": (3, 2), "strides": (2, 1), "pads_low": (1, 0), "pads_high": (1, 1)}
    if op == "avg_pool":
        attrs |= {"count_include_pad": True, "extra_high": (0, 1)}
    for h, w in [(5, 4), (6, 3)]:
        x = (np.random.default_rng(h).permutation(2 * 2 * h * w) / 5.0 + 0.1).reshape(2, 2, h, w)
        check_gradient(graph_of(op, [x], attrs, ("N", 2, "H", "W")), [x])


def test_wrong_windows_are_refused() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    for attrs, message in [
        ({"kernel": (5, 5)}, "does not fit"),
        ({"kernel": (2,)}, "spatial axes"),
        ({"kernel": (0, 2)}, "not positive"),
        ({"kernel": (2, 2), "extra_high": (1,)}, "extra_high"),
    ]:
        with pytest.raises(ShapeError, match=message):
            graph_of("avg_pool", [x], attrs)
    with pytest.raises(ShapeError, match="p = 0"):
        graph_of("lp_pool", [x], {"kernel": (2, 2), "p": 0})
