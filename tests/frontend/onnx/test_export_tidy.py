"""Exported models hold what other tools expect: PRelu as one operator, no zero states, nothing that is not used."""

from __future__ import annotations

import numpy as np
import pytest

import dhc
from dhc.frontend.onnx import to_onnx


def operators(graph: dhc.Graph) -> list[str]:
    return [node.op_type for node in to_onnx(graph).graph.node]


def recurrent(op: str, start: float = 0.0, peephole: float = 0.0, length: int = 4) -> dhc.Graph:
    gates = {"lstm": 4, "gru": 3}[op]
    graph = dhc.Graph("net")
    rng = np.random.default_rng(0)

    def constant(*shape: int, value: float | None = None) -> object:
        array = rng.standard_normal(shape) if value is None else np.full(shape, value)
        return dhc.ops.constant(graph, array.astype(np.float32))

    x = graph.input("x", "f32", (4, 2, 3))
    weights = [constant(1, gates * 5, 3), constant(1, gates * 5, 5), constant(1, 2 * gates * 5)]
    states = [constant(1, 2, 5, value=start) for _ in range(2 if op == "lstm" else 1)]
    if op == "lstm":
        states.append(constant(1, 15, value=peephole))
    lengths = dhc.ops.constant(graph, np.array([4, length], np.int64))
    results = getattr(dhc.ops, op)(x, *weights, *states, lengths)
    graph.output(*results, names=["y", "h", "c"][: len(results)])
    return graph


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_zero_states_and_whole_lengths_are_left_out(op: str) -> None:
    model = to_onnx(recurrent(op))
    (node,) = model.graph.node
    assert [bool(name) for name in node.input] == [True] * 4
    assert len(model.graph.initializer) == 3


@pytest.mark.parametrize(
    ("given", "position"), [({"start": 0.5}, 5), ({"start": 0.5}, 6), ({"peephole": 0.5}, 7), ({"length": 3}, 4)]
)
def test_states_and_lengths_that_matter_are_written(given: dict, position: int) -> None:
    node = to_onnx(recurrent("lstm", **given)).graph.node[-1]
    assert node.op_type == "LSTM" and node.input[position]


@pytest.mark.parametrize("given", [{}, {"start": 0.5}, {"length": 3}])
@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_what_comes_back_gives_the_same_answer(op: str, given: dict, tmp_path) -> None:
    graph = recurrent(op, **given)
    dhc.save_onnx(graph, tmp_path / "net.onnx")
    x = np.random.default_rng(1).standard_normal((4, 2, 3), dtype=np.float32)
    for wanted, actual in zip(graph.evaluate(x), dhc.load_onnx(tmp_path / "net.onnx").evaluate(x), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


def leaky(below: str, slope: object, zero: float = 0.0) -> dhc.Graph:
    graph = dhc.Graph("net")
    x = graph.input("x", "f32", (2, 3, 4))
    scaled = x * slope if below == "left" else dhc.ops.constant(graph, np.float32(slope)) * x
    graph.output(dhc.ops.where(dhc.ops.lt(x, zero), scaled, x), names=["y"])
    return graph


@pytest.mark.parametrize("below", ["left", "right"])
def test_prelu_is_recognised_on_either_side_of_the_product(below: str) -> None:
    graph = leaky(below, 0.25)
    assert operators(graph) == ["PRelu"]
    x = np.random.default_rng(1).standard_normal((2, 3, 4), dtype=np.float32)
    np.testing.assert_array_equal(graph.evaluate(x)[0], np.where(x < 0, x * np.float32(0.25), x))


def test_another_threshold_is_no_prelu() -> None:
    assert operators(leaky("left", 0.25, zero=1.0)) == ["Mul", "Less", "Where"]


def test_another_value_above_is_no_prelu() -> None:
    graph = dhc.Graph("net")
    x = graph.input("x", "f32", (3,))
    graph.output(dhc.ops.where(dhc.ops.lt(x, 0.0), x * 0.25, dhc.ops.exp(x)), names=["y"])
    assert "PRelu" not in operators(graph)


def test_a_slope_that_enlarges_the_result_is_no_prelu() -> None:
    graph = dhc.Graph("net")
    x = graph.input("x", "f32", (1, 3))
    slope = graph.input("slope", "f32", (4, 3))
    graph.output(dhc.ops.where(dhc.ops.lt(x, 0.0), slope * x, x), names=["y"])
    assert "PRelu" not in operators(graph)


def test_nothing_unused_is_written() -> None:
    graph = dhc.Graph("net")
    x = graph.input("x", "f32", (3,))
    dhc.ops.exp(x * 7.0)
    graph.output(dhc.ops.tanh(x + 2.0), names=["y"])
    model = to_onnx(graph)
    assert [node.op_type for node in model.graph.node] == ["Add", "Tanh"]
    assert len(model.graph.initializer) == 1


def test_what_only_nested_graphs_use_stays(tmp_path) -> None:
    graph = dhc.Graph("net")
    x, chosen = graph.input("x", "f32", (3,)), graph.input("chosen", "bool", ())

    def branch(op: str) -> dhc.Graph:
        nested = dhc.Graph(op, parent=graph)
        nested.output(getattr(dhc.ops, op)(nested.input("v", "f32", (3,))))
        return nested

    y = dhc.ops.if_(chosen, x + 2.0, regions=[branch("exp"), branch("tanh")])
    graph.output(y, names=["y"])
    assert operators(graph)[0] == "Add"
    dhc.save_onnx(graph, tmp_path / "net.onnx")
    given = np.array([0.5, -1.0, 2.0], np.float32), np.array(True)
    (actual,) = dhc.load_onnx(tmp_path / "net.onnx").evaluate(*given)
    np.testing.assert_allclose(actual, np.exp(given[0] + 2), rtol=1e-6)
