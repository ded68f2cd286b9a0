"""Sums that become integers are plain: the layers of a quantized model, but no others."""

from __future__ import annotations

import numpy as np
import pytest

import dhc
from dhc.backends.cpu.integers import become_integers
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from tests.backends.cpu.contract.test_winograd import kernels


def layers(between: str) -> Graph:
    """Two 3x3 convolutions with a max pool and something else between them."""
    rng = np.random.default_rng(7)
    graph = Graph("layers")
    b = Builder(graph)
    value = graph.input("x", "f32", (1, 24, 64, 64))
    for layer in range(2):
        weights = b.constant((rng.standard_normal((24, 24, 3, 3)) / 15).astype(np.float32))
        value = b.relu(b.conv(value, weights, pads_low=(1, 1), pads_high=(1, 1)))
        if layer == 0:
            value = b.max_pool(value, kernel=(3, 3), pads_low=(1, 1), pads_high=(1, 1))
            if between == "quantized":
                scale, zero = b.constant(np.float32(0.01)), b.constant(np.uint8(3))
                value = b.dequantize(b.quantize(value, scale, zero), scale, zero)
            elif between == "rounded":
                value = b.round(value)
            elif between == "integers":
                value = b.cast(b.cast(value, dtype="i32"), dtype="f32")
    graph.output(value, names=["y"])
    return graph


@pytest.mark.parametrize(("between", "fast"), [("nothing", 2), ("rounded", 2), ("quantized", 1), ("integers", 1)])
def test_only_sums_that_stay_floats_round_otherwise(between: str, fast: int) -> None:
    graph = layers(between)
    artifact = dhc.compile(graph, cpu="x86-64-v4")
    assert sum(symbol.startswith("winograd") for symbol in kernels(artifact)) == fast
    convolutions = [node for node in graph.nodes if node.op.name == "conv"]
    assert [become_integers([], node.results) for node in convolutions] == [fast == 1, False]
