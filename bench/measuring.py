"""Several engines on one model in one process, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bench.interleaved import median

_QUIET_SLICE = 0.01
"""Seconds; several ticks of a system that counts the time of running threads in steps of 4 ms."""
_QUIET_SHARE = 0.1
_QUIET_LIMIT = 0.5
_TIMED_RUNS = 2
"""Counted runs of an engine's turn, after one that is not counted and wakes its threads and caches."""


@dataclass(frozen=True)
class Effort:
    """How much measuring.

    Attributes:
        least: rounds that are run even when they take longer than the time.
        most: rounds at most.
        seconds: for the rounds of one model and one number of threads.
        limit: seconds after which even `least` rounds are cut short.
    """

    least: int = 20
    most: int = 200
    seconds: float = 6.0
    limit: float = 120.0


QUICK = Effort(least=5, most=30, seconds=1.0, limit=30.0)


@dataclass
class Times:
    """What was measured of one model with one number of threads.

    Attributes:
        milliseconds: of every counted round, by engine.
        rounds: counted ones.
    """

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    rounds: int = 0

    def median(self, engine: str) -> float:
        return median(self.milliseconds[engine])

    def least(self, engine: str) -> float:
        """The quickest run: what is left when other processes disturb the median."""
        return min(self.milliseconds[engine])


def take_turns(engines: Mapping[str, Callable[[], object]], effort: Effort) -> Times:
    """Runs all engines in turn; two rounds warm up. Who begins changes from round to round.

    Before each turn the process becomes quiet: some engines let their threads spin on after a run (onnxruntime's for
    about 50 ms), which would take the cores from the next one. A turn is a run that is not counted, as the engine's
    threads sleep and the caches are another's, and then the counted ones.
    """
    names = list(engines)
    times = Times({name: [] for name in names})
    started, wanted, turn = time.perf_counter(), effort.least, 0
    while times.rounds < wanted and (times.rounds < 3 or time.perf_counter() - started < effort.limit):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            become_quiet()
            engines[name]()
            for _ in range(_TIMED_RUNS):
                start = time.perf_counter()
                engines[name]()
                taken = (time.perf_counter() - start) * 1e3
                if turn >= 2:
                    times.milliseconds[name].append(taken)
        turn += 1
        if turn == 2:
            started = time.perf_counter()
        elif turn == 3:
            once = time.perf_counter() - started
            wanted = int(min(max(effort.seconds / once, effort.least), effort.most))
        times.rounds = max(turn - 2, 0)
    return times


def become_quiet() -> float:
    """Sleeps until the threads of this process use no more time; returns for how long."""
    waited = 0.0
    while waited < _QUIET_LIMIT:
        before = time.process_time()
        time.sleep(_QUIET_SLICE)
        waited += _QUIET_SLICE
        if time.process_time() - before < _QUIET_SHARE * _QUIET_SLICE:
            break
    return waited


def difference(actual: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference as a share of the largest value, over all outputs; axes of size 1 do not matter."""
    if len(actual) != len(wanted):
        return float("inf")
    shares = []
    for a, w in zip(actual, wanted, strict=True):
        if [n for n in a.shape if n != 1] != [n for n in w.shape if n != 1]:
            return float("inf")
        largest = float(np.abs(w).max(initial=0.0))
        found = float(np.abs(a.reshape(w.shape).astype(np.float64) - w).max(initial=0.0))
        shares.append(found / largest if largest else float("inf") if found else 0.0)
    worst = max(shares, default=0.0)
    return worst if worst == worst else float("inf")
