"""Candidates of a layer: distinct kernels that all compute what the default does, the data laid out for each."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dhc
from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract.epilogue import Relu
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, MatmulSpec, Spec
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import host_target
from dhc.backends.cpu.tuning import timing
from dhc.backends.cpu.tuning.candidates import DEFAULT, candidates
from dhc.backends.cpu.tuning.timing import KernelTimer
from dhc.ir import Builder, Graph


def window(spec: ConvSpec | ConvTransposeSpec, size: int, out: int, exact: bool = False) -> Layer:
    rank = len(spec.kernel)
    ones = (1,) * (3 - rank)
    sizes = (1, *ones, *(size,) * rank, *ones, *(out,) * rank)
    return Layer(spec, sizes, (size,) * rank, (out,) * rank, exact)


def conv(ins: int, outs: int, k: int, size: int, stride: int = 1, groups: int = 1, exact: bool = False) -> Layer:
    pad = k // 2
    spec = ConvSpec(ins, outs, (k, k), (stride, stride), (1, 1), (pad, pad), groups, bias=True, epilogue=Relu())
    return window(spec, size, (size + 2 * pad - k) // stride + 1, exact)


_MATMUL = (1, 1, 1, 9, 33, 20, *(0,) * 6)
LAYERS = {
    "3x3": conv(19, 33, 3, 13),
    "3x3 exact": conv(19, 33, 3, 13, exact=True),
    "3x3 strided": conv(20, 48, 3, 15, stride=2),
    "3x3 in groups": conv(32, 64, 3, 11, groups=2),
    "pointwise": conv(24, 40, 1, 9),
    "depthwise": conv(32, 32, 3, 9, groups=32),
    "5x5 few channels": conv(3, 7, 5, 21),
    "transposed": window(ConvTransposeSpec(8, 12, (4, 4), (2, 2), pad_begin=(1, 1)), 7, 14),
    "matmul": Layer(MatmulSpec(packed_b=True, bias="n"), _MATMUL),
    "matmul of two": Layer(MatmulSpec(), (1, 2, 3, 9, 17, 20, 0, 540, 180, 0, 0, 340)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_candidate_computes_the_same(name, monkeypatch):
    monkeypatch.setattr(timing, "_LEAST_SECONDS", 0.0)  # one run is enough here
    layer, methods = LAYERS[name], Methods()
    ways = candidates(layer, host_target(), methods)
    assert ways[0].name == DEFAULT and len({way.name for way in ways}) == len(ways)
    if layer.exact:
        assert not any(way.name.startswith("winograd") for way in ways)
    timer = KernelTimer(host_target(), 2, KernelCache(None), methods)
    expected = timer(layer, ways[0]).result().copy()
    assert np.abs(expected).max() > 0
    for way in ways[1:]:
        runner = timer(layer, way)
        assert runner.seconds() > 0
        np.testing.assert_allclose(runner.result(), expected, atol=1e-4 * np.abs(expected).max(), err_msg=way.name)


def test_a_layer_of_3x3_windows_has_the_methods_of_such_layers():
    names = {way.name for way in candidates(conv(64, 64, 3, 14), host_target(), Methods())}
    spec: Spec = Methods().choose(conv(64, 64, 3, 14), host_target())[0]
    assert isinstance(spec, ConvSpec)
    expected = {"winograd 2", "winograd 4", "general", "narrow", "channels"}
    default = f"winograd {spec.winograd}" if spec.winograd else "general"
    assert expected - names <= {default, "narrow", "channels"}  # the default's own kernel stands there once
    assert len(names & expected) >= 3


def _model() -> Graph:
    graph = Graph("m")
    b = Builder(graph)
    weights = np.linspace(-1, 1, 32 * 32 * 9, dtype=np.float32).reshape(32, 32, 3, 3)
    x = graph.input("x", "f32", (1, 32, 24, 24))
    y = b.conv(x, b.constant(weights), pads_low=(1, 1), pads_high=(1, 1))
    graph.output(b.relu(y), names=["y"])
    return graph


def _fake(faster: str):
    class Timer:
        def __init__(self, *arguments):
            pass

        def __call__(self, layer, candidate):
            class Runner:
                def seconds(self):
                    return 0.5 if candidate.name == faster else 1.0

                def result(self):
                    return np.ones(1)

            return Runner()

    return Timer


def test_compile_takes_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setenv("DHC_CACHE_DIR", str(tmp_path))
    plain = dhc.compile(_model())
    monkeypatch.setattr(timing, "KernelTimer", _fake("caches x 0.5"))
    stages = []
    tuned = dhc.compile(_model(), tune=100.0, progress=lambda stage, done, total: stages.append(stage))
    report = tuned.report.backend["tuning"]
    assert report["changed"] == report["layers"] == 1 and report["after"] == pytest.approx(0.5 * report["before"])
    assert "tuning" in stages and json.dumps(report)
    monkeypatch.setattr(timing, "KernelTimer", _fake("nothing is measured again"))
    again = dhc.compile(_model(), tune=0.001)
    assert again.report.backend["tuning"]["remembered"] == 1 and again.to_bytes() == tuned.to_bytes()
    assert plain.to_bytes() == dhc.compile(_model()).to_bytes() != tuned.to_bytes()
    x = np.random.default_rng(0).random((1, 32, 24, 24), np.float32)
    expected = plain.session().run({"x": x})["y"]
    np.testing.assert_allclose(tuned.session().run({"x": x})["y"], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"tune": 0.0}, "above 0"), ({"tune": 1.0, "targets": ["null"]}, "does nothing"),
     ({"tune": 1.0, "cpu": "aarch64"}, "on this machine")],
    ids=["no time", "no target for it", "another machine"],
)  # fmt: skip
def test_refusals(options, said):
    with pytest.raises(dhc.DhcError, match=said):
        dhc.compile(_model(), **options)
