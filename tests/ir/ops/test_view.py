"""Views, rearrangements, joins, generators and windows against NumPy indexing and onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhc.errors import DhcError, ShapeError
from dhc.ir import symbols
from dhc.ir.autodiff import gradient
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from tests.ir.single_op import graph_of, run_onnx, run_op


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).permutation(int(np.prod(shape))).astype(np.float32).reshape(shape)


@given(
    size=st.integers(1, 9),
    start=st.integers(0, 8),
    step=st.integers(-4, 4).filter(lambda s: s != 0),
    count=st.integers(0, 9),
)
def test_slice_is_python_slicing(size: int, start: int, step: int, count: int) -> None:
    x = numbers(size, 2)
    last = start + (count - 1) * step
    inside = count == 0 or (start < size and 0 <= last < size)
    attrs: dict[str, Any] = {"starts": (start, 1), "sizes": (count, 1), "steps": (step, 1)}
    if not inside:
        with pytest.raises(ShapeError, match="are not all within"):
            run_op("slice", x, **attrs)
        return
    stop = start + count * step
    expected = x[start : (stop if stop >= 0 else None) : step, 1:2] if count else x[:0, 1:2]
    np.testing.assert_array_equal(run_op("slice", x, **attrs), expected)


def test_slice_with_symbolic_bounds() -> None:
    graph = Graph("tail")
    x = graph.input("x", "f32", ("N",))
    n = symbols.sym("N")
    graph.output(Builder(graph).slice(x, starts=(n - 1,), sizes=(n,), steps=(-1,)))
    np.testing.assert_array_equal(graph.evaluate(np.arange(4, dtype=np.float32))[0], [3, 2, 1, 0])
    (grad,) = gradient(graph).evaluate(np.zeros(3, np.float32), np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(grad, [3, 2, 1])


def test_flip_is_numpy_flip() -> None:
    x = numbers(2, 3, 4)
    np.testing.assert_array_equal(run_op("flip", x, axes=(0, -1)), np.flip(x, (0, 2)))
    with pytest.raises(ShapeError, match="repeat"):
        run_op("flip", x, axes=(0, -3))


def test_tile_is_onnx_tile() -> None:
    x = numbers(2, 1, 3)
    (expected,) = run_onnx("Tile", [x, np.array([2, 3, 1], np.int64)])
    np.testing.assert_array_equal(run_op("tile", x, repeats=(2, 3, 1)), expected)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_is_onnx(mode: str) -> None:
    x = numbers(2, 12, 3, 2)
    (expected,) = run_onnx("DepthToSpace", [x], blocksize=2, mode=mode)
    np.testing.assert_array_equal(run_op("depth_to_space", x, block=2, mode=mode), expected)


def test_space_to_depth_is_onnx() -> None:
    x = numbers(2, 3, 4, 6)
    (expected,) = run_onnx("SpaceToDepth", [x], blocksize=2)
    np.testing.assert_array_equal(run_op("space_to_depth", x, block=2), expected)


def test_blocks_must_divide() -> None:
    with pytest.raises(ShapeError, match="divisible"):
        run_op("depth_to_space", numbers(1, 6, 1, 1), block=2)
    with pytest.raises(ShapeError, match="divisible"):
        run_op("space_to_depth", numbers(1, 1, 3, 2), block=2)


@pytest.mark.parametrize(("batch", "time"), [(1, 0), (0, 1)])
def test_reverse_sequence_is_onnx(batch: int, time: int) -> None:
    x, lengths = numbers(4, 4, 2), np.array([1, 4, 2, 3], np.int64)
    (expected,) = run_onnx("ReverseSequence", [x, lengths], batch_axis=batch, time_axis=time)
    np.testing.assert_array_equal(run_op("reverse_sequence", x, lengths, batch_axis=batch, time_axis=time), expected)


def test_sequences_longer_than_the_axis_fail() -> None:
    with pytest.raises(DhcError, match="exceeds 3"):
        run_op("reverse_sequence", numbers(3, 1), np.array([4], np.int64), batch_axis=1, time_axis=0)


def test_concat_and_split_are_each_others_inverse() -> None:
    parts = [numbers(2, n, 3) for n in (1, 4, 0, 2, 5)]
    joined = run_op("concat", *parts, axis=-2)
    np.testing.assert_array_equal(joined, np.concatenate(parts, axis=1))
    for part, again in zip(parts, run_op("split", joined, axis=1, sizes=(1, 4, 0, 2, 5)), strict=True):
        np.testing.assert_array_equal(part, again)


def test_concat_checks_its_operands() -> None:
    with pytest.raises(ShapeError, match="axis 1 of operand 1"):
        run_op("concat", numbers(2, 3), numbers(2, 4), axis=0)
    with pytest.raises(DhcError, match="operand 1 is f64"):
        run_op("concat", numbers(2), np.zeros(2), axis=0)
    with pytest.raises(ShapeError, match="sum of the sizes"):
        run_op("split", numbers(4), axis=0, sizes=(1, 2))


def test_concat_of_symbolic_sizes() -> None:
    arrays = [numbers(2, 3), numbers(4, 3)]
    graph = graph_of("concat", arrays, {"axis": 0}, symbolic=True)
    assert symbols.format_dim(graph.outputs[0].shape[0]) == "s0_0+s1_0"
    np.testing.assert_array_equal(graph.evaluate(*arrays)[0], np.concatenate(arrays))


def test_generators() -> None:
    np.testing.assert_array_equal(run_op("iota", shape=(2, 3), axis=1, dtype="f64"), [[0.0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(run_op("eye", shape=(2, 4), dtype="i32", k=1), np.eye(2, 4, 1, dtype=np.int32))
    with pytest.raises(DhcError, match="bool"):
        run_op("iota", shape=(2,), axis=0, dtype="bool")


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot_is_onnx(axis: int) -> None:
    indices = np.array([[0, -1], [3, 4], [-4, -5]], np.int64)
    off_on = np.array([0.5, 2], np.float32)
    (expected,) = run_onnx("OneHot", [indices, np.array(4, np.int64), off_on], axis=axis)
    np.testing.assert_array_equal(run_op("one_hot", indices, off_on[1], off_on[0], depth=4, axis=axis), expected)


def test_one_hot_gradient_counts_positions() -> None:
    arrays = [np.array([1, 0, 7], np.int64), np.float64(2), np.float64(-1)]
    graph = graph_of("one_hot", [np.asarray(a) for a in arrays], {"depth": 2})
    seed = np.array([[1.0, 2], [3, 4], [5, 6]])
    on, off = gradient(graph).evaluate(*arrays, seed)
    assert (on, off) == (5, 16)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("k", [-2, 0, 1, 9])
def test_triangle_is_onnx_trilu(upper: bool, k: int) -> None:
    x = numbers(2, 3, 4)
    (expected,) = run_onnx("Trilu", [x, np.array(k, np.int64)], upper=int(upper))
    np.testing.assert_array_equal(run_op("triangle", x, np.int64(k), upper=upper), expected)


@given(a=st.integers(-9, 9), b=st.integers(-9, 9))
def test_windows_move_into_the_tensor(a: int, b: int) -> None:
    x, update, starts = numbers(4, 5), -numbers(2, 3), np.array([a, b], np.int64)
    row, column = min(max(a, 0), 2), min(max(b, 0), 2)
    np.testing.assert_array_equal(
        run_op("dynamic_slice", x, starts, sizes=(2, 3)), x[row : row + 2, column : column + 3]
    )
    x_new = x.copy()
    x_new[row : row + 2, column : column + 3] = update
    np.testing.assert_array_equal(run_op("dynamic_update_slice", x, update, starts), x_new)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("flip", {"axes": (1,)}),
        ("tile", {"repeats": (2, 3)}),
        ("slice", {"starts": (1, 0), "sizes": (2, 2), "steps": (1, 2)}),
        ("transpose", {"perm": (1, 0)}),
    ],
)
def test_symbolic_sizes_give_the_same_as_known_ones(op: str, attrs: dict[str, Any]) -> None:
    x = numbers(3, 4)
    static, symbolic = (graph_of(op, [x], attrs, symbolic=s) for s in (False, True))
    (expected,) = static.evaluate(x)
    np.testing.assert_array_equal(symbolic.evaluate(x)[0], expected)
    seed = numbers(*expected.shape)
    np.testing.assert_array_equal(gradient(symbolic).evaluate(x, seed)[0], gradient(static).evaluate(x, seed)[0])
