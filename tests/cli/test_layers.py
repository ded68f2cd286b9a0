"""`dhc bench --layers`: times of steps, their operations and bytes, and what the machine could do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

import dhc as package
from dhc.cli.layers import Limits, input_sizes, kernel_name, layers
from tests.cli.conftest import Command


class Step(NamedTuple):
    node: str
    op: str
    symbol: str
    microseconds: float


LIMITS = Limits(100.0, lambda moved: 10.0)


def product(rows: int | str = 100) -> package.Graph:
    graph = package.Graph("net")
    x = graph.input("x", "f32", (rows, 200))
    y = package.ops.matmul(x, package.ops.constant(graph, [[1.0] * 300] * 200, "f32"))
    graph.output(y, names=["y"])
    return graph


def step_of(graph: package.Graph, microseconds: float, symbol: str = "matmul_0123456789abcdef0123") -> Step:
    node = graph.nodes[-1]
    return Step(str(node.location), node.op.name, symbol, microseconds)


def test_the_bound_is_operations_over_the_peak_or_bytes_over_the_speed_of_reading() -> None:
    graph = product()
    runs = [[step_of(graph, taken)] for taken in (900.0, 300.0, 400.0)]
    (layer,) = layers(graph, runs, {}, LIMITS)
    assert (layer.op, layer.kernel) == ("matmul", "matmul")
    assert layer.milliseconds == 0.4
    assert layer.gflop == 2 * 100 * 200 * 300 / 1e9
    assert layer.gigabytes == 4 * (100 * 200 + 200 * 300 + 100 * 300) / 1e9
    assert layer.bound == "compute"
    assert layer.bound_ms == pytest.approx(0.12)
    assert layer.share == pytest.approx(0.3)
    assert layer.lost_ms == pytest.approx(0.28)
    assert layer.gflops == pytest.approx(30.0)
    (slow_memory,) = layers(graph, runs, {}, Limits(100.0, lambda moved: 0.44))
    assert (slow_memory.bound, slow_memory.bound_ms) == ("memory", pytest.approx(1.0))
    assert slow_memory.lost_ms == 0.0


def test_several_kernels_of_one_node_are_one_row() -> None:
    graph = product()
    run = [step_of(graph, 100.0), step_of(graph, 50.0, "pack_0123456789abcdef0123")]
    (layer,) = layers(graph, [run, run], {}, LIMITS)
    assert layer.kernel == "matmul+pack"
    assert layer.milliseconds == pytest.approx(0.15)
    assert layer.gflop == 0.012


def test_most_lost_time_comes_first() -> None:
    graph = package.Graph("net")
    x = graph.input("x", "f32", (64,))
    slow = package.ops.tanh(x)
    graph.output(package.ops.exp(slow), names=["y"])
    steps = [Step(str(node.location), node.op.name, "k", taken) for node, taken in zip(graph.nodes, (5.0, 9.0))]
    assert [layer.op for layer in layers(graph, [steps], {}, LIMITS)] == ["exp", "tanh"]


def test_open_sizes_are_those_of_the_inputs() -> None:
    import numpy as np

    graph = product("N")
    sizes = input_sizes(graph, {"x": np.zeros((7, 200), np.float32)})
    assert sizes == {"N": 7}
    (layer,) = layers(graph, [[step_of(graph, 1.0)]], sizes, LIMITS)
    assert layer.gflop == 2 * 7 * 200 * 300 / 1e9
    (unknown,) = layers(graph, [[step_of(graph, 1.0)]], {}, LIMITS)
    assert unknown.gflop is None and unknown.share is None
    assert unknown.lost_ms == unknown.milliseconds


def test_kernels_are_named_by_their_generator() -> None:
    assert kernel_name("winograd_30ff81ad1d612da8922a") == "winograd"
    assert kernel_name("max_pool_6c38dda521c10dfbbf1d") == "max_pool"
    assert kernel_name("dhc_k_6691b82735c7be7b23c0c3f3") == "loop"


def test_command(dhc: Command, classifier: Path, artifact: Path) -> None:
    answer = dhc("bench", classifier, "--layers", "--rounds", 2, "--threads", 1, "--shape", "2x3x8x8", "--json")
    assert answer.status == 0
    data = answer.data
    assert data["threads"] == 1 and data["rounds"] == 2
    assert data["peak_gflops"] > 0 and data["memory_gigabytes_per_second"] > 0
    assert data["layers"]
    for layer in data["layers"]:
        assert layer["milliseconds"] > 0 and layer["gflop"] is not None and layer["bound"] in ("compute", "memory")
    lost = [layer["lost_ms"] for layer in data["layers"]]
    assert lost == sorted(lost, reverse=True)
    shown = dhc("bench", classifier, "--layers", "--rounds", 2, "--shape", "2x3x8x8").out
    assert "share" in shown and "GFLOP/s" in shown and "measured limits" in shown
    refused = dhc("bench", artifact, "--layers", "--shape", "image=4x3x8x8")
    assert refused.status == 2 and "--layers needs the model" in refused.err
