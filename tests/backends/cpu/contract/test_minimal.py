"""Minimal filtering against float64: within the documented bound, over windows, strides, pads, threads and targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.minimal_plan import axes, is_minimal
from dhc.backends.cpu.contract.minimal_transform import (
    SIZES,
    amplification,
    error_bound,
    matrices,
    transformed_weights,
)
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.winograd_choice import MOST_ERROR
from dhc.ir import Builder, Graph
from tests.backends.cpu.contract.test_contract import EPILOGUES, RUNNABLE, conv_case, run
from tests.support.cpu_targets import ALL_TARGETS

# Of the largest sum of magnitudes of a result, for sums of few terms; 4 x 4 tiles of 5 x 5 windows lose most.
TYPICAL = 6e-6
# Windows (rows, columns), x strides and tiles that the model of cost may choose, and a few more.
FORMS = [
    *(((1, k), 1, (1, m)) for k, m in ((3, 4), (3, 2), (4, 4), (5, 4), (5, 2), (7, 4), (7, 2), (9, 2))),
    *(((1, k), 2, (1, 4)) for k in (5, 6, 7, 8, 9)),
    *(((5, 5), 1, tile) for tile in ((2, 2), (2, 4), (4, 4))),
    ((3, 3), 1, (4, 4)),
    ((7, 7), 1, (2, 2)),
    ((7, 1), 1, (4, 1)),
    ((5, 1), 1, (2, 1)),
]


def check(spec, target_name, batch, in_spatial, out_spatial, threads=(1, 2, 7)):
    """Within the bound for any data, within `TYPICAL` for these, and bit-equal for any number of threads."""
    operands, params, expected, magnitude = conv_case(spec, target_name, batch, in_spatial, out_spatial)
    first = run(spec, target_name, operands, params, expected.shape, threads[0])
    assert not np.isnan(first).any(), "outputs were forgotten"
    if expected.size:
        error = np.abs(first - expected).max()
        assert error <= TYPICAL * magnitude.max()
        terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0] * spec.stride[-1]
        weights = np.prod(spec.kernel[-2:]) * terms * 5  # standard normal weights: no sum of magnitudes is larger
        bound = error_bound(*axes(spec, spec.minimal), terms)
        assert error <= bound * np.abs(operands["input"]).max(initial=0) * weights + 1e-5
    for nthreads in threads[1:]:
        again = run(spec, target_name, operands, params, expected.shape, nthreads)
        assert first.tobytes() == again.tobytes(), f"{nthreads} threads change the result"


@st.composite
def cases(draw):
    """Specs and sizes: outputs of one element and more, negative and uneven pads, channels beside the tiles'."""
    window, stride, tile = draw(st.sampled_from(FORMS))
    lowest = 1 if window[0] == 1 else 2
    rank = draw(st.integers(lowest, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    kernel = (draw(st.sampled_from([1, 2, 5])), *window)[3 - rank :]
    strides = (1,) * (rank - 1) + (stride,)
    pads = [draw(st.tuples(st.integers(-2, 5), st.integers(-1, 5))) for _ in range(rank)]
    widths = st.one_of(st.integers(1, 12), st.sampled_from([15, 16, 28, 33, 63, 64, 66, 130, 259]))
    spatial = tuple(draw(st.integers(1, size)) for size in (4, 13)[3 - rank :]) + (draw(widths),)
    sizes = zip(spatial, pads, kernel, strides, strict=True)
    out = tuple((n + a + b - k) // s + 1 for n, (a, b), k, s in sizes)
    assume(min(out) >= 1)
    spec = ConvSpec(
        in_channels=draw(st.integers(1, 5)) * groups,
        out_channels=draw(st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 32, 33, 50])) * groups,
        kernel=kernel,
        stride=strides,
        pad_begin=tuple(a for a, _ in pads),
        groups=groups,
        bias=draw(st.booleans()),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        minimal=tile,
    )
    assert is_minimal(spec, tile)
    return spec, draw(st.sampled_from([0, 1, 1, 2, 3])), spatial, out


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_minimal(case, data):
    spec, batch, spatial, out = case
    check(spec, data.draw(st.sampled_from(RUNNABLE)), batch, spatial, out)


LARGER = [
    (ConvSpec(40, 70, (7,), pad_begin=(3,), bias=True, minimal=(1, 4)), (1100,), (1100,)),
    (ConvSpec(130, 33, (7,), (2,), pad_begin=(3,), minimal=(1, 4)), (900,), (450,)),
    (ConvSpec(40, 33, (5, 5), pad_begin=(2, 2), minimal=(2, 4), epilogue=ep.Relu()), (57, 141), (57, 141)),
    (ConvSpec(3, 40, (5, 5, 5), pad_begin=(2, 2, 2), minimal=(2, 4), bias=True), (9, 19, 34), (9, 19, 34)),
    (ConvSpec(8, 5, (3, 3, 3), pad_begin=(1, 1, 1), minimal=(4, 4), bias=True), (9, 35, 77), (9, 35, 77)),
    (ConvSpec(150, 18, (5, 5, 5), pad_begin=(2, 2, 2), minimal=(2, 2)), (3, 6, 9), (3, 6, 9)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case[0].text().split(" bias")[0].replace(" ", "_"))
def test_layers_of_many_blocks(case, target_name):
    spec, spatial, out = case
    check(spec, target_name, 2, spatial, out, threads=(1, 3))


# ---------------------------------------------------------------- transforms


@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 3), (4, 3), (2, 5), (4, 4), (4, 5), (2, 7), (4, 7), (2, 9), (8, 3)])
def test_transforms_compute_a_convolution(m, k):
    assert m + k - 1 in SIZES
    rng = np.random.default_rng(m)
    outputs, taps, inputs = matrices(m, k)
    d, g = rng.standard_normal(m + k - 1), rng.standard_normal(k)
    plain = np.correlate(d, g)
    np.testing.assert_allclose(outputs @ ((taps @ g) * (inputs @ d)), plain, rtol=1e-11, atol=1e-11)


