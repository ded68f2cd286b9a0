"""Runs graphs compiled for the CPU and holds the results against the interpreter's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import dhc
from dhc.ir import Graph
from dhc.ir.dtypes import MINIFLOATS, DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.passes.decompose import Decompose
from tests.support.random_graphs import LARGEST, RandomGraph

MINIMAL = (Decompose(),)
"""The least that every target needs: composite ops become the ops they are defined by."""


def run(session: Any, graph: Graph, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a session in the order of the graph's."""
    found = session.run(dict(inputs))
    assert list(found) == list(graph.output_names)
    return [found[name] for name in graph.output_names]


def check_case(
    case: RandomGraph, *, passes: Sequence[Any] | None = None, threads: int = 1, cpu: str | None = None
) -> None:
    """Compiles a random graph once and checks it with the drawn sizes and with others for its symbols."""
    artifact = dhc.compile(case.graph, passes=passes, cpu=cpu)
    session = artifact.session(threads=threads)
    try:
        for sizes in sizes_to_bind(case):
            inputs = case.inputs(sizes)
            kept = {name: array.copy() for name, array in inputs.items()}
            case.check(case.graph.evaluate(**inputs), run(session, case.graph, inputs))
            for name, array in inputs.items():
                assert array.tobytes() == kept[name].tobytes(), f"input {name} was changed"
    finally:
        session.close()


def sizes_to_bind(case: RandomGraph) -> list[dict[str, int]]:
    """The sizes drawn, the smallest that the graph is defined for, the largest, and a mix."""
    drawn = dict(case.sizes)
    if not drawn:
        return [drawn]
    mixed = {name: max(case.smallest[name], (drawn[name] + 2 + i) % LARGEST) for i, name in enumerate(drawn)}
    chosen = [drawn, dict(case.smallest), dict.fromkeys(drawn, LARGEST), mixed, drawn]
    return [sizes for i, sizes in enumerate(chosen) if sizes not in chosen[:i] or i == len(chosen) - 1]


ROUNDINGS = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "c64": 2.0**-24, "c128": 2.0**-53}
"""Half a unit in the last place, relative."""
SMALLEST = {"f64": 5e-324, "f32": 1.4e-45, "f16": 6e-8, "bf16": 9.2e-41, "c64": 1.4e-45, "c128": 5e-324}
"""The smallest positive number: half units are no smaller than that."""


def assert_close(
    wanted: Any, found: Any, *, roundings: float = 8, own_scale: bool = False, least: float = 0, what: str = ""
) -> None:
    """Equal dtype and shape; integers and bools bit for bit; floats within a number of roundings; NaN where NaN is.

    Args:
        wanted: from the interpreter.
        found: from the CPU.
        roundings: allowed difference in half units in the last place.
        own_scale: the unit is that of each element alone, else of the largest finite one (sums cancel).
        least: the size of the numbers that were added, when they are larger than the result.
        what: named in the message.
    """
    a, b = np.asarray(wanted), np.asarray(found)
    assert b.dtype == a.dtype and b.shape == a.shape, f"{what}: {b.dtype}{b.shape}, not {a.dtype}{a.shape}"
    kind: DType = as_dtype(a.dtype)
    if kind.kind in "iub":
        assert np.array_equal(a, b), f"{what}: {b.reshape(-1)[:8]}, not {a.reshape(-1)[:8]}"
        return
    wide = np.complex128 if kind.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        both = np.isfinite(x) & np.isfinite(y)
        if kind in MINIFLOATS:  # moved and converted only: exact
            roundings = 0
        scale = np.abs(x) if own_scale else max(least, np.abs(x[np.isfinite(x)]).max(initial=0.0))
        limit = roundings * np.maximum(ROUNDINGS.get(kind.name, 0.0) * scale, SMALLEST.get(kind.name, 0.0))
        near = same | (both & (np.abs(x - y) <= limit))
    assert near.all(), f"{what}: {b[~near][:4]}, not {a[~near][:4]} at {np.argwhere(~near)[:4].tolist()}"
