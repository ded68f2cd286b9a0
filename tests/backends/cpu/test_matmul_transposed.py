"""Matrix products of transposed operands: one kernel that reads the matrices as they lie."""

from __future__ import annotations

import numpy as np
import pytest

import dhc
from dhc.ir import Builder, Graph, Value
from tests.support.threads import check_artifact


def product(
    a_batch: tuple[int, ...], b_batch: tuple[int, ...], sizes: tuple[int, int, int], turned: str, constant: bool
) -> Graph:
    """``relu(a b + bias)``; `turned` names the operands that are stored transposed."""
    m, k, n = sizes
    graph = Graph()
    b = Builder(graph)
    rng = np.random.default_rng(0)

    def operand(name: str, batch: tuple[int, ...], rows: int, columns: int) -> Value:
        shape = (*batch, columns, rows) if name in turned else (*batch, rows, columns)
        if constant and name == "b":
            value = b.constant(rng.standard_normal(shape).astype(np.float32))
        else:
            value = graph.input(name, "f32", shape)
        rank = len(shape)
        return b.transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2]) if name in turned else value

    result = b.matmul(operand("a", a_batch, m, k), operand("b", b_batch, k, n))
    graph.output(b.relu(b.add(result, b.constant(rng.standard_normal(n).astype(np.float32)))))
    return graph


def check(graph: Graph, steps: int | None = 1) -> None:
    rng = np.random.default_rng(1)
    inputs = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}
    artifact = dhc.compile(graph)
    if steps is not None:
        assert artifact.report.backend["steps"] == steps
    (wanted,) = graph.evaluate(**inputs)
    check_artifact(artifact, inputs, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turned", ["a", "b", "ab"])
@pytest.mark.parametrize(
    ("a_batch", "b_batch"), [((), ()), ((2, 3), (2, 3)), ((2, 3), ()), ((1,), (4,)), ((3,), (1,)), ((2, 1), (1, 3))]
)
@pytest.mark.parametrize("sizes", [(5, 7, 9), (33, 17, 40), (2, 30, 3)])
def test_turned_operands(
    turned: str, a_batch: tuple[int, ...], b_batch: tuple[int, ...], sizes: tuple[int, int, int]
) -> None:
    check(product(a_batch, b_batch, sizes, turned, constant=False))


@pytest.mark.parametrize("turned", ["a", "b", "ab"])
@pytest.mark.parametrize("a_batch", [(), (2, 3)])
def test_constant_weights(turned: str, a_batch: tuple[int, ...]) -> None:
    check(product(a_batch, (), (13, 8, 40), turned, constant=True))


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (1, 64, 2), (2, 1, 64)])
def test_small_and_empty(sizes: tuple[int, int, int]) -> None:
    check(product((), (), sizes, "ab", constant=False), steps=None)


def test_a_transpose_that_is_used_elsewhere_too() -> None:
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", (6, 4))
    y = b.transpose(x, perm=[1, 0])
    graph.output(b.matmul(x, y), b.add(y, 1.0))
    values = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    session = dhc.compile(graph).session(threads=2)
    for found, wanted in zip(session.run({"x": values}).values(), graph.evaluate(values), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_integers_run_as_loops() -> None:
    graph = Graph()
    b = Builder(graph)
    x, y = graph.input("x", "i32", (3, 4)), graph.input("y", "i32", (5, 4))
    graph.output(b.matmul(x, b.transpose(y, perm=[1, 0])))
    rng = np.random.default_rng(2)
    inputs = {v.name: rng.integers(-9, 9, v.shape).astype(np.int32) for v in graph.inputs}
    (found,) = dhc.compile(graph).session(threads=1).run(inputs).values()
    np.testing.assert_array_equal(found, inputs["x"] @ inputs["y"].T)
