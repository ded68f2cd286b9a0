"""Memory of compiled graphs: the arena against what must be alive at once, reuse in place, concatenation in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dhc_runtime.arena import lower_bound, plan_arena
from dhc_runtime.dims import check_expression, evaluate, symbols_of

import dhc
from dhc.ir import Builder, Graph
from tests.backends.cpu.differential.models import MODELS
from tests.backends.cpu.differential.running import assert_close, run
from tests.models.light_models import path_of


def program_of(artifact: Any) -> dict[str, Any]:
    """The plan of an artifact."""
    program: dict[str, Any] = artifact.plan["program"]
    return program


def arena_of(program: dict[str, Any], sizes: dict[str, int]) -> tuple[list[int], list[int], list[int]]:
    """Bytes, first and last use of the arena buffers whose size the inputs tell."""
    known = set(sizes)
    found = []
    for buffer in program["buffers"]:
        if buffer["kind"] == "arena" and "first" in buffer:
            expression = check_expression(buffer["bytes"], "plan")
            if symbols_of(expression) <= known:
                found.append((int(evaluate(expression, sizes)), buffer["first"], buffer["last"]))
    return tuple(list(column) for column in zip(*found, strict=True)) if found else ([], [], [])  # type: ignore[return-value]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_arena_is_as_small_as_it_can_be(model: Callable[[], Graph], batch: int) -> None:
    program = program_of(dhc.compile(model()))
    sizes, first, last = arena_of(program, {"N": batch, "threads__": 4})
    if not sizes:
        assert all(b["kind"] != "arena" or "first" not in b for b in program["buffers"])
        return
    _, total = plan_arena(sizes, first, last)
    assert total <= 1.05 * lower_bound(sizes, first, last)


def chain() -> Graph:
    """Two branches joined along the outermost axis, and element-wise ops that fusion must not hide."""
    graph = Graph("chain")
    b = Builder(graph)
    x = graph.input("x", "f32", (4, 8))
    y = b.matmul(x, b.constant(np.eye(8, dtype=np.float32), "f32"))
    joined = b.concat(b.exp(x), b.tanh(y), axis=0)
    total = b.cumsum(joined, axis=1)
    graph.output(b.reduce_sum(b.neg(b.softmax(total, axis=1)), axes=(0,)))
    return graph


def test_concatenation_in_place_writes_no_copy() -> None:
    graph = chain()
    artifact = dhc.compile(graph)
    program = program_of(artifact)
    assert "concat" not in [item.get("op") for item in program["items"]]
    aliases = [(b["of"], b["offset"], b["bytes"]) for b in program["buffers"] if b["kind"] == "alias"]
    (parent, *_), (other, *_) = aliases
    assert parent == other and sorted(a[1:] for a in aliases) == [(0, 128), (128, 128)]
    assert program["buffers"][parent]["bytes"] == 256
    inputs = {"x": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)}
    assert_close(graph.evaluate(**inputs)[0], run(artifact.session(threads=2), graph, inputs)[0], roundings=64)


def dense(returned: bool) -> Graph:
    """Each part is made of all parts before it (DenseNet), and one takes two neighbours from the middle."""
    graph = Graph("dense")
    b = Builder(graph)
    x = graph.input("x", "f32", (1, 4, 6))
    weights = b.constant(np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6))
    parts = [b.matmul(x, weights)]
    joined = parts[0]
    for number in range(4):
        mixed = b.reduce_sum(b.neg(joined), axes=(1,), keepdims=True)
        parts.append(b.matmul(b.add(mixed, x), weights))
        joined = b.concat(*parts, axis=1)
        if number == 2:
            middle = b.reduce_max(b.concat(*parts[1:3], axis=1), axes=(1,))
    graph.output(b.cumsum(joined, axis=1), middle)
    if returned:
        graph.output(joined)
    return graph


@pytest.mark.parametrize("returned", [False, True])
def test_concatenations_of_the_same_parts_share_their_memory(returned: bool) -> None:
    graph = dense(returned)
    artifact = dhc.compile(graph)
    assert "concat" not in [item.get("op") for item in program_of(artifact)["items"]]
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 6)).astype(np.float32)}
    for threads in (1, 2, 7):
        for found, wanted in zip(
            run(artifact.session(threads=threads), graph, inputs), graph.evaluate(**inputs), strict=True
        ):
            assert_close(wanted, found, roundings=256)


def test_parts_in_another_order_are_copied() -> None:
    graph = Graph("turned")
    b = Builder(graph)
    x = graph.input("x", "f32", (2, 3))
    parts = [b.cumsum(b.call(op, x), axis=1) for op in ("exp", "tanh", "neg")]
    graph.output(b.concat(*parts, axis=0), b.concat(parts[1], parts[0], axis=0), b.concat(parts[0], parts[2], axis=0))
    artifact = dhc.compile(graph)
    assert [item.get("op") for item in program_of(artifact)["items"]].count("concat") == 2
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    for found, wanted in zip(run(artifact.session(), graph, inputs), graph.evaluate(**inputs), strict=True):
        assert_close(wanted, found, roundings=64)


def test_elementwise_takes_over_the_memory_of_its_operand() -> None:
    """Without fusion: five ops in a row use one buffer besides input and output."""
    graph = Graph("row")
    b = Builder(graph)
    value = graph.input("x", "f32", ("N", 8))
    for op in ("exp", "tanh", "neg", "abs", "sqrt", "relu"):
        value = getattr(b, op)(value)
    graph.output(value)
    program = program_of(dhc.compile(graph, passes=[]))
    kinds = [b["kind"] for b in program["buffers"]]
    assert sorted(kinds) == ["arena", "input", "output"], kinds
    fused = program_of(dhc.compile(graph))
    assert sorted(b["kind"] for b in fused["buffers"]) == ["input", "output"]
    assert len(fused["items"]) == 1


def test_views_take_no_memory() -> None:
    graph = Graph("views")
    b = Builder(graph)
    x = graph.input("x", "f32", (4, 6))
    part = b.slice(b.reshape(x, shape=(8, 3)), starts=(2, 0), sizes=(4, 3), steps=(1, 1))
    graph.output(b.reduce_sum(part, axes=(1,)))
    program = program_of(dhc.compile(graph))
    assert [b["kind"] for b in program["buffers"] if b["kind"] == "arena"] == []
    assert len(program["items"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["light_inception_v2", "light_squeezenet"])
def test_networks_take_no_more_than_is_alive_at_once(name: str) -> None:
    """Real networks with many branches, whose concatenations are written in place."""
    program = program_of(dhc.compile(dhc.load_onnx(path_of(name))))
    sizes, first, last = arena_of(program, {**dict.fromkeys(program["symbols"], 1), "threads__": 2})
    assert plan_arena(sizes, first, last)[1] <= 1.05 * lower_bound(sizes, first, last)
    assert "concat" not in [item.get("op") for item in program["items"]]
