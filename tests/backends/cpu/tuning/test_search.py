"""The search among candidates, with times that are given: nothing is measured here."""

from __future__ import annotations

import numpy as np
import pytest

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract.spec import ConvSpec, MatmulSpec
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import target
from dhc.backends.cpu.tuning.candidates import DEFAULT, candidates
from dhc.backends.cpu.tuning.search import Search, TunedMethods
from dhc.ir.symbols import sym

_TARGET = target("x86-64-v3")


def conv(size: int, channels: int = 64) -> Layer:
    spec = ConvSpec(channels, channels, (3, 3), pad_begin=(1, 1))
    return Layer(spec, (1, 1, size, size, 1, size, size), (size, size), (size, size))


class Bench:
    """Runs nothing: candidates take the given times, and the clock moves by them and by a second for preparing."""

    def __init__(self, times, wrong=(), interrupt_at=None):
        self.times, self.wrong, self.interrupt_at = times, wrong, interrupt_at
        self.now, self.prepared = 0.0, []

    def __call__(self, layer, candidate):
        self.now += 1.0
        self.prepared.append((layer, candidate.name))
        if len(self.prepared) == self.interrupt_at:
            raise KeyboardInterrupt
        bench = self

        class Runner:
            def seconds(self):
                taken = bench.times.get((layer, candidate.name), bench.times.get(candidate.name, 1.0))
                bench.now += taken
                return taken

            def result(self):
                return np.full(3, 2.0 if candidate.name in bench.wrong else 1.0)

        return Runner()


def search(bench, budget, cache=None, threads=1):
    where = cache or KernelCache(None)
    return Search(_TARGET, threads, budget, bench, Methods(), where, lambda done, total: None, lambda: bench.now)


def names(chosen):
    return {layer: candidate.name for layer, candidate in chosen.items()}


def test_the_fastest_is_chosen_and_others_stay():
    slow, fast = conv(20), conv(24)
    bench = Bench({(slow, "winograd 2"): 0.5, (slow, "general"): 0.8, (fast, "general"): 0.98})
    chosen, report = search(bench, 1000).run({slow: 2, fast: 1})
    assert names(chosen) == {slow: "winograd 2"}
    assert (report.layers, report.changed, report.unfinished, report.interrupted) == (2, 1, 0, False)
    assert report.before == pytest.approx(3.0) and report.after == pytest.approx(2.0)
    tuned = TunedMethods(None, chosen)
    assert tuned.choose(slow, _TARGET)[0].winograd == 2
    assert tuned.choose(fast, _TARGET) == Methods().choose(fast, _TARGET)
    assert tuned.choose(slow, _TARGET, "bf16") == Methods().choose(slow, _TARGET, "bf16")


def test_what_computes_something_else_is_never_chosen():
    layer = conv(20)
    chosen, report = search(Bench({"winograd 2": 0.5, "general": 0.7}, wrong=("winograd 2",)), 1000).run({layer: 1})
    assert names(chosen) == {layer: "general"} and report.unfinished == 0


def test_gains_that_are_not_there_in_every_round_are_noise():
    layer = conv(20)

    class Noisy(dict):
        def get(self, key, default=None):
            if key != "general":
                return super().get(key, default)
            self.turn = getattr(self, "turn", 0) + 1
            return 0.5 if self.turn % 4 else 1.1

    assert search(Bench(Noisy()), 1000).run({layer: 1})[0] == {}


def test_time_goes_first_to_what_takes_most():
    small, large = conv(8), conv(32)
    times = {(small, DEFAULT): 0.1, (large, DEFAULT): 1.0}
    bench = Bench(times)
    _, report = search(bench, 8.0).run({small: 1, large: 4})
    after_first_look = [layer for layer, _ in bench.prepared[2:]]
    assert after_first_look[0] == large and report.unfinished >= 1
    assert after_first_look.count(large) > after_first_look.count(small)


def test_a_later_search_goes_on_and_then_costs_nothing(tmp_path):
    layer = conv(20)
    times = {"winograd 2": 0.9, "general": 0.5}
    _, report = search(Bench(times), 3.0, KernelCache(tmp_path)).run({layer: 1})
    assert report.unfinished == 1
    bench = Bench(times)
    found, report = search(bench, 1000, KernelCache(tmp_path)).run({layer: 1})
    assert names(found) == {layer: "general"} and report.unfinished == 0
    assert len(bench.prepared) < len(candidates(layer, _TARGET, Methods())) + 2  # some were known
    bench = Bench({})
    again, report = search(bench, 1000, KernelCache(tmp_path)).run({layer: 1})
    assert again == found and report.remembered == 1 and not bench.prepared
    assert report.after == pytest.approx(0.5)
    bench = Bench({})
    assert search(bench, 1000, KernelCache(tmp_path), threads=2).run({layer: 1})[0] == {} and bench.prepared


def test_an_interruption_keeps_what_was_found():
    layer = conv(20)
    order = [way.name for way in candidates(layer, _TARGET, Methods())]
    bench = Bench({order[1]: 0.5}, interrupt_at=4)  # the default twice, the first other one, then this
    chosen, report = search(bench, 1000).run({layer: 1})
    assert names(chosen) == {layer: order[1]} and report.interrupted and report.unfinished == 1


def test_open_sizes_stay_as_they_are():
    n = sym("n")
    layer = Layer(MatmulSpec(packed_b=True), (1, 1, 1, n, 8, 8, *(0,) * 6))
    bench = Bench({})
    chosen, report = search(bench, 10).run({layer: 1})
    assert not chosen and not bench.prepared and (report.layers, report.open) == (0, 1)
