"""Normalisations, softmax and attention against ONNX Runtime; half precision; symbolic sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhc.errors import ShapeError, TypeMismatchError
from dhc.ir.autodiff import parts_of
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 2, 3)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    c = shape[1]
    operands = [_normal(0, *shape), *(_normal(i, c) for i in (1, 2, 3)), np.abs(_normal(4, c))]
    expected = run_onnx("BatchNormalization", operands, epsilon=1e-3, opset=15)
    assert_close(run_dhc("batch_norm", operands, epsilon=1e-3), expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_layer_norm(axis: int) -> None:
    x = _normal(0, 2, 3, 4)
    shape = x.shape[axis:]
    operands = [x, _normal(1, *shape), _normal(2, *shape)]
    assert_close(run_dhc("layer_norm", operands, axis=axis), run_onnx("LayerNormalization", operands, axis=axis))
    assert_close(
        run_dhc("layer_norm", operands[:2], axis=axis), run_onnx("LayerNormalization", operands[:2], axis=axis)
    )


@pytest.mark.parametrize("axis", [1, -1])
def test_rms_norm(axis: int) -> None:
    x = _normal(0, 2, 3, 4)
    operands = [x, _normal(1, *x.shape[axis:])]
    expected = run_onnx("RMSNormalization", operands, opset=23, axis=axis, epsilon=1e-4)
    assert_close(run_dhc("rms_norm", operands, axis=axis, epsilon=1e-4), expected)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 3), (1, 4, 2, 3, 2)])
def test_norms_over_space(shape: tuple[int, ...]) -> None:
    operands = [_normal(0, *shape), _normal(1, 4), _normal(2, 4)]
    expected = run_onnx("InstanceNormalization", operands, epsilon=1e-4)
    assert_close(run_dhc("instance_norm", operands, epsilon=1e-4), expected)
    for groups in (1, 2, 4):
        expected = run_onnx("GroupNormalization", operands, num_groups=groups)
        assert_close(run_dhc("group_norm", operands, groups=groups), expected)


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_lrn(size: int) -> None:
    x = _normal(0, 2, 6, 3, 4)
    expected = run_onnx("LRN", [x], size=size, alpha=0.4, beta=0.6, bias=1.5)
    assert_close(run_dhc("lrn", [x], size=size, alpha=0.4, beta=0.6, bias=1.5), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int) -> None:
    x = _normal(0, 3, 4, 5) * 30
    assert_close(run_dhc("softmax", [x], axis=axis), run_onnx("Softmax", [x], axis=axis))
    assert_close(run_dhc("log_softmax", [x], axis=axis), run_onnx("LogSoftmax", [x], axis=axis))


def test_softmax_is_stable() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4], [-np.inf, 0, 0]], np.float32)
    (y,) = run_dhc("softmax", [x])
    np.testing.assert_allclose(y, [[0.7310586, 0.26894143, 0], [0, 0.5, 0.5]], rtol=1e-6)
    (z,) = run_dhc("log_softmax", [x])
    np.testing.assert_allclose(z, [[-0.31326166, -1.3132616, -20000.313], [-np.inf, -0.6931472, -0.6931472]], rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention(causal: bool, mask: str) -> None:
    operands = [_normal(0, 2, 3, 4, 8), _normal(1, 2, 3, 4, 8), _normal(2, 2, 3, 4, 5)]
    if mask == "bool":
        seen = np.random.default_rng(3).random((4, 4)) < 0.6
        operands.append(seen | np.eye(4, dtype=bool))
    elif mask == "float":
        operands.append(_normal(4, 4, 4))
    expected = run_onnx("Attention", operands, opset=23, is_causal=int(causal))
    assert_close(run_dhc("attention", operands, causal=causal), expected)
    expected = run_onnx("Attention", operands, opset=23, is_causal=int(causal), scale=0.7)
    assert_close(run_dhc("attention", operands, causal=causal, scale=0.7), expected)


CALLS: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("softmax", [(3, 50)], {}),
    ("log_softmax", [(3, 50)], {}),
    ("layer_norm", [(3, 50), (50,), (50,)], {}),
    ("rms_norm", [(3, 50), (50,)], {}),
    ("instance_norm", [(2, 3, 40), (3,), (3,)], {}),
    ("group_norm", [(2, 4, 40), (4,), (4,)], {"groups": 2}),
    ("lrn", [(2, 8, 5)], {"size": 3}),
    ("attention", [(1, 2, 6, 8)] * 3, {"causal": True}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), CALLS, ids=[c[0] for c in CALLS])
def test_half_precision_is_rounded_once(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    """f16 equals the f32 result of the same numbers, rounded; so do the parts that backends run."""
    half = [_normal(i, *s).astype(np.float16) for i, s in enumerate(shapes)]
    (wide,) = run_dhc(op, [a.astype(np.float32) for a in half], **attrs)
    graph = graph_of(op, half, attrs)
    (y,) = graph.evaluate(*half)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, wide.astype(np.float16))
    (z,) = parts_of(graph.nodes[0]).evaluate(*half)
    np.testing.assert_allclose(z.astype(np.float32), wide, rtol=1e-3, atol=1e-4)


SYMBOLIC: list[tuple[str, tuple[Any, ...], list[tuple[int, ...]], dict[str, Any]]] = [
    ("softmax", ("N", "C"), [(2, 3)], {}),
    ("log_softmax", ("N", "C"), [(2, 3)], {"axis": 0}),
    ("batch_norm", ("N", 3, "L"), [(2, 3, 4), (3,), (3,), (3,), (3,)], {}),
    ("layer_norm", ("N", "L", 4), [(2, 3, 4), (4,), (4,)], {}),
    ("rms_norm", ("N", "L", 4), [(2, 3, 4), (4,)], {}),
    ("instance_norm", ("N", 3, "L"), [(2, 3, 4), (3,), (3,)], {}),
    ("group_norm", ("N", 4, "L"), [(2, 4, 3), (4,), (4,)], {"groups": 2}),
    ("lrn", ("N", "C", "L"), [(2, 4, 3)], {"size": 3, "alpha": 0.3}),
]


@pytest.mark.parametrize(("op", "symbolic", "shapes", "attrs"), SYMBOLIC, ids=[c[0] for c in SYMBOLIC])
def test_gradients_with_symbolic_sizes(
    op: str, symbolic: tuple[Any, ...], shapes: list[tuple[int, ...]], attrs: dict[str, Any]
) -> None:
    arrays = [np.random.default_rng(i).uniform(0.5, 2, s) for i, s in enumerate(shapes)]
    graph = graph_of(op, arrays, attrs, symbolic)
    assert_close(graph.evaluate(*arrays), run_dhc(op, arrays, **attrs), 1e-12)
    check_gradient(graph, arrays, tolerance=1e-5)


def test_wrong_calls_are_refused() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    v = np.zeros(4, np.float32)
    for op, arrays, attrs, message in [
        ("softmax", [x], {"axis": 3}, "axis 3"),
        ("instance_norm", [x, v, v], {}, "channels"),
        ("group_norm", [x, v[:3], v[:3]], {"groups": 2}, "groups"),
        ("layer_norm", [x, v[:3]], {}, "broadcast"),
        ("lrn", [x], {"size": 0}, "positive"),
        ("attention", [x, x, x], {}, "rank"),
    ]:
        with pytest.raises(ShapeError, match=message):
            graph_of(op, arrays, attrs)
    q = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(TypeMismatchError, match="mask"):
        graph_of("attention", [q, q, q, np.zeros((2, 2), np.float64)], {})
