"""Recurrent layers with kernels of their own against the interpreter: every cell, direction and instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhc_runtime.errors import DhcError

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract.recurrent import GATES, RecurrentSpec, emit_recurrent
from dhc.backends.cpu.recurrent import plan_recurrent
from dhc.ir import Builder, Graph
from tests.support.cpu_targets import ALL_TARGETS, RUNNABLE

BIASES = {"lstm": 8, "gru": 6, "rnn": 2}
COUNTS = {"lstm": 4, "gru": 3, "rnn": 1}


def layer(
    op: str, steps: Any, batch: Any, features: int, hidden: int, direction: str = "forward", **attrs: Any
) -> Graph:
    """A graph of one layer with constant weights; x, initial states and lengths are inputs."""
    rng = np.random.default_rng(hidden * 7 + features)
    count = 2 if direction == "bidirectional" else 1
    gates = COUNTS[op]
    graph = Graph()
    b = Builder(graph)

    def constant(*shape: int) -> Any:
        return b.constant((rng.standard_normal(shape) / 2).astype(np.float32))

    x = graph.input("x", "f32", (steps, batch, features))
    weights = [
        constant(count, gates * hidden, features),
        constant(count, gates * hidden, hidden),
        constant(count, BIASES[op] * hidden),
    ]
    states = [graph.input("h0", "f32", (count, batch, hidden))]
    if op == "lstm":
        states.append(graph.input("c0", "f32", (count, batch, hidden)))
        states.append(b.constant(np.zeros((count, 3 * hidden), np.float32)))
    if op == "gru":
        attrs.setdefault("linear_before_reset", True)
    lengths = graph.input("lengths", "i64", (batch,))
    graph.output(*b.call(op, x, *weights, *states, lengths, attrs={"direction": direction, **attrs}))
    return graph


def arguments(graph: Graph, sizes: dict[str, int], lengths: Any = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for value in graph.inputs:
        shape = [sizes.get(str(d), d) for d in value.shape]
        found[value.name] = rng.standard_normal(shape).astype(np.float32)
    steps, batch = found["x"].shape[:2]
    found["lengths"] = np.asarray([steps] * batch if lengths is None else lengths, np.int64)
    return found


def own_kernels(graph: Graph) -> bool:
    node = next(n for n in graph if n.op.name in COUNTS)
    return plan_recurrent(node, targets.host_target()) is not None


def check(graph: Graph, inputs: dict[str, np.ndarray], cpu: str | None = None) -> None:
    artifact = dhc.compile(graph, cpu=cpu)
    wanted = graph.evaluate(**inputs)
    first: list[np.ndarray] | None = None
    for threads in (1, 2, 7):
        session = artifact.session(threads=threads)
        found = list(session.run(inputs).values())
        session.close()
        for a, c in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, c, rtol=2e-5, atol=2e-5)
        if first is not None:
            assert [a.tobytes() for a in found] == [a.tobytes() for a in first], f"{threads} threads change the result"
        first = first or found


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", sorted(COUNTS))
@pytest.mark.parametrize(
    ("steps", "batch", "features", "hidden"),
    [(1, 1, 1, 1), (5, 1, 3, 16), (4, 3, 5, 7), (3, 9, 2, 33), (6, 4, 8, 50), (0, 2, 3, 4), (3, 0, 3, 4)],
)
def test_layers(op: str, direction: str, steps: int, batch: int, features: int, hidden: int) -> None:
    graph = layer(op, steps, batch, features, hidden, direction)
    assert own_kernels(graph)
    check(graph, arguments(graph, {}))


@pytest.mark.parametrize("cpu", RUNNABLE)
@pytest.mark.parametrize("op", sorted(COUNTS))
def test_instruction_sets(cpu: str, op: str) -> None:
    graph = layer(op, 4, 5, 6, 21, "bidirectional")
    check(graph, arguments(graph, {}, [4, 4, 4, 4, 2]), cpu)


@pytest.mark.parametrize("op", sorted(COUNTS))
@pytest.mark.parametrize("lengths", [[5, 5, 5, 5, 3], [0, 1, 2, 3, 5], [2, 2, 2, 2, 2], [5, 0, 5, 5, 5]])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_lengths(op: str, lengths: list[int], direction: str) -> None:
    """Steps after the end of a sequence give zeros and leave the states; backward begins at its end."""
    graph = layer(op, 5, 5, 3, 18, direction)
    check(graph, arguments(graph, {}, lengths))


@pytest.mark.parametrize("op", sorted(COUNTS))
def test_sizes_known_at_run_time(op: str) -> None:
    graph = layer(op, "T", "N", 3, 10, "bidirectional")
    assert own_kernels(graph)
    for steps, batch in ((3, 2), (1, 1), (7, 8), (0, 1)):
        check(graph, arguments(graph, {"T": steps, "N": batch}, seed=steps))


@pytest.mark.parametrize("wrong", [[3, 6], [-1, 5]])
def test_lengths_out_of_range(wrong: list[int]) -> None:
    graph = layer("lstm", 5, 2, 3, 4)
    session = dhc.compile(graph).session(threads=2)
    with pytest.raises(DhcError, match=r"out of (bounds|range)"):
        session.run(arguments(graph, {}, wrong))


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("lstm", {"clip": 0.5}),
        ("lstm", {"input_forget": True}),
        ("lstm", {"activations": ("Sigmoid", "Relu", "Tanh")}),
        ("gru", {"linear_before_reset": False}),
        ("gru", {"activations": ("HardSigmoid", "Tanh")}),
        ("rnn", {"activations": ("Softsign",)}),
        ("rnn", {"activations": ("Relu",)}),
    ],
)
def test_variants(op: str, attrs: dict[str, Any]) -> None:
    """What the kernels do not know runs as the opaque function, and gives the same."""
    graph = layer(op, 4, 2, 3, 5, **attrs)
    assert own_kernels(graph) == (attrs.get("activations") == ("Relu",))
    check(graph, arguments(graph, {}))


@pytest.mark.parametrize("cpu", ALL_TARGETS)
@pytest.mark.parametrize("cell", sorted(GATES))
def test_every_target_has_code(cpu: str, cell: str) -> None:
    target = targets.target(cpu)
    code = emit_recurrent(RecurrentSpec(cell), target)
    assert len(targets.compile_ir(code.ir, target)) > 0


def test_peepholes_keep_the_opaque_function() -> None:
    graph = Graph()
    b = Builder(graph)
    rng = np.random.default_rng(3)
    x = graph.input("x", "f32", (3, 2, 4))
    values = [
        rng.standard_normal(s).astype(np.float32) for s in ((1, 20, 4), (1, 20, 5), (1, 40), (1, 2, 5), (1, 2, 5))
    ]
    values.append(rng.standard_normal((1, 15)).astype(np.float32))
    graph.output(*b.lstm(x, *(b.constant(v) for v in values), b.constant(np.array([3, 2], np.int64))))
    assert not own_kernels(graph)
    session = dhc.compile(graph).session(threads=1)
    inputs = {"x": rng.standard_normal((3, 2, 4)).astype(np.float32)}
    for found, wanted in zip(session.run(inputs).values(), graph.evaluate(**inputs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
