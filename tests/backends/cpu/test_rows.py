"""Normalisations of rows run as one kernel with the interpreter's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc
from dhc.ir import Builder, Graph
from tests.support.threads import check_artifact


def norm(op: str, shape: tuple[Any, ...], axis: int = -1, bias: bool = True) -> Graph:
    graph = Graph()
    b = Builder(graph)
    rng = np.random.default_rng(0)
    x = graph.input("x", "f32", shape)
    tail = tuple(x.shape[axis:])
    scale, shift = (b.constant(rng.standard_normal(tail).astype(np.float32)) for _ in range(2))
    operands = (x, scale, shift) if bias and op == "layer_norm" else (x, scale)
    graph.output(b.relu(b.call(op, *operands, attrs={"axis": axis})))
    return graph


def check(graph: Graph, x: np.ndarray, steps: int | None = 1) -> None:
    artifact = dhc.compile(graph)
    if steps is not None:
        assert artifact.report.backend["steps"] == steps
    (wanted,) = graph.evaluate(x)
    check_artifact(artifact, {"x": x}, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 40), -1), ((2, 3, 64), -1), ((1, 33), -1), ((2, 5, 7, 9), -2), ((4, 1, 4096), -1)]
)
def test_one_kernel(op: str, shape: tuple[int, ...], axis: int) -> None:
    check(norm(op, shape, axis), np.random.default_rng(1).standard_normal(shape).astype(np.float32) + 3)


@pytest.mark.parametrize("shape", [(0, 40), (3, 1), (3, 8), (2, 5000)])
def test_rows_that_do_not_pay(shape: tuple[int, ...]) -> None:
    """Empty ones, and those that are short or do not stay in cache, are computed by several kernels."""
    check(norm("layer_norm", shape), np.random.default_rng(1).standard_normal(shape).astype(np.float32), steps=None)


def test_sizes_known_at_run_time() -> None:
    graph = norm("layer_norm", ("N", "M", 48))
    for n, m in ((2, 3), (1, 1), (0, 4)):
        check(graph, np.random.default_rng(n).standard_normal((n, m, 48)).astype(np.float32))


def test_a_mean_that_is_returned_too() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", (4, 50))
    mean = b.reduce_mean(x, axes=[1], keepdims=True)
    centred = b.sub(x, mean)
    graph.output(b.mul(centred, b.reduce_max(centred, axes=[1], keepdims=True)), mean)
    values = np.random.default_rng(5).standard_normal((4, 50)).astype(np.float32)
    session = dhc.compile(graph).session(threads=2)
    for found, wanted in zip(session.run({"x": values}).values(), graph.evaluate(values), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
