"""Random typed graphs: the CPU against the interpreter, 2,000 and more in every run, the same ones each time.

Batches are tests of their own so that test processes share them. A failing graph is shrunk to the smallest that fails.
Nightly runs search on with fresh seeds.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.backends.cpu.differential.running import MINIMAL, check_case
from tests.support.random_graphs import RandomGraph, random_graphs

BATCHES = 8
GRAPHS_IN_BATCH = 250
NIGHTLY = os.environ.get("DHC_HYPOTHESIS_PROFILE") == "nightly"


def search(batch: int, examples: int, check: Any, **options: Any) -> None:
    """Checks `examples` random graphs that depend on the number of the batch alone."""

    @settings(
        max_examples=examples * (5 if NIGHTLY else 1),
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(random_graphs(**options))
    def every(case: RandomGraph) -> None:
        seen.append(len(case.graph))
        check(case)

    seen: list[int] = []
    (every if NIGHTLY else seed(batch)(every))()
    assert len(seen) >= examples


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_graphs(batch: int) -> None:
    search(1000 + batch, GRAPHS_IN_BATCH, check_case)


@pytest.mark.parametrize("batch", range(2))
def test_special_values(batch: int) -> None:
    """NaN and infinities among the inputs."""
    search(2000 + batch, 125, check_case, special=True)


@pytest.mark.parametrize("batch", range(2))
def test_without_optimisation(batch: int) -> None:
    """Only composite ops are taken apart: kernels of single ops, which fusion would hide."""
    search(3000 + batch, 75, lambda case: check_case(case, passes=list(MINIMAL)))


def test_large_graphs() -> None:
    """More nodes: longer chains to fuse, more values to place in the arena."""
    search(4000, 40, check_case, max_nodes=24)


def test_seven_threads() -> None:
    search(5000, 60, lambda case: check_case(case, threads=7))


def test_float_graphs() -> None:
    """What networks are made of: f32 alone, so that more of the ops meet each other."""
    search(6000, 100, check_case, dtypes=("f32", "i64", "bool"), data_dependent=False)
