"""Runs, loads and other sizes take no memory for good: the resident set does not grow over many of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dhc
from tests.backends.cpu.differential.models import MODELS, inputs_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


def resident() -> int:
    """Bytes of this process in memory."""
    import os

    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(step: Callable[[], object], steps: int, warm_up: int) -> float:
    """Bytes that the resident set grows by each step: least squares over twenty points."""
    for _ in range(warm_up):
        step()
    points = []
    for number in range(steps):
        step()
        if number % (steps // 20) == 0:
            gc.collect()
            points.append((number, resident()))
    return float(np.polyfit(*np.array(points, np.float64).T, 1)[0])


@pytest.mark.parametrize("name", ["convolutions", "dense", "chosen"])
def test_a_thousand_runs(name: str) -> None:
    graph = MODELS[name]()
    inputs = inputs_of(graph, 2)
    output_bytes = sum(a.nbytes for a in graph.evaluate(**inputs))
    with dhc.compile(graph).session(threads=2) as session:
        grown = slope(lambda: session.run(inputs), 1000, 50)
    assert grown < min(256, output_bytes), f"{grown:.0f} bytes a run"


def test_other_sizes_in_every_run() -> None:
    """Plans for sizes are kept for a few sizes only."""
    graph = MODELS["dense"]()
    batches = iter(range(1, 10_000))
    with dhc.compile(graph).session(threads=1) as session:
        grown = slope(lambda: session.run({"x": np.zeros((1 + next(batches) % 300, 70), np.float32)}), 600, 300)
    assert grown < 512, f"{grown:.0f} bytes a run"


def test_loading_and_closing() -> None:
    graph = MODELS["dense"]()
    artifact, inputs = dhc.compile(graph).to_bytes(), inputs_of(graph)

    def step() -> None:
        import dhc_runtime

        with dhc_runtime.load(artifact, threads=2) as session:
            session.run(inputs)

    grown = slope(step, 200, 40)
    assert grown < len(artifact) / 20, f"{grown:.0f} bytes for each session, the artifact has {len(artifact)}"


def test_failing_runs() -> None:
    from dhc.errors import DhcError

    graph = MODELS["dense"]()
    with dhc.compile(graph).session(threads=2) as session:

        def step() -> None:
            with pytest.raises(DhcError):
                session.run({"x": np.zeros((2, 71), np.float32)})

        grown = slope(step, 400, 50)
    assert grown < 256, f"{grown:.0f} bytes a run"
