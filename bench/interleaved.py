"""Measuring several candidates so that all of them see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Runs the candidates in turn, ``rounds`` times after ``warm_up`` rounds; milliseconds of every run by name.

    The order of the candidates turns from round to round, so that none always runs after the same neighbour.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            candidates[name]()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def median(values: list[float]) -> float:
    """The median; of no values, NaN."""
    return statistics.median(values) if values else float("nan")
