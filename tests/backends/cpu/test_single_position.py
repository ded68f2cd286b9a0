"""Transposed convolutions of maps of one element run as products of matrices, others as windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc
from dhc.ir import Builder, Graph
from tests.support.threads import check_artifact

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one dimension": ("matmul_", {"kernel": (3,)}),
    "two dimensions, bias, stride": ("matmul_", {"kernel": (4, 4), "bias": True, "strides": (2, 2)}),
    "three dimensions": ("matmul_", {"kernel": (2, 1, 3), "bias": True, "batch": 3}),
    "batch of any size": ("matmul_", {"kernel": (2, 2), "batch": "N"}),
    "groups": ("conv", {"kernel": (3, 3), "groups": 2}),
    "padding": ("conv", {"kernel": (4, 4), "pads_low": (1, 1), "pads_high": (1, 1)}),
    "gaps": ("conv", {"kernel": (3, 3), "dilations": (2, 2)}),
    "behind the last tap": ("conv", {"kernel": (3, 3), "strides": (2, 2), "output_padding": (1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_single_positions(name: str) -> None:
    kernel_name, attrs = CASES[name]
    attrs = dict(attrs)
    kernel, bias, batch = attrs.pop("kernel"), attrs.pop("bias", False), attrs.pop("batch", 1)
    rng = np.random.default_rng(0)
    graph = Graph()
    ones = (1,) * len(kernel)
    x = graph.input("x", "f32", (batch, 10, *ones))
    b = Builder(graph)
    outs = 6 // attrs.get("groups", 1)
    operands = [x, b.constant(rng.standard_normal((10, outs, *kernel)).astype(np.float32))]
    if bias:
        operands.append(b.constant(rng.standard_normal(6).astype(np.float32)))
    graph.output(b.relu(b.conv_transpose(*operands, **attrs)))
    artifact = dhc.compile(graph)
    (item,) = artifact.plan["program"]["items"]
    assert item["symbol"].startswith(kernel_name)
    given = rng.standard_normal((2 if batch == "N" else batch, 10, *ones)).astype(np.float32)
    (wanted,) = graph.evaluate(given)
    check_artifact(artifact, {"x": given}, wanted, rtol=1e-5, atol=1e-5)
