"""Attention in one kernel against the interpreter: sizes, masks, views, instruction sets, numbers of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.attention import plan_attention
from dhc.ir import Builder, Graph, Value
from dhc.passes.pipelines import standard_pipeline
from tests.support.cpu_targets import ALL_TARGETS, RUNNABLE
from tests.support.threads import check_artifact


def scores_graph(
    batch: Sequence[Any], m: Any, n: Any, d: Any, e: Any, mask: Sequence[Any] | None = None, boolean: bool = False
) -> Graph:
    """Softmax of scaled and masked products of queries and keys, times values."""
    graph = Graph()
    b = Builder(graph)
    q, k, v = (graph.input(x, "f32", (*batch, *s)) for x, s in (("q", (m, d)), ("k", (n, d)), ("v", (n, e))))
    rank = len(batch)
    scores = b.matmul(q, b.transpose(k, perm=[*range(rank), rank + 1, rank]))
    scores = b.mul(scores, b.like(0.4, scores))
    if mask is not None and boolean:
        scores = b.where(graph.input("mask", "bool", tuple(mask)), scores, b.like(-np.inf, scores))
    elif mask is not None:
        scores = b.add(scores, graph.input("mask", "f32", tuple(mask)))
    graph.output(b.matmul(b.softmax(scores, axis=-1), v))
    return graph


def arguments(graph: Graph, sizes: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found: dict[str, np.ndarray] = {}
    for value in graph.inputs:
        shape = [(sizes or {}).get(str(d), d) for d in value.shape]
        if value.dtype.name == "bool":
            drawn = rng.random(shape) < 0.6
            if drawn.size:
                drawn[..., 0] = True  # a row without a key has no softmax
            found[value.name] = drawn
        else:
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def check(graph: Graph, inputs: dict[str, np.ndarray], cpu: str | None = None, steps: int | None = 1) -> None:
    artifact = dhc.compile(graph, cpu=cpu)
    if steps is not None:
        assert artifact.report.backend["steps"] == steps
    (wanted,) = graph.evaluate(**inputs)
    check_artifact(artifact, inputs, wanted, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("batch", "m", "n", "d", "e"),
    [
        ((), 5, 7, 3, 2),
        ((2,), 1, 1, 1, 2),
        ((2, 3), 13, 33, 17, 40),
        ((1, 2), 49, 49, 8, 8),
        ((2, 1, 2, 1), 25, 64, 16, 33),
        ((1, 1), 3, 200, 64, 64),
        ((0, 2), 3, 4, 5, 6),
        ((2,), 0, 4, 5, 6),
        ((3,), 4, 5, 6, 0),
    ],
)
def test_sizes(batch: tuple[int, ...], m: int, n: int, d: int, e: int) -> None:
    graph = scores_graph(batch, m, n, d, e)
    check(graph, arguments(graph), steps=None if 0 in (*batch, m, e) or n == 1 else 1)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize(
    "mask", [(2, 3, 14, 35), (3, 14, 35), (1, 14, 35), (14, 35), (1, 35), (2, 1, 1, 35), (2, 3, 14, 1), (1, 1)]
)
def test_masks(mask: tuple[int, ...], boolean: bool) -> None:
    graph = scores_graph((2, 3), 14, 35, 8, 20, mask, boolean)
    inputs = arguments(graph)
    if mask[-1] == 1 and boolean:
        inputs["mask"][...] = True
    check(graph, inputs)


@pytest.mark.parametrize("cpu", RUNNABLE)
@pytest.mark.parametrize("boolean", [False, True])
def test_instruction_sets(cpu: str, boolean: bool) -> None:
    graph = scores_graph((2, 2), 19, 37, 11, 21, (2, 1, 19, 37), boolean)
    check(graph, arguments(graph), cpu)


@pytest.mark.parametrize("cpu", ALL_TARGETS)
def test_every_target_has_code(cpu: str) -> None:
    graph = scores_graph((2, 2), "M", "K", 8, 16, (2, 1, "M", "K"), True)
    for step in standard_pipeline():
        step.run(graph)
    (group,) = (node for node in graph if node.op.name == "fused")
    planned = plan_attention(group.regions[0], targets.target(cpu))
    assert planned is not None
    assert len(targets.compile_ir(planned.code.ir, targets.target(cpu))) > 0


def test_sizes_known_at_run_time() -> None:
    graph = scores_graph(("B", 2), "M", "K", 8, 20, ("B", 1, 1, "K"))
    for sizes in ((2, 17, 35), (1, 1, 1), (1, 50, 4), (3, 24, 64)):
        inputs = arguments(graph, dict(zip(("B", "M", "K"), sizes)))
        check(graph, inputs)


@pytest.mark.parametrize("cpu", RUNNABLE)
@pytest.mark.parametrize("n", [16, 49])
def test_rows_in_registers_have_the_bits_of_long_ones(cpu: str, n: int) -> None:
    """Few keys, known and not: rows stay in registers, or are gone through twice."""
    found = []
    for count in (n, "K"):
        graph = scores_graph((2,), 25, count, 8, 32, (25, count))
        inputs = arguments(graph, {"K": n})
        with dhc.compile(graph, cpu=cpu).session(threads=2) as session:
            found += list(session.run(inputs).values())
    assert found[0].tobytes() == found[1].tobytes()


def packed_graph(written: bool = True) -> Graph:
    """Self-attention as exporters write it: one product for q, k and v, split, heads moved to the front and back."""
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", (2, 21, 3 * 4 * 8))
    triple = b.transpose(b.reshape(x, shape=(2, 21, 3, 4, 8)), perm=[2, 0, 3, 1, 4])

    def part(i: int) -> Value:
        size = (1, 2, 4, 21, 8)
        return b.reshape(b.slice(triple, starts=(i, 0, 0, 0, 0), sizes=size, steps=(1,) * 5), shape=size[1:])

    q, k, v = part(0), part(1), part(2)
    q = b.mul(q, b.like(8**-0.5, q))
    scores = b.matmul(q, b.transpose(k, perm=[0, 1, 3, 2]))
    mixed = b.matmul(b.softmax(scores, axis=-1), v)
    graph.output(b.reshape(b.transpose(mixed, perm=[0, 2, 1, 3]), shape=(2, 21, 32)))
    if not written:
        graph.output(q)
    return graph


def test_heads_are_read_and_written_in_place() -> None:
    graph = packed_graph()
    check(graph, arguments(graph))


def test_queries_that_are_used_elsewhere() -> None:
    """They have to lie in memory: the rest is one kernel all the same."""
    graph = packed_graph(written=False)
    inputs = arguments(graph)
    session = dhc.compile(graph).session(threads=2)
    for found, wanted in zip(session.run(inputs).values(), graph.evaluate(**inputs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=3e-6)


def test_keys_stored_by_feature() -> None:
    graph = Graph()
    b = Builder(graph)
    q, k, v = (graph.input(x, "f32", s) for x, s in (("q", (3, 9, 5)), ("k", (3, 5, 40)), ("v", (3, 40, 7))))
    graph.output(b.matmul(b.softmax(b.matmul(q, k), axis=-1), v))
    check(graph, arguments(graph))


def test_one_set_of_keys_for_all_heads() -> None:
    graph = Graph()
    b = Builder(graph)
    q, k, v = (graph.input(x, "f32", s) for x, s in (("q", (2, 6, 9, 8)), ("k", (2, 1, 8, 12)), ("v", (12, 8))))
    graph.output(b.matmul(b.softmax(b.matmul(q, k), axis=-1), v))
    check(graph, arguments(graph))


@pytest.mark.parametrize("batch", [2, "B"])
def test_masks_of_windows(batch: Any) -> None:
    """As exporters write shifted windows: batch axes split for a mask of each window, and joined again."""
    graph = Graph()
    b = Builder(graph)
    windows, heads, n = 3, 2, 19
    q, k, v = (graph.input(x, "f32", (f"{batch}*{windows}" if batch == "B" else 6, heads, n, 8)) for x in "qkv")
    bias, mask = graph.input("bias", "f32", (heads, n, n)), graph.input("mask", "f32", (windows, n, n))
    scores = b.add(b.matmul(q, b.transpose(k, perm=[0, 1, 3, 2])), bias)
    count = q.shape[0]
    first = 2 if batch == 2 else dhc.ir.symbols.sym("B")
    split = b.reshape(scores, shape=(first, windows, heads, n, n))
    masked = b.add(split, b.reshape(mask, shape=(1, windows, 1, n, n)))
    weights = b.softmax(b.reshape(masked, shape=(count, heads, n, n)), axis=-1)
    graph.output(b.transpose(b.matmul(weights, v), perm=[0, 2, 1, 3]))
    inputs = {x.name: np.random.default_rng(4).standard_normal([6 if not isinstance(d, int) else d for d in x.shape])
              .astype(np.float32) for x in graph.inputs}  # fmt: skip
    check(graph, inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_the_op_attention(causal: bool) -> None:
    graph = Graph()
    b = Builder(graph)
    q, k, v = (graph.input(x, "f32", (2, 3, 20, 16)) for x in "qkv")
    graph.output(b.attention(q, k, v, causal=causal))
    check(graph, arguments(graph))


def test_large_scores_and_nothing_to_see() -> None:
    """Differences beyond the range of exp give zeros; a row of -inf gives NaN, as the interpreter does."""
    graph = scores_graph((1,), 3, 20, 4, 5, (3, 20))
    inputs = arguments(graph)
    inputs["mask"][0] = 1000 * np.arange(20)
    inputs["mask"][1] = -np.inf
    session = dhc.compile(graph).session(threads=1)
    (found,), (wanted,) = session.run(inputs).values(), graph.evaluate(**inputs)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=3e-5)


def test_weights_that_are_returned_are_not_fused() -> None:
    graph = Graph()
    b = Builder(graph)
    q, k, v = (graph.input(x, "f32", s) for x, s in (("q", (2, 9, 5)), ("k", (2, 5, 12)), ("v", (2, 12, 7))))
    weights = b.softmax(b.matmul(q, k), axis=-1)
    graph.output(b.matmul(weights, v), weights)
    inputs = arguments(graph)
    session = dhc.compile(graph).session(threads=2)
    for found, wanted in zip(session.run(inputs).values(), graph.evaluate(**inputs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=3e-6)
