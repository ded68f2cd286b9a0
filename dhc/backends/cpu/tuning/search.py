"""The bounded search: which candidate of each layer is fastest here, as far as the time allows.

What was measured is kept in the kernel cache under a hash of the layer, the target, the number of threads and the
compiler, so that a later search goes on where this one ended and costs nothing once all is known.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract.spec import Spec
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.cpu.tuning.candidates import DEFAULT, Candidate, candidates
from dhc.backends.cpu.tuning.timing import Prepare, Runner

_ROUNDS = 9
# Slower than the best by more at the first look: not worth more looks.
_HOPELESS = 1.3
# A change that gains less, or not in nearly every round, may be noise; the models' choice is the one tested most.
_LEAST_GAIN = 0.97
_LEAST_WINS = 8
# Largest difference from the default's results, relative to the largest of them.
_MOST_DIFFERENCE = 1e-3


@dataclass
class Found:
    """What is known about a layer.

    Attributes:
        best: name of the fastest candidate so far.
        ratio: its time over that of the default.
        seconds: time of the default; 0: not measured.
        tried: names of the candidates that were measured against the best one.
        complete: whether all were.
    """

    best: str = DEFAULT
    ratio: float = 1.0
    seconds: float = 0.0
    tried: list[str] = field(default_factory=list)
    complete: bool = False


@dataclass(frozen=True)
class TuningReport:
    """What a search did.

    Attributes:
        layers: distinct contractions of known sizes.
        changed: how many are not computed as the cost models say.
        remembered: how many were known from earlier searches.
        unfinished: how many still have candidates that nobody measured.
        open: distinct contractions whose sizes only a run knows; they stay as they are.
        before: seconds of all contractions of the model by default, as far as measured.
        after: the same with the choices found.
        seconds: how long the search took.
        interrupted: whether the user ended it.
    """

    layers: int
    changed: int
    remembered: int
    unfinished: int
    open: int
    before: float
    after: float
    seconds: float
    interrupted: bool


class Recorder(Methods):
    """Chooses like the cost models and counts the layers that measuring may decide about."""

    def __init__(self, cache: KernelCache | None = None) -> None:
        super().__init__(cache)
        self.layers: dict[Layer, int] = {}

    def choose(self, layer: Layer, target: CpuTarget, storage: str = "") -> tuple[Spec, CpuTarget]:
        """See `Methods`."""
        if not storage and not getattr(layer.spec, "storage", ""):
            self.layers[layer] = self.layers.get(layer, 0) + 1
        return super().choose(layer, target, storage)


class TunedMethods(Methods):
    """What a search found, and the cost models for the rest."""

    def __init__(self, cache: KernelCache | None, choices: Mapping[Layer, Candidate]) -> None:
        super().__init__(cache)
        self._choices = choices

    def choose(self, layer: Layer, target: CpuTarget, storage: str = "") -> tuple[Spec, CpuTarget]:
        """See `Methods`."""
        found = None if storage else self._choices.get(layer)
        return super().choose(layer, target, storage) if found is None else (found.spec, found.target)


class Search:
    """One search.

    Args:
        target: this machine.
        threads: how many a session will have.
        budget: seconds.
        prepare: makes candidates ready to run.
        methods: the cost models.
        cache: where results are kept.
        progress: called with (layers done, layers).
        clock: seconds.
    """

    def __init__(
        self,
        target: CpuTarget,
        threads: int,
        budget: float,
        prepare: Prepare,
        methods: Methods,
        cache: KernelCache,
        progress: Callable[[int, int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target = target
        self._threads = threads
        self._budget = budget
        self._prepare = prepare
        self._methods = methods
        self._cache = cache
        self._progress = progress
        self._clock = clock

    def run(self, layers: Mapping[Layer, int]) -> tuple[dict[Layer, Candidate], TuningReport]:
        """Searches; an interruption by the user ends it and keeps what was found.

        Args:
            layers: the contractions of a model, and how often it has each.
        """
        start = self._clock()
        end = start + self._budget
        fixed = [layer for layer in layers if all(isinstance(size, int) for size in layer.sizes)]
        known = {layer: self._recall(layer) for layer in fixed}
        left = [layer for layer in fixed if not known[layer].complete]
        remembered, interrupted = len(fixed) - len(left), False
        try:
            for layer in left:
                if not known[layer].seconds and self._clock() < end:
                    default = Candidate(DEFAULT, *self._methods.choose(layer, self._target))
                    known[layer].seconds = self._prepare(layer, default).seconds()
            left.sort(key=lambda layer: -layers[layer] * known[layer].seconds)
            weights = [layers[layer] * known[layer].seconds for layer in left]
            for index, layer in enumerate(left):
                self._progress(index, len(left))
                now, rest = self._clock(), sum(weights[index:])
                if now >= end or not rest:
                    break
                # What a layer does not use is left to those behind it.
                try:
                    self._compete(layer, known[layer], now + (end - now) * weights[index] / rest)
                finally:
                    self._keep(layer, known[layer])
        except KeyboardInterrupt:
            interrupted = True
        self._progress(len(left), len(left))
        chosen = {layer: self._named(layer, found.best) for layer, found in known.items() if found.best != DEFAULT}
        report = TuningReport(
            layers=len(fixed),
            changed=len(chosen),
            remembered=remembered,
            unfinished=sum(not found.complete for found in known.values()),
            open=len(layers) - len(fixed),
            before=sum(layers[layer] * known[layer].seconds for layer in fixed),
            after=sum(layers[layer] * known[layer].seconds * known[layer].ratio for layer in fixed),
            seconds=self._clock() - start,
            interrupted=interrupted,
        )
        return chosen, report

    def _compete(self, layer: Layer, found: Found, deadline: float) -> None:
        """Measures candidates against the best one so far, in turns, until the deadline; at least one."""
        ways = candidates(layer, self._target, self._methods)
        default = self._prepare(layer, ways[0])
        default.seconds()
        expected = default.result().copy()
        best = default if found.best == DEFAULT else self._prepare(layer, self._named(layer, found.best))
        for way in [way for way in ways[1:] if way.name not in found.tried]:
            if found.tried and self._clock() >= deadline:
                return
            runner = self._prepare(layer, way)
            ratio = self._duel(best, runner) if _agree(runner, expected) else None
            found.tried.append(way.name)
            if ratio is not None:
                best, found.best, found.ratio = runner, way.name, found.ratio * ratio
        found.complete = True

    def _duel(self, best: Runner, other: Runner) -> float | None:
        """Time of a candidate over that of the best; None when it is not clearly faster."""
        if other.seconds() > _HOPELESS * best.seconds():
            return None
        ratios = []
        for _ in range(_ROUNDS):
            first, second = best.seconds(), other.seconds()
            ratios.append(second / first)
        wins = sum(ratio < 1.0 for ratio in ratios)
        ratio = statistics.median(ratios)
        return ratio if wins >= _LEAST_WINS and ratio < _LEAST_GAIN else None

    def _named(self, layer: Layer, name: str) -> Candidate:
        return next(way for way in candidates(layer, self._target, self._methods) if way.name == name)

    def _text(self, layer: Layer) -> str:
        return f"tuning {self._threads} {layer!r} {layer.spec.text()}"

    def _recall(self, layer: Layer) -> Found:
        stored = self._cache.get(self._text(layer), self._target.text())
        return Found() if stored is None else Found(**json.loads(stored))

    def _keep(self, layer: Layer, found: Found) -> None:
        self._cache.put(self._text(layer), self._target.text(), json.dumps(vars(found)).encode())


def _agree(runner: Runner, expected: np.ndarray) -> bool:
    """Whether a candidate computes what the default does."""
    runner.seconds()
    most = float(np.abs(expected).max(initial=0.0))
    return bool(np.abs(runner.result() - expected).max(initial=0.0) <= _MOST_DIFFERENCE * most)
