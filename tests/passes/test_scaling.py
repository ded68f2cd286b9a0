"""The pipeline's work grows with the graph, not with its square: counted in function calls, not in seconds."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dhc.ir import Builder, Graph
from dhc.passes import find_pass, parse_passes, run_passes


def chain(count: int) -> Graph:
    """A network of `count` nodes that gives every pass something to do."""
    graph = Graph()
    b = Builder(graph)
    v = graph.input("x", "f32", ("N", 8))
    for i in range(count // 8):
        v = b.relu(b.add(v, b.constant(1.5, "f32")))
        v = b.mul(b.matmul(v, b.constant(np.full((8, 8), i, np.float32))), b.constant(2.0, "f32"))
        v = b.transpose(b.tanh(b.transpose(v, perm=(1, 0))), perm=(1, 0))
        if i % 4 == 0:
            v = b.softmax(v, axis=-1)
    graph.output(v)
    return graph


def shared(count: int) -> Graph:
    """One value and one constant that `count` nodes use."""
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 8))
    y = b.exp(x)
    two = b.constant(2.0, "f32")
    parts = [b.relu(b.mul(b.add(y, b.constant(float(i), "f32")), two)) for i in range(count // 4)]
    graph.output(b.concat(*parts, axis=1))
    return graph


def calls(graph: Graph, passes: list[Any]) -> int:
    total = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal total
        total += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run_passes(graph, passes)
    finally:
        sys.setprofile(None)
    return total


@pytest.mark.parametrize("make", [chain, shared])
@pytest.mark.parametrize(
    "name", ["canonicalize", "cse", "dce", "decompose", "fold", "fold_batch_norm", "fuse", "memory", "sink"]
)
def test_twice_the_nodes_twice_the_work(name, make):
    small, large = (calls(make(n), [find_pass(name)()]) for n in (300, 600))
    assert large < 2.5 * small, f"{small} calls for half the nodes, {large} for all"


def test_the_standard_pipeline_is_linear():
    small, large = (calls(chain(n), parse_passes("standard")) for n in (300, 600))
    assert large < 2.3 * small