def test_weights_are_rounded_once():
    weights = np.random.default_rng(0).standard_normal((5, 5, 3, 4)).astype(np.float32)
    of_y, of_x = matrices(2, 5)[1], matrices(4, 5)[1]
    exact = np.einsum("iy,yxoc,jx->ijoc", of_y, weights.astype(np.float64), of_x).reshape(48, 3, 4)
    transformed = transformed_weights(weights, (2, 5), (4, 5))
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed, exact, rtol=2.0**-23, atol=1e-9)


@pytest.mark.parametrize(("size", "most"), [(4, 4.01), (6, 12.6), (7, 27.8), (8, 39.6), (10, 136)])
def test_amplification_depends_on_the_size_alone(size, most):
    found = [amplification(size + 1 - k, k) for k in range(2, size)]
    assert max(found) == pytest.approx(min(found))
    assert max(found) <= most


# ---------------------------------------------------------------- what is generated and chosen


@pytest.mark.parametrize("target_name", ALL_TARGETS)
@pytest.mark.parametrize("form", [FORMS[5], FORMS[10], FORMS[14]], ids=str)
def test_every_target_emits_and_verifies(form, target_name):
    described = targets.target(target_name)
    window, stride, tile = form
    for channels in (5, 50):
        spec = ConvSpec(20, channels, window, (1, stride), bias=True, minimal=tile, epilogue=EPILOGUES[2])
        code = registry.emit(spec, described)
        assert code == registry.emit(spec, described)
        assert targets.compile_ir(code.ir, described)[:4] == b"\x7fELF"


def test_layers_share_a_kernel():
    described = targets.target("x86-64-v4")
    first = registry.emit(ConvSpec(64, 128, (5, 5), pad_begin=(2, 2), bias=True, minimal=(2, 4)), described)
    for spec in (
        ConvSpec(512, 512, (5, 5), pad_begin=(0, 2), bias=True, minimal=(2, 4)),
        ConvSpec(128, 256, (5, 5, 5), bias=True, groups=2, minimal=(2, 4)),
    ):
        other = registry.emit(spec, described)
        assert (other.name, other.ir) == (first.name, first.ir)
        assert other.constants != first.constants


def chosen(spec, size=(), target="x86-64-v4", exact=False):
    return registry.normalize(spec, targets.target(target), size, size, exact=exact).minimal


