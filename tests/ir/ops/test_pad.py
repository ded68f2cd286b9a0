"""Padding against numpy.pad and onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhc.errors import ShapeError
from dhc.ir.autodiff import gradient
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import run_onnx, run_op

MODES = ["constant", "reflect", "edge", "wrap"]


@given(size=st.integers(1, 5), low=st.integers(0, 12), high=st.integers(0, 12), mode=st.sampled_from(MODES))
def test_pad_is_numpy_pad(size: int, low: int, high: int, mode: str) -> None:
    x = np.arange(2 * size, dtype=np.float32).reshape(2, size) + 1
    widths = [(0, 1), (low, high)]
    expected = np.pad(x, widths, mode, constant_values=-3) if mode == "constant" else np.pad(x, widths, mode)  # type: ignore[call-overload]
    np.testing.assert_array_equal(run_op("pad", x, np.float32(-3), low=(0, low), high=(1, high), mode=mode), expected)


@given(low=st.integers(-3, 3), high=st.integers(-3, 3))
def test_negative_widths_crop_as_in_onnx(low: int, high: int) -> None:
    x = np.arange(6, dtype=np.float32)
    (expected,) = run_onnx("Pad", [x, np.array([low, high], np.int64), np.array(9, np.float32)], mode="constant")
    np.testing.assert_array_equal(run_op("pad", x, np.float32(9), low=(low,), high=(high,)), expected)


@pytest.mark.parametrize("dtype", ["bool", "u8", "i64", "f16", "c64"])
def test_pad_takes_every_type(dtype: str) -> None:
    graph = Graph("pad")
    x, value = graph.input("x", dtype, (2,)), graph.input("v", dtype)
    graph.output(Builder(graph).pad(x, value, low=(1,), high=(0,)))
    kind = x.dtype.numpy
    (result,) = graph.evaluate(np.array([1, 0], kind), np.array(1, kind))
    np.testing.assert_array_equal(result, np.array([1, 1, 0], kind))


def test_impossible_widths() -> None:
    with pytest.raises(ShapeError, match="negative size"):
        run_op("pad", np.zeros(2, np.float32), np.float32(0), low=(-2,), high=(-1,))
    with pytest.raises(ShapeError, match=r"which mode .* repeats, is empty"):
        run_op("pad", np.zeros((0,), np.float32), np.float32(0), low=(1,), high=(0,), mode="edge")


@pytest.mark.parametrize("mode", MODES)
def test_gradient_with_symbolic_sizes(mode: str) -> None:
    graph = Graph("pad")
    x, value = graph.input("x", "f64", ("N", "M")), graph.input("v", "f64")
    graph.output(Builder(graph).pad(x, value, low=(2, "M"), high=("N", -1), mode=mode))
    check_gradient(graph, [np.arange(6.0).reshape(3, 2), np.array(0.5)])


def test_reflected_elements_collect_their_copies() -> None:
    graph = Graph("pad")
    x, value = graph.input("x", "f32", (3,)), graph.input("v", "f32")
    graph.output(Builder(graph).pad(x, value, low=(2,), high=(1,), mode="reflect"))
    seed = np.array([1, 2, 3, 4, 5, 6], np.float32)  # copies of elements 2 1 0 1 2 1
    found, _ = gradient(graph).evaluate(np.zeros(3, np.float32), np.float32(0), seed)
    np.testing.assert_array_equal(found, [3, 2 + 4 + 6, 1 + 5])
