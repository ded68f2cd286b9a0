"""Gradients against central differences, in f64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir.autodiff import carries_gradient, gradient
from dhc.ir.graph import Graph


def check_gradient(graph: Graph, arrays: Sequence[np.ndarray], step: float = 1e-6, tolerance: float = 1e-6) -> None:
    """Every derivative of a random combination of the outputs by every float input."""
    rng = np.random.default_rng(7)
    outputs = graph.evaluate(*arrays)
    seeds = [rng.uniform(-1, 1, o.shape) for o, v in zip(outputs, graph.outputs) if carries_gradient(v)]
    actual = gradient(graph).evaluate(*arrays, *seeds)

    def combined(values: Sequence[np.ndarray]) -> float:
        results = [o for o, v in zip(graph.evaluate(*values), graph.outputs) if carries_gradient(v)]
        return float(sum(np.sum(s * r) for s, r in zip(seeds, results)))

    places = [i for i, v in enumerate(graph.inputs) if carries_gradient(v)]
    assert len(actual) == len(places)
    for place, found in zip(places, actual):
        assert arrays[place].dtype == np.float64
        expected = np.zeros_like(arrays[place])
        for at in np.ndindex(*arrays[place].shape):
            moved = [np.array(a) for a in arrays]
            moved[place][at] += step
            above = combined(moved)
            moved[place][at] -= 2 * step
            expected[at] = (above - combined(moved)) / (2 * step)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
