"""Sizes that only a run knows are checked before any kernel reads memory by them, also inside of fused groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import dhc
from dhc.errors import DhcError, ShapeError
from dhc.ir import Graph, Value, sym

Build = Callable[[Graph], Value]


def _numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape) + 1


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def _x(g: Graph, *shape: Any) -> Value:
    return g.input("x", "f32", shape)


def _window(g: Graph) -> Value:
    window = dhc.ops.dynamic_slice(_x(g, "N"), g.input("at", "i64", [1]), sizes=[sym("M")])
    return window + g.input("w", "f32", ["M"])


CASES: dict[str, tuple[Build, Sequence[np.ndarray], Sequence[np.ndarray]]] = {
    # What is built, inputs that fit, inputs that do not.
    "broadcast in a group": (
        lambda g: dhc.ops.relu(_x(g, "N") + g.input("y", "f32", ["M"])) * 2,
        [_numbers(3), _numbers(1)], [_numbers(3), _numbers(2)],
    ),
    "epilogue of a contraction": (
        lambda g: dhc.ops.relu(_x(g, 4, "K") @ g.input("y", "f32", ["L", 3])),
        [_numbers(4, 2), _numbers(2, 3)], [_numbers(4, 200), _numbers(2, 3)],
    ),
    "slice at a position": (lambda g: _x(g, "N")[5] + 1, [_numbers(6)], [_numbers(3)]),
    "slice from the end": (lambda g: _x(g, "N")[-4] + 1, [_numbers(4)], [_numbers(3)]),
    "gather_elements": (
        lambda g: dhc.ops.gather_elements(_x(g, "N", 4), g.input("i", "i64", ["M", 2]), axis=1),
        [_numbers(3, 4), _zeros(2, 2)], [_numbers(2, 4), _zeros(300, 2)],
    ),
    "dynamic_slice": (
        _window, [_numbers(3), np.array([1]), _numbers(2)], [_numbers(3), np.array([0]), _numbers(200)],
    ),
    "dynamic_update_slice": (
        lambda g: dhc.ops.dynamic_update_slice(_x(g, "N"), g.input("w", "f32", ["M"]), g.input("at", "i64", [1])),
        [_numbers(3), _numbers(2), np.array([1])], [_numbers(3), _numbers(200), np.array([0])],
    ),
    **{
        f"pad {mode}": (
            lambda g, mode=mode: dhc.ops.pad(_x(g, "N"), 0.0, low=[1], high=[2], mode=mode),
            [_numbers(1)], [_numbers(0)],
        )
        for mode in ("edge", "reflect", "wrap")
    },
    "pad to a negative size": (
        lambda g: dhc.ops.pad(_x(g, "N", "M"), 0.0, low=[-1, 0], high=[-1, -2], mode="constant").sum(),
        [_numbers(2, 2)], [_numbers(1, 1)],
    ),
    "resize": (lambda g: dhc.ops.resize(_x(g, "N"), shape=[4], mode="linear"), [_numbers(2)], [_numbers(0)]),
    "grid_sample": (
        lambda g: dhc.ops.grid_sample(_x(g, 1, 1, "H", 3), g.input("grid", "f32", [1, 2, 2, 2])),
        [_numbers(1, 1, 1, 3), _numbers(1, 2, 2, 2)], [_numbers(1, 1, 0, 3), _numbers(1, 2, 2, 2)],
    ),
    "roi_align": (
        lambda g: dhc.ops.roi_align(
            _x(g, 1, 1, "H", 3), g.input("r", "f32", [1, 4]), g.input("b", "i64", [1]), 1.0, height=2, width=2
        ),
        [_numbers(1, 1, 2, 3), _numbers(1, 4), _zeros(1)], [_numbers(1, 1, 0, 3), _numbers(1, 4), _zeros(1)],
    ),
    "groups of a convolution": (
        lambda g: dhc.ops.conv(_x(g, 1, 4, 4, 4), g.input("w", "f32", ["O", 2, 3, 3]), groups=2),
        [_numbers(1, 4, 4, 4), _numbers(2, 2, 3, 3)], [_numbers(1, 4, 4, 4), _numbers(3, 2, 3, 3)],
    ),
    "group_norm": (
        lambda g: dhc.ops.group_norm(
            _x(g, 1, "C", 4), g.input("s", "f32", ["C"]), g.input("b", "f32", ["C"]), groups=2
        ),
        [_numbers(1, 4, 4), _numbers(4), _numbers(4)], [_numbers(1, 3, 4), _numbers(3), _numbers(3)],
    ),
    "window": (
        lambda g: dhc.ops.relu(dhc.ops.max_pool(_x(g, 1, 1, "H"), kernel=[3])),
        [_numbers(1, 1, 3)], [_numbers(1, 1, 2)],
    ),
    "argmax": (lambda g: dhc.ops.argmax(_x(g, "N"), axis=0), [_numbers(1)], [_numbers(0)]),
    "split": (lambda g: dhc.ops.split(_x(g, "N"), axis=0, sizes=[2, 3])[1] * 2, [_numbers(5)], [_numbers(7)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fitting_sizes_run_and_others_are_refused(name: str) -> None:
    build, fitting, misfits = CASES[name]
    graph = Graph("sizes")
    graph.output(build(graph), names=["y"])
    session = dhc.compile(graph, targets=["cpu"]).session(threads=1)
    (expected,) = graph.evaluate(*fitting)
    np.testing.assert_allclose(session.run(*fitting)["y"], expected, rtol=1e-5)
    with pytest.raises(ShapeError):
        session.run(*misfits)
    with pytest.raises(DhcError):
        graph.evaluate(*misfits)


def test_an_inequality_is_named_without_the_numbers_it_is_written_with() -> None:
    graph = Graph("sizes")
    graph.output(graph.input("x", "f32", ["N"])[5], names=["y"])
    session = graph.compile("cpu")
    with pytest.raises(
        ShapeError, match=r"the elements taken are within the operand \(slice at .*\): this does not hold"
    ):
        session.run(_numbers(3))
