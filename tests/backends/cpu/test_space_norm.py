"""Instance and group normalisation against the interpreter: sizes, threads, what follows, memory, instruction sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract.space_norm import HEADER, PIECE, SpaceNormSpec, emit_moments, emit_space_norm
from dhc.ir import Builder, Graph, Value
from tests.support.threads import check_artifact


def _constant(b: Builder, seed: int, *shape: int) -> Value:
    return b.constant(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _graph(shape: tuple[Any, ...], op: str, tail: Any = None, dtype: str = "f32", **attrs: Any) -> Graph:
    graph = Graph()
    x = graph.input("x", dtype, shape)
    b = Builder(graph)
    vectors = [b.cast(_constant(b, seed, shape[1]), dtype=dtype) for seed in (1, 2)]
    y = b.call(op, x, *vectors, attrs=attrs)
    graph.output(y if tail is None else tail(b, y, x))
    return graph


def _check(graph: Graph, x: np.ndarray, steps: int = 2, threads: tuple[int, ...] = (1, 2, 3, 7)) -> None:
    artifact = dhc.compile(graph)
    assert len(artifact.plan["program"]["items"]) == steps
    (wanted,) = graph.evaluate(x)
    check_artifact(artifact, {"x": x}, wanted, rtol=2e-5, atol=2e-5, threads=threads)


def _image(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 2 + 30).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 2),
    groups=st.integers(1, 4),
    of_group=st.integers(1, 3),
    space=st.lists(st.sampled_from([1, 2, 5, 16, 17, 33]), min_size=1, max_size=3),
)
def test_sizes(batch: int, groups: int, of_group: int, space: list[int]) -> None:
    shape = (batch, groups * of_group, *space)
    if of_group == 1:
        _check(_graph(shape, "instance_norm"), _image(*shape))
    _check(_graph(shape, "group_norm", groups=groups, epsilon=1e-3), _image(*shape))


@pytest.mark.parametrize("positions", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_of_several_pieces(positions: int, groups: int) -> None:
    """Three rows for two and seven threads: pieces are shared; for one and three threads whole rows are."""
    shape = (1, 3, positions)
    _check(_graph(shape, "group_norm", groups=groups), _image(*shape))


TAILS: dict[str, Any] = {
    "slope per channel": lambda b, y, x: b.where(b.lt(y, 0.0), b.mul(y, _constant(b, 3, 6, 1, 1)), y),
    "residual": lambda b, y, x: b.relu(b.add(y, _constant(b, 3, 2, 6, 7, 19))),
    "its own operand": lambda b, y, x: b.add(y, x),
    "silu": lambda b, y, x: b.mul(y, b.sigmoid(y)),
}


@pytest.mark.parametrize("name", TAILS)
def test_what_follows_is_part_of_the_kernel(name: str) -> None:
    _check(_graph((2, 6, 7, 19), "instance_norm", TAILS[name]), _image(2, 6, 7, 19))


def test_what_has_no_vector_form_follows_in_a_kernel_of_its_own() -> None:
    _check(_graph((2, 6, 7, 19), "instance_norm", lambda b, y, x: b.sin(y)), _image(2, 6, 7, 19), steps=3)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_result_takes_over_the_memory_of_its_operand(threads: int) -> None:
    graph = Graph()
    x = graph.input("x", "f32", (1, 5, 6, 90))
    b = Builder(graph)
    y = b.instance_norm(b.cumsum(x, axis=3), _constant(b, 1, 5), _constant(b, 2, 5))
    graph.output(b.cumsum(b.relu(y), axis=2))
    artifact = dhc.compile(graph)
    arenas = [buffer for buffer in artifact.plan["program"]["buffers"] if buffer["kind"] == "arena"]
    assert [buffer["bytes"] for buffer in arenas] == [5 * 6 * 90 * 4, (HEADER + 5 * 2) * 4]
    (found,) = artifact.session(threads=threads).run({"x": _image(1, 5, 6, 90)}).values()
    np.testing.assert_allclose(found, graph.evaluate(_image(1, 5, 6, 90))[0], rtol=1e-4, atol=1e-4)


def test_sizes_may_be_symbolic() -> None:
    _check(_graph(("N", 4, "H", "W"), "group_norm", groups=2), _image(2, 4, 11, 40))


def test_a_large_mean_costs_no_precision() -> None:
    x = _image(1, 2, 100, 100) + np.float32(1e4)
    graph = _graph((1, 2, 100, 100), "instance_norm")
    (found,) = dhc.compile(graph).session(threads=1).run({"x": x}).values()
    wide = x.astype(np.float64)
    scale, bias = (np.random.default_rng(seed).standard_normal(2).astype(np.float32) for seed in (1, 2))
    mean, variance = wide.mean(axis=(2, 3), keepdims=True), wide.var(axis=(2, 3), keepdims=True)
    wanted = (wide - mean) / np.sqrt(variance + 1e-5) * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("dtype", ["f64", "f16"])
def test_other_element_types_run_as_loops(dtype: str) -> None:
    graph = _graph((1, 2, 3, 4), "instance_norm", dtype=dtype)
    x = _image(1, 2, 3, 4).astype({"f64": np.float64, "f16": np.float16}[dtype])
    (found,) = dhc.compile(graph).session(threads=1).run({"x": x}).values()
    np.testing.assert_allclose(found, graph.evaluate(x)[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
def test_every_target_compiles(name: str) -> None:
    target = targets.target(name)
    for code in (emit_moments(target), emit_space_norm(SpaceNormSpec(1e-5), target)):
        assert len(targets.compile_ir(code.ir, target)) > 0