def test_it_is_chosen_where_it_pays():
    for channels, size in ((32, 64), (64, 32), (128, 16), (256, 8)):
        assert chosen(ConvSpec(channels, channels, (5, 5, 5), pad_begin=(2, 2, 2)), (size,) * 3), (channels, size)
    for taps, stride in ((3, 1), (5, 1), (7, 1), (9, 1), (5, 2), (7, 2), (9, 2)):
        assert chosen(ConvSpec(64, 64, (taps,), (stride,), pad_begin=(taps // 2,)), (512,)), (taps, stride)
        assert chosen(ConvSpec(64, 64, (taps,), (stride,), pad_begin=(taps // 2,))), "sizes that only a run knows"
    # Windows of 3 x 3 where few output channels leave vectors over them half empty.
    assert chosen(ConvSpec(8, 8, (3, 3, 3), pad_begin=(1, 1, 1)), (96, 96, 96)) == (4, 4)
    assert chosen(ConvSpec(32, 2, (5, 5, 5), pad_begin=(2, 2, 2)), (64, 64, 64))
    assert chosen(ConvSpec(192, 192, (1, 7), pad_begin=(0, 3)), (17, 17))
    assert chosen(ConvSpec(192, 192, (7, 1), pad_begin=(3, 0)), (17, 17))


def test_it_is_not_chosen_elsewhere():
    for spec in (
        ConvSpec(3, 64, (5, 5), pad_begin=(2, 2)),
        ConvSpec(1, 16, (5, 5), pad_begin=(2, 2)),
        ConvSpec(64, 1, (5, 5), pad_begin=(2, 2)),
        ConvSpec(64, 64, (5, 5), groups=64, pad_begin=(2, 2)),
        ConvSpec(64, 64, (5, 5), (2, 2), pad_begin=(2, 2)),
        ConvSpec(64, 64, (5, 5), dilation=(2, 2), pad_begin=(4, 4)),
        ConvSpec(64, 64, (5, 5), dtype="f64", pad_begin=(2, 2)),
        ConvSpec(64, 64, (3, 3), pad_begin=(1, 1)),
        ConvSpec(16, 8, (3, 3), pad_begin=(1, 1)),
        ConvSpec(64, 64, (1, 1)),
    ):
        assert chosen(spec, (56, 56)) == (), spec.text()
    assert chosen(ConvSpec(64, 64, (3,), (2,), pad_begin=(1,)), (512,)) == ()
    assert chosen(ConvSpec(64, 64, (7,)), (1,)) == ()
    assert chosen(ConvSpec(64, 64, (7,), pad_begin=(3,)), (512,), exact=True) == ()


def test_long_sums_take_smaller_tiles_then_none():
    layers = [ConvSpec(n, 64, (5, 5), pad_begin=(2, 2)) for n in (64, 2048, 8192)]
    tiles = [chosen(spec, (64, 64)) for spec in layers]
    assert tiles == [(2, 4), (2, 2), ()]
    assert error_bound((2, 5), (4, 5), 64) <= MOST_ERROR < error_bound((2, 5), (4, 5), 2048)


def signal_block(length):
    """Two 1-D convolutions, the second with a stride; the length may be a symbol."""
    rng = np.random.default_rng(7)
    graph = Graph("block")
    x = graph.input("x", "f32", ("N", 32, length))
    b = Builder(graph)
    for taps, stride in ((5, 1), (7, 2)):
        weights = b.constant((rng.standard_normal((32, 32, taps)) / 10).astype(np.float32))
        bias = b.constant(rng.standard_normal(32).astype(np.float32))
        low, high = (taps // 2,), (taps // 2,)
        x = b.relu(b.conv(x, weights, bias, strides=(stride,), pads_low=low, pads_high=high))
    graph.output(x, names=["y"])
    return graph


@pytest.mark.parametrize("exact", [False, True])
def test_graphs_use_it_unless_results_are_to_be_exact(exact):
    graph = signal_block("L")
    artifact = dhc.compile(graph, exact=exact)
    symbols = [item["symbol"] for item in artifact.plan["program"]["items"] if item["do"] == "kernel"]
    assert sum(symbol.startswith("minimal") for symbol in symbols) == (0 if exact else 2)
    for batch, length in ((2, 300), (1, 7)):
        x = np.random.default_rng(batch).standard_normal((batch, 32, length)).astype(np.float32)
        expected = graph.evaluate(x)[0]
        found = artifact.session(threads=2).run({"x": x})["y"]
        assert np.abs(found - expected).max() <= (1e-6 if exact else 4e-6) * np.abs(expected).max()
