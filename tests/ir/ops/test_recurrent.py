"""LSTM, GRU and RNN against ONNX Runtime; the function that backends compile; gradients; sequence lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dhc.backends.cpu.numba.builtins import whole
from dhc.errors import DhcError, ShapeError
from dhc.ir import registry
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from dhc.ir.kinds import Opaque
from dhc.ir.op import Call
from dhc.ir.ops.recurrent import ACTIVATIONS
from tests.ir.op_examples import examples_for
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
ONNX_NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
ACTIVATION_COUNT = {"lstm": 3, "gru": 2, "rnn": 1}
DIRECTIONS = ["forward", "reverse", "bidirectional"]


def _operands(
    op: str, seed: int, direction: str, lengths: Sequence[int] | None = None, sizes: tuple[int, ...] = (5, 3, 4, 3)
) -> list[np.ndarray]:
    """x, w, r, b, h0 (c0, p for LSTM), lengths."""
    rng = np.random.default_rng(seed)
    steps, batch, features, hidden = sizes
    count, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    shapes = [
        (steps, batch, features),
        (count, gates * hidden, features),
        (count, gates * hidden, hidden),
        (count, 2 * gates * hidden),
        (count, batch, hidden),
    ]
    if op == "lstm":
        shapes += [(count, batch, hidden), (count, 3 * hidden)]
    arrays = [(rng.standard_normal(s) * 0.6).astype(np.float32) for s in shapes]
    return [*arrays, np.array([steps] * batch if lengths is None else lengths, np.int64)]


def _onnx(op: str, operands: list[np.ndarray], **attrs: Any) -> list[np.ndarray]:
    x, w, r, b, h0, *more, lengths = operands
    inputs = [x, w, r, b, lengths.astype(np.int32), h0, *more]
    return run_onnx(ONNX_NAMES[op], inputs, outputs=3 if op == "lstm" else 2, opset=14, hidden_size=r.shape[2], **attrs)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lengths", [None, (5, 2, 3)])
def test_agrees_with_onnxruntime(op: str, direction: str, lengths: Sequence[int] | None) -> None:
    operands = _operands(op, 1, direction, lengths)
    expected = _onnx(op, operands, direction=direction)
    assert_close(run_dhc(op, operands, direction=direction), expected)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_agrees_with_onnxruntime(op: str, name: str) -> None:
    # Few steps: unbounded activations grow doubly exponentially in an LSTM.
    operands = _operands(op, 2, "bidirectional", sizes=(2, 3, 4, 3))
    count = ACTIVATION_COUNT[op] * 2
    alpha, beta = {"HardSigmoid": (0.3, 0.4), "ScaledTanh": (0.8, 0.7), "Affine": (0.5, 0.2)}.get(name, (0.3, 0.0))
    takes_alpha = name in ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu")
    takes_beta = name in ("Affine", "ScaledTanh", "HardSigmoid")
    theirs: dict[str, Any] = {"direction": "bidirectional", "activations": [name] * count}
    if takes_alpha:
        theirs["activation_alpha"] = [alpha] * count
    if takes_beta:
        theirs["activation_beta"] = [beta] * count
    ours = {"alphas": [alpha] * count, "betas": [beta] * count} if takes_alpha else {}
    actual = run_dhc(op, operands, direction="bidirectional", activations=[name] * count, **ours)
    assert_close(actual, _onnx(op, operands, **theirs))


def test_parameters_go_to_the_activations_that_take_them() -> None:
    operands = _operands("lstm", 12, "forward")
    attrs = {"activations": ["Sigmoid", "leakyrelu", "HardSigmoid"]}
    expected = _onnx("lstm", operands, activation_alpha=[0.3, 0.4], activation_beta=[0.6], **attrs)
    assert_close(run_dhc("lstm", operands, alphas=(0.3, 0.4), betas=(0.6,), **attrs), expected)
    full = run_dhc("lstm", operands, alphas=(9.0, 0.3, 0.4), betas=(9.0, 9.0, 0.6), **attrs)
    assert_close(full, expected)
    assert_close(run_dhc("lstm", operands, **attrs), _onnx("lstm", operands, **attrs))


@pytest.mark.parametrize("op", GATES)
def test_clip_agrees_with_onnxruntime(op: str) -> None:
    operands = _operands(op, 3, "forward")
    operands[0] = operands[0] * np.float32(4)
    expected = _onnx(op, operands, clip=0.5)
    assert_close(run_dhc(op, operands, clip=0.5), expected)


def test_coupled_forget_gate() -> None:
    operands = _operands("lstm", 4, "reverse", (5, 4, 1))
    expected = _onnx("lstm", operands, direction="reverse", input_forget=1)
    assert_close(run_dhc("lstm", operands, direction="reverse", input_forget=True), expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_reset_after_the_product(direction: str) -> None:
    operands = _operands("gru", 5, direction, (5, 4, 1))
    expected = _onnx("gru", operands, direction=direction, linear_before_reset=1)
    assert_close(run_dhc("gru", operands, direction=direction, linear_before_reset=True), expected)


@pytest.mark.parametrize("op", GATES)
def test_an_empty_sequence_keeps_its_state(op: str) -> None:
    operands = _operands(op, 6, "bidirectional", (0, 5, 2))
    y, h, *_ = run_dhc(op, operands, direction="bidirectional")
    assert not y[:, :, 0].any()
    np.testing.assert_array_equal(h[:, 0], operands[4][:, 0])


def _run_kernel(function: Any, call: Call, arrays: Sequence[np.ndarray], pieces: int) -> tuple[int, list[np.ndarray]]:
    kind = call.op.kind
    assert isinstance(kind, Opaque) and kind.args and kind.scratch and kind.parallel
    results = [np.full(t.shape, 9, t.dtype.numpy) for t in call.results]
    scratch = [np.full(shape, 9, d.numpy) for d, shape in kind.scratch(call)]
    items = int(kind.parallel(call))  # type: ignore[arg-type]
    bounds = [items * i // pieces for i in range(pieces + 1)]
    status = 0
    for begin, end in itertools.pairwise(bounds):
        status = status or function(*arrays, *results, *scratch, *kind.args(call), begin, end)
    return status, results


@pytest.mark.nightly  # in every run, tests/backends/cpu/numba compiles the same functions as the CPU target does
@pytest.mark.parametrize("op", GATES)
def test_the_compiled_function_agrees_with_the_reference(op: str) -> None:
    import numba

    kind = registry.get(op).kind
    assert isinstance(kind, Opaque)
    function = numba.njit(whole(kind.function))
    for example, pieces in itertools.product(examples_for(registry.get(op)), (1, 3)):
        graph = example.graph()
        status, results = _run_kernel(function, Call.of(graph.nodes[0]), example.arrays, pieces)
        assert status == 0
        assert_close(results, graph.evaluate(*example.arrays))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_plain_function_agrees_with_the_reference(op: str, pieces: int) -> None:
    kind = registry.get(op).kind
    assert isinstance(kind, Opaque)
    for example in examples_for(registry.get(op)):
        graph = example.graph()
        status, results = _run_kernel(kind.function, Call.of(graph.nodes[0]), example.arrays, pieces)
        assert status == 0
        assert_close(results, graph.evaluate(*example.arrays))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_function(op: str, name: str) -> None:
    """In plain Python, on both directions with different activations."""
    count = ACTIVATION_COUNT[op]
    attrs = {"direction": "bidirectional", "activations": [name] * count + ["Sigmoid"] * count}
    arrays = _operands(op, 7, "bidirectional", (2, 1), sizes=(2, 2, 2, 2))
    call = Call.of(graph_of(op, arrays, attrs).nodes[0])
    kind = call.op.kind
    assert isinstance(kind, Opaque)
    status, results = _run_kernel(kind.function, call, arrays, 1)
    assert status == 0
    assert_close(results, run_dhc(op, arrays, **attrs))


@pytest.mark.parametrize("op", GATES)
def test_a_length_out_of_range_is_an_error(op: str) -> None:
    for wrong in (-1, 6):
        arrays = _operands(op, 8, "forward", (5, wrong, 2))
        with pytest.raises(DhcError, match="length is out of range"):
            run_dhc(op, arrays)
        call = Call.of(graph_of(op, arrays, {}).nodes[0])
        kind = call.op.kind
        assert isinstance(kind, Opaque)
        assert _run_kernel(kind.function, call, arrays, 1)[0] == 1


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_gradients(op: str, direction: str) -> None:
    """Lengths, clip and the variants of the gates; symbolic number of steps and batch."""
    arrays = _operands(op, 9, direction, (3, 2), sizes=(3, 2, 2, 2))
    arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    attrs: dict[str, Any] = {"direction": direction, "clip": 0.9}
    if op == "gru":
        attrs["linear_before_reset"] = direction == "reverse"
    if op == "lstm":
        attrs["input_forget"] = direction == "reverse"
    check_gradient(graph_of(op, arrays, attrs), arrays, tolerance=1e-5)


def test_symbolic_steps_and_batch() -> None:
    operands = _operands("rnn", 10, "forward")
    graph = Graph()
    shapes = [("T", "B", 4), (1, 3, 4), (1, 3, 3), (1, 6), (1, "B", 3)]
    inputs = [graph.input(f"x{i}", "f64", s) for i, s in enumerate(shapes)]
    results = Builder(graph).rnn(*inputs, graph.input("lengths", "i64", ("B",)))
    graph.output(*results)
    assert [str(r.type) for r in results] == ["f64[T, 1, B, 3]", "f64[1, B, 3]"]
    arrays = [a.astype(np.float64) for a in operands[:-1]]
    check_gradient(graph, [*arrays, operands[-1]], tolerance=1e-5)


def test_wrong_calls_are_refused() -> None:
    arrays = _operands("lstm", 11, "forward")
    for attrs, message in [
        ({"activations": ("Tanh",)}, "needs 3 activations"),
        ({"activations": ("Tanh", "Sine", "Tanh")}, "unknown activation 'Sine'"),
        ({"alphas": (1.0,)}, "alphas needs 3 numbers, or up to 0"),
        ({"direction": "bidirectional"}, "axis 0 of w"),
        ({"clip": -1.0}, "negative"),
    ]:
        with pytest.raises(ShapeError, match=message):
            graph_of("lstm", arrays, attrs)
