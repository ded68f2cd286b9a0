"""Convolutions and matrix products against ONNX Runtime; symbolic sizes; types; errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhc.errors import ShapeError, TypeMismatchError
from dhc.ir import symbols
from dhc.ir.autodiff import gradient
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from dhc.ir.op import constraints_of
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _window(rng: np.random.Generator, rank: int) -> dict[str, Any]:
    return {
        "strides": tuple(int(v) for v in rng.integers(1, 4, rank)),
        "dilations": tuple(int(v) for v in rng.integers(1, 3, rank)),
        "pads_low": tuple(int(v) for v in rng.integers(0, 3, rank)),
        "pads_high": tuple(int(v) for v in rng.integers(0, 3, rank)),
    }


def _onnx_window(window: dict[str, Any]) -> dict[str, Any]:
    return {
        "strides": window["strides"],
        "dilations": window["dilations"],
        "pads": [*window["pads_low"], *window["pads_high"]],
    }


@pytest.mark.parametrize("seed", range(24))
def test_conv_agrees_with_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    groups = int(rng.choice([1, 1, 2, 3]))
    c, o = groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(1, 4, rank)]
    x = _normal(rng, int(rng.integers(1, 3)), c, *rng.integers(5, 10, rank))
    w = _normal(rng, o, c // groups, *kernel)
    operands = [x, w] + ([_normal(rng, o)] if seed % 2 else [])
    window = _window(rng, rank)
    expected = run_onnx("Conv", operands, group=groups, **_onnx_window(window))
    assert_close(run_dhc("conv", operands, groups=groups, **window), expected)


@pytest.mark.parametrize("seed", range(24))
def test_conv_transpose_agrees_with_onnxruntime(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    rank = 1 + seed % 3
    groups = int(rng.choice([1, 1, 2]))
    c, per_group = groups * int(rng.integers(1, 4)), int(rng.integers(1, 4))
    kernel = [int(v) for v in rng.integers(2, 4, rank)]
    x = _normal(rng, int(rng.integers(1, 3)), c, *rng.integers(3, 6, rank))
    w = _normal(rng, c, per_group, *kernel)
    operands = [x, w] + ([_normal(rng, per_group * groups)] if seed % 2 else [])
    window = _window(rng, rank)
    extra = tuple(int(rng.integers(0, s)) for s in window["strides"])
    expected = run_onnx("ConvTranspose", operands, group=groups, output_padding=extra, **_onnx_window(window))
    actual = run_dhc("conv_transpose", operands, groups=groups, output_padding=extra, **window)
    assert_close(actual, expected)


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 1)), ((0, 2, 3), (3, 2))]
)
def test_matmul_agrees_with_onnxruntime(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    operands = [_normal(rng, *s) for s in shapes]
    assert_close(run_dhc("matmul", operands), run_onnx("MatMul", operands))


@pytest.mark.parametrize("left", [np.uint8, np.int8])
@pytest.mark.parametrize("right", [np.uint8, np.int8])
def test_integer_products_are_exact(left: Any, right: Any) -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(np.iinfo(left).min, np.iinfo(left).max, (5, 300), endpoint=True).astype(left)
    b = rng.integers(np.iinfo(right).min, np.iinfo(right).max, (300, 4), endpoint=True).astype(right)
    np.testing.assert_array_equal(run_dhc("matmul", [a, b], out="i32")[0], a.astype(np.int32) @ b.astype(np.int32))
    if left == np.uint8:
        assert_close(run_dhc("matmul", [a, b], out="i32"), run_onnx("MatMulInteger", [a, b], opset=10))


def test_integer_convolution_agrees_with_onnxruntime() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (2, 4, 9, 9)).astype(np.uint8)
    w = rng.integers(0, 256, (6, 2, 3, 3)).astype(np.uint8)
    expected = run_onnx("ConvInteger", [x, w], opset=10, pads=[1, 1, 1, 1], group=2)
    actual = run_dhc("conv", [x, w], pads_low=(1, 1), pads_high=(1, 1), groups=2, out="i32")
    np.testing.assert_array_equal(actual[0], expected[0])


def test_sums_of_integers_wrap_in_the_result_type() -> None:
    a = np.full((1, 1000), 100, np.int8)
    b = np.full((1000, 1), 100, np.int8)
    assert run_dhc("matmul", [a, b])[0].item() == np.int64(10_000_000).astype(np.int8)
    large = np.full((1, 3), 2**62, np.int64)
    assert run_dhc("matmul", [large, np.full((3, 1), 3, np.int64)])[0].item() == (2**62 * 9 + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_half_sums_are_rounded_once(name: str) -> None:
    """4096 ones and a small number: a running sum in half precision would stop growing."""
    graph = Graph()
    a = graph.input("a", name, (1, 4096))
    b = graph.input("b", name, (4096, 1))
    graph.output(Builder(graph).matmul(a, b))
    ones = np.ones(4096).astype(a.dtype.numpy)
    assert float(graph.evaluate(ones.reshape(1, -1), ones.reshape(-1, 1))[0].item()) == 4096.0


def test_wide_result_of_half_factors() -> None:
    a = np.full((1, 3), 300, np.float16)
    assert run_dhc("matmul", [a, a.T.copy()], out="f32")[0].item() == 270000.0


def test_one_graph_serves_many_sizes() -> None:
    rng = np.random.default_rng(3)
    w = _normal(rng, 4, 3, 3, 3)
    attrs = {"strides": (2, 2), "pads_low": (1, 1), "pads_high": (1, 1)}
    graph = graph_of("conv", [_normal(rng, 1, 3, 8, 8), w], attrs, ("N", 3, "H", "W"))
    for shape in [(1, 3, 8, 8), (2, 3, 7, 9), (0, 3, 5, 5), (3, 3, 1, 2)]:
        x = _normal(rng, *shape)
        assert_close(graph.evaluate(x, w), run_dhc("conv", [x, w], **attrs))


def test_sizes_that_turn_out_too_small_are_refused() -> None:
    w = np.zeros((1, 1, 3, 3), np.float32)
    graph = graph_of("conv", [np.zeros((1, 1, 3, 3), np.float32), w], {}, ("N", 1, "H", "W"))
    with pytest.raises(ShapeError, match="negative size"):
        graph.evaluate(np.zeros((1, 1, 1, 1), np.float32), w)
    left, right, what = constraints_of(graph.nodes[0])[0]
    assert "a window of 3 fits into H" in what
    assert symbols.evaluate(left, {"H": 3}) == right == 0
    assert symbols.evaluate(left, {"H": 2}) != right


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_gradients_know_symbolic_sizes(op: str) -> None:
    rng = np.random.default_rng(4)
    w = _normal(rng, 4, 2, 3, 2).astype(np.float64)
    attrs = {"strides": (2, 3), "dilations": (1, 2), "pads_low": (1, 0), "pads_high": (0, 1), "groups": 2}
    for h, v in [(6, 7), (7, 9), (5, 6)]:
        x = rng.standard_normal((2, 4, h, v))
        graph = graph_of(op, [x, w], attrs, ("N", 4, "H", "W"))
        assert gradient(graph).outputs[0].type.shape == graph.inputs[0].type.shape
        assert gradient(graph).outputs[1].type.shape == (4, 2, 3, 2)
        check_gradient(graph, [x, w])


@pytest.mark.parametrize(
    ("attrs", "shape", "message"),
    [
        ({}, (1, 3, 2, 2), "does not fit"),
        ({"strides": (1,)}, (1, 3, 5, 5), "strides needs 2 values"),
        ({"strides": (0, 1)}, (1, 3, 5, 5), "positive"),
        ({"groups": 2}, (1, 3, 5, 5), "channels"),
        ({"groups": 0}, (1, 3, 5, 5), "groups"),
        ({}, (1, 3, 5), "rank"),
    ],
)
def test_wrong_convolutions_are_refused(attrs: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        graph_of("conv", [np.zeros(shape, np.float32), np.zeros((2, 3, 3, 3), np.float32)], attrs)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeMismatchError, match="f32 and f64"):
        graph_of("matmul", [np.zeros((2, 2), np.float32), np.zeros((2, 2))], {})
    with pytest.raises(TypeMismatchError, match="cannot give f32"):
        graph_of("matmul", [np.zeros((2, 2), np.int8), np.zeros((2, 2), np.int8)], {"out": "f32"})
    with pytest.raises(TypeMismatchError, match="the bias is f64"):
        arrays = [np.zeros((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.float32), np.zeros(1)]
        graph_of("conv", arrays, {})
