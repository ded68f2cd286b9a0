"""Convolutions cut into regions of equal taps: what the padding leaves is summed, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.region_boxes import axis_regions
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.ir import Builder, Graph
from tests.backends.cpu.contract.test_contract import EPILOGUES, RUNNABLE, check, conv_case
from tests.support.cpu_targets import ALL_TARGETS

axes = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 24), st.integers(-3, 30))


def meets(position, size, taps, stride, dilation, pad):
    """The taps of a position that meet the input."""
    return [t for t in range(taps) if 0 <= position * stride - pad + t * dilation < size]


@settings(max_examples=300)
@given(axis=axes, out=st.integers(0, 60))
def test_positions_of_a_region_share_their_taps(axis, out):
    size, taps, stride, dilation, pad = axis
    regions = axis_regions(size, out, taps, stride, dilation, pad)
    assert [region[0] for region in regions] == [0, *(region[1] for region in regions)][: len(regions)]
    assert (regions[-1][1] if regions else 0) == out
    for first, end, low, high in regions:
        assert first < end
        for position in range(first, end):
            assert meets(position, size, taps, stride, dilation, pad) == list(range(low, high))


@st.composite
def cases(draw):
    """Specs and sizes: wide dilations, strides, crops, outputs that no tap reaches."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2]))
    most = {1: 300, 2: 30, 3: 9}[rank]
    kernel, stride, dilation, pads, spatial, out = ([] for _ in range(6))
    for _ in range(rank):
        size, taps, step = draw(st.integers(1, most)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
        apart = draw(st.sampled_from([1, 2, 5, 12, 24]))
        pad = (taps - 1) * apart // 2 + draw(st.sampled_from([-1, 0, 0, 0, 3]))
        behind = draw(st.sampled_from([0, 0, 0, 1, 20]))
        count = (size + pad + (taps - 1) * apart // 2 + behind - (taps - 1) * apart - 1) // step + 1
        assume(count >= 1)
        for values, value in zip((kernel, stride, dilation, pads, spatial, out), (taps, step, apart, pad, size, count)):
            values.append(value)
    spec = ConvSpec(
        in_channels=draw(st.sampled_from([1, 3, 20])) * groups,
        out_channels=draw(st.sampled_from([1, 16, 33, 70])) * groups,
        kernel=tuple(kernel),
        stride=tuple(stride),
        dilation=tuple(dilation),
        pad_begin=tuple(pads),
        groups=groups,
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(["f32", "f32", "f64"])),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        method="regions",
    )
    return spec, draw(st.sampled_from([0, 1, 1, 2])), tuple(spatial), tuple(out)


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_regions(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


LARGER = [
    # Many channels come in blocks, many output channels in turns, wide rows in pieces.
    (ConvSpec(300, 40, (3, 3), dilation=(12, 12), pad_begin=(12, 12), bias=True, method="regions"), (28, 28)),
    (ConvSpec(20, 600, (3, 3), dilation=(24, 24), pad_begin=(24, 24), method="regions"), (28, 28)),
    (ConvSpec(10, 40, (3, 3), dilation=(3, 36), pad_begin=(3, 36), method="regions"), (5, 400)),
    (ConvSpec(20, 40, (3, 3, 3), dilation=(4, 5, 6), pad_begin=(4, 5, 6), groups=2, method="regions"), (6, 9, 20)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case[0].text().split(" bias")[0].replace(" ", "_"))
def test_layers_of_many_blocks(case, target_name):
    spec, size = case
    check(spec, target_name, *conv_case(spec, target_name, 1, size, size), threads=(1, 3))


@pytest.mark.parametrize("target_name", ALL_TARGETS)
def test_every_target_emits_and_verifies(target_name):
    described = targets.target(target_name)
    spec = ConvSpec(20, 50, (3, 3), dilation=(12, 12), pad_begin=(12, 12), bias=True, method="regions")
    code = registry.emit(spec, described)
    assert code == registry.emit(spec, described)
    assert targets.compile_ir(code.ir, described)[:4] == b"\x7fELF"


def chosen(dilation, size, *, exact=False, finite=True):
    spec = ConvSpec(256, 256, (3, 3), dilation=(dilation,) * 2, pad_begin=(dilation,) * 2)
    sizes = ((size, size), (size, size))
    return registry.normalize(spec, targets.target("x86-64-v4"), *sizes, exact=exact, finite=finite)


def test_it_is_chosen_where_taps_miss_the_map():
    assert chosen(24, 28).method == chosen(12, 28).method == chosen(36, 65).method == "regions"
    assert chosen(12, 28, exact=True).method == "regions", "zeros that are left out are no matter of exactness"
    # Winograd's method is faster where most taps meet the map.
    assert (chosen(4, 28).method, chosen(4, 28).winograd) == ("", 4)
    assert chosen(24, 28, finite=False).method == "", "zero times infinity counts"
    assert chosen(1, 28, exact=True).method == ""


@pytest.mark.parametrize("weight", [1.0, np.inf, np.nan])
def test_graphs_use_it_for_finite_weights(weight):
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((40, 33, 3, 3)) / 15).astype(np.float32)
    weights[3, 5, 0, 1] = weight
    graph = Graph("pyramid")
    x = graph.input("x", "f32", (1, 33, 20, 20))
    b = Builder(graph)
    image = rng.standard_normal((1, 33, 20, 20)).astype(np.float32)
    wide = {"dilations": (12, 12), "pads_low": (12, 12), "pads_high": (12, 12)}
    graph.output(b.relu(b.conv(x, b.constant(weights), **wide)), names=["y"])
    artifact = dhc.compile(graph, exact=True)
    symbols = [item["symbol"] for item in artifact.plan["program"]["items"] if item["do"] == "kernel"]
    assert any(symbol.startswith("regions") for symbol in symbols) == bool(np.isfinite(weight))
    with np.errstate(invalid="ignore"):
        expected = graph.evaluate(image)[0]
    np.testing.assert_allclose(artifact.session().run({"x": image})["y"], expected, rtol=1e-4, atol=2e-5)
