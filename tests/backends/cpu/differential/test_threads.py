"""The number of threads never changes a bit of a result, and neither does a machine with fewer cores than threads."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import dhc
from dhc.ir import Graph
from tests.backends.cpu.differential.models import MODELS, inputs_of
from tests.backends.cpu.differential.running import assert_close, run


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_results_are_bit_equal_for_any_number_of_threads(model: Callable[[], Graph]) -> None:
    graph = model()
    artifact = dhc.compile(graph)
    crowded = 4 * (os.cpu_count() or 1) + 3
    for batch in (1, 3):
        inputs = inputs_of(graph, batch)
        alone = run(artifact.session(threads=1), graph, inputs)
        for a, b in zip(graph.evaluate(**inputs), alone, strict=True):
            assert_close(a, b, roundings=400, what=graph.name)
        for threads in (2, 7, crowded):
            with artifact.session(threads=threads) as session:
                assert session.threads == threads
                for _ in range(3):
                    for wanted, found in zip(alone, run(session, graph, inputs), strict=True):
                        assert wanted.tobytes() == found.tobytes(), f"{graph.name} with {threads} threads"
