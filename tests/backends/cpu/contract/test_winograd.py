"""Winograd kernels against float64: within the documented bound, over sizes, pads, epilogues, threads and targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.winograd_choice import MOST_ERROR, winograd_tile
from dhc.backends.cpu.contract.winograd_transform import (
    TILES,
    amplification,
    error_bound,
    matrices,
    transformed_weights,
)
from dhc.ir import Builder, Graph
from tests.backends.cpu.contract.test_contract import EPILOGUES, RUNNABLE, conv_case, run
from tests.support.cpu_targets import ALL_TARGETS

# Of the largest sum of magnitudes of a result; typical data stay below this by a factor of 3.
TYPICAL = {2: 3e-6, 4: 3e-6, 6: 2e-5}


def check(spec, target_name, batch, in_spatial, out_spatial, threads=(1, 2, 7)):
    """Within the bound for any data, within `TYPICAL` for these, and bit-equal for any number of threads."""
    operands, params, expected, magnitude = conv_case(spec, target_name, batch, in_spatial, out_spatial)
    first = run(spec, target_name, operands, params, expected.shape, threads[0])
    assert not np.isnan(first).any(), "outputs were forgotten"
    if expected.size:
        error = np.abs(first - expected).max()
        assert error <= TYPICAL[spec.winograd] * magnitude.max()
        # The magnitudes are sums of |w||x| at most, plus what is added after them.
        terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0]
        weights = 9 * terms * 5  # standard normal weights: no channel's sum of magnitudes is larger
        assert error <= error_bound(spec.winograd, terms) * np.abs(operands["input"]).max(initial=0) * weights + 1e-5
    for nthreads in threads[1:]:
        again = run(spec, target_name, operands, params, expected.shape, nthreads)
        assert first.tobytes() == again.tobytes(), f"{nthreads} threads change the result"


@st.composite
def cases(draw):
    """Specs and sizes: outputs of one element and more, negative and uneven pads, channels beside the tiles'.

    Of three some are dilated: by divisors of vectors' lengths and others, differently in each axis.
    """
    rank = draw(st.sampled_from([2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    kernel = (draw(st.sampled_from([1, 2, 3])), 3, 3)[3 - rank :]
    pads = [draw(st.tuples(st.integers(-2, 3), st.integers(-1, 3))) for _ in range(rank)]
    widths = st.one_of(st.integers(1, 9), st.sampled_from([14, 15, 16, 28, 33, 63, 64, 66, 70, 130]))
    spatial = (*(draw(st.integers(1, 4)) for _ in range(rank - 2)), draw(st.integers(1, 20)), draw(widths))
    dilation = (1,) * rank
    if draw(st.integers(0, 2)) == 0:
        dilation = tuple(draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16])) for _ in range(rank))
        pads = [(a * d, b * d) for (a, b), d in zip(pads, dilation, strict=True)]
    out = tuple(n + a + b - (k - 1) * d for n, (a, b), k, d in zip(spatial, pads, kernel, dilation, strict=True))
    assume(min(out) >= 1)
    spec = ConvSpec(
        in_channels=draw(st.integers(1, 5)) * groups,
        out_channels=draw(st.sampled_from([1, 3, 8, 16, 17, 32, 33, 40, 50])) * groups,
        kernel=kernel,
        dilation=dilation,
        pad_begin=tuple(a for a, _ in pads),
        groups=groups,
        bias=draw(st.booleans()),
        epilogue=draw(st.sampled_from(EPILOGUES)),
        winograd=draw(st.sampled_from(TILES)),
    )
    return spec, draw(st.sampled_from([0, 1, 1, 2, 3])), spatial, out


@settings(max_examples=80)
@given(case=cases(), data=st.data())
def test_winograd(case, data):
    spec, batch, spatial, out = case
    check(spec, data.draw(st.sampled_from(RUNNABLE)), batch, spatial, out)


LARGER = [
    (ConvSpec(40, 70, (3, 3), pad_begin=(1, 1), bias=True, winograd=4), (57, 141), (57, 141)),
    (ConvSpec(64, 64, (3, 3), pad_begin=(1, 1), winograd=4), (64, 128), (64, 128)),
    (ConvSpec(300, 65, (3, 3), pad_begin=(1, 1), winograd=4, epilogue=ep.Relu()), (14, 14), (14, 14)),
    (ConvSpec(130, 33, (3, 3), winograd=2), (7, 7), (5, 5)),
    (ConvSpec(40, 70, (3, 3), pad_begin=(1, 1), bias=True, winograd=6, epilogue=ep.Relu()), (57, 141), (57, 141)),
    (ConvSpec(70, 40, (3, 3), pad_begin=(1, 1), winograd=6), (50, 192), (50, 192)),
    (ConvSpec(10, 40, (3, 3, 3), pad_begin=(1, 1, 1), winograd=6), (11, 33, 34), (11, 33, 34)),
    (ConvSpec(10, 40, (3, 3, 3), pad_begin=(1, 1, 1), winograd=4, bias=True), (11, 33, 34), (11, 33, 34)),
    (ConvSpec(6, 18, (5, 3, 3), pad_begin=(2, 1, 1), winograd=2), (9, 20, 70), (9, 20, 70)),
    (ConvSpec(300, 18, (3, 3, 3), pad_begin=(1, 1, 1), winograd=4), (4, 10, 18), (4, 10, 18)),
    (ConvSpec(40, 34, (3, 3), dilation=(2, 2), pad_begin=(2, 2), bias=True, winograd=4), (28, 62), (28, 62)),
    (ConvSpec(20, 21, (3, 3, 3), dilation=(4,) * 3, pad_begin=(4,) * 3, winograd=4), (9, 21, 38), (9, 21, 38)),
    (ConvSpec(20, 16, (3, 3), dilation=(6, 6), pad_begin=(6, 6), winograd=2), (30, 65), (30, 65)),
    (ConvSpec(20, 16, (3, 3), dilation=(16, 12), pad_begin=(16, 12), winograd=4), (65, 130), (65, 130)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case[0].text().split(" bias")[0].replace(" ", "_"))
def test_layers_of_many_blocks(case, target_name):
    spec, spatial, out = case
    check(spec, target_name, 2, spatial, out, threads=(1, 3))


@pytest.mark.parametrize("outs", [32, 96])
@pytest.mark.parametrize("size", [14, 28])
def test_small_maps_are_divided_where_output_channels_cannot_be(outs, size):
    # One slice of output channels, or three for two threads.
    spec = ConvSpec(40, outs, (3, 3), pad_begin=(1, 1), winograd=4)
    operands, params, expected, _ = conv_case(spec, "host", 1, (size, size), (size, size))
    for tid in (0, 1):
        part = run(spec, "host", operands, params, expected.shape, nthreads=2, only=tid)
        assert 0.4 <= 1 - np.isnan(part).mean() <= 0.6


def test_infinities_and_nan_stay_near():
    # A tile mixes its inputs: what is not finite may spoil the tile, and nothing beyond it.
    spec = ConvSpec(2, 16, (3, 3), pad_begin=(1, 1), winograd=4)
    operands, params, expected, _ = conv_case(spec, "host", 1, (12, 40), (12, 40))
    operands["input"][0, 0, 5, 5] = np.nan
    result = run(spec, "host", operands, params, expected.shape)
    assert np.isnan(result[:, :, 4:7, 4:7]).all()
    assert not np.isnan(result[:, :, 8:]).any() and not np.isnan(result[:, :, :, 8:]).any()


# ---------------------------------------------------------------- transforms


@pytest.mark.parametrize("m", TILES)
def test_transforms_compute_a_convolution(m):
    rng = np.random.default_rng(m)
    outputs, taps, inputs = matrices(m)
    d, g = rng.standard_normal((m + 2, m + 2)), rng.standard_normal((3, 3))
    products = (taps @ g @ taps.T) * (inputs @ d @ inputs.T)
    plain = [[(d[y : y + 3, x : x + 3] * g).sum() for x in range(m)] for y in range(m)]
    np.testing.assert_allclose(outputs @ products @ outputs.T, plain, rtol=1e-12, atol=1e-12)


def test_weights_are_rounded_once():
    weights = np.random.default_rng(0).standard_normal((3, 3, 5, 4)).astype(np.float32)
    taps = matrices(4)[1]
    exact = np.einsum("iy,yxoc,jx->ijoc", taps, weights.astype(np.float64), taps).reshape(36, 5, 4)
    transformed = transformed_weights(4, weights)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed, exact, rtol=2.0**-23, atol=1e-9)


@pytest.mark.parametrize("m", TILES)
def test_amplification_is_that_of_the_worst_tap(m):
    outputs, taps, inputs = (np.abs(x) for x in matrices(m))
    worst = max((outputs @ (taps[:, k] * inputs.sum(1))).max() for k in range(3))
    assert amplification(m) == pytest.approx(worst**2)
    assert error_bound(m, 64) < error_bound(m, 128)


# ---------------------------------------------------------------- what is generated and chosen


@pytest.mark.parametrize("target_name", ALL_TARGETS)
@pytest.mark.parametrize("m", TILES)
def test_every_target_emits_and_verifies(m, target_name):
    described = targets.target(target_name)
    spec = ConvSpec(20, 50, (3, 3), pad_begin=(1, 1), bias=True, winograd=m, epilogue=EPILOGUES[2])
    code = registry.emit(spec, described)
    assert code == registry.emit(spec, described)
    assert targets.compile_ir(code.ir, described)[:4] == b"\x7fELF"


def test_layers_share_a_kernel():
    described = targets.target("x86-64-v4")
    first = registry.emit(ConvSpec(64, 128, (3, 3), pad_begin=(1, 1), bias=True, winograd=4), described)
    for spec in (
        ConvSpec(512, 512, (3, 3), pad_begin=(0, 2), bias=True, winograd=4),
        ConvSpec(128, 256, (3, 3, 3), bias=True, groups=2, winograd=4),
    ):
        other = registry.emit(spec, described)
        assert (other.name, other.ir) == (first.name, first.ir)
        assert other.constants != first.constants


def chosen(spec, size=(), target="x86-64-v4"):
    return registry.normalize(spec, targets.target(target), size, size).winograd


def test_it_is_chosen_where_it_pays():
    for channels, size in ((64, 256), (64, 56), (128, 28), (256, 14), (512, 28), (512, 14), (32, 512), (16, 256)):
        assert chosen(ConvSpec(channels, channels, (3, 3), pad_begin=(1, 1)), (size, size)) == 4, (channels, size)
    # The transformed weights of 4 x 4 tiles weigh more than their products save where a map has few tiles.
    assert chosen(ConvSpec(512, 512, (3, 3), pad_begin=(1, 1)), (7, 7)) == 2
    assert chosen(ConvSpec(64, 64, (3, 3, 3), pad_begin=(1, 1, 1)), (32, 32, 32)) == 4
    assert chosen(ConvSpec(24, 24, (3, 3, 3), pad_begin=(1, 1, 1)), (96, 96, 96)) == 6
    assert chosen(ConvSpec(64, 64, (3, 3), pad_begin=(1, 1))) == 4, "sizes that only a run knows"
    # Few phases have outputs for whole tiles where the dilation is wide.
    for channels, dilation, size in ((64, 2, 64), (256, 4, 28), (64, 6, 56), (256, 12, 65)):
        spec = ConvSpec(channels, channels, (3, 3), dilation=(dilation,) * 2, pad_begin=(dilation,) * 2)
        assert chosen(spec, (size, size)) == 4, spec.text()
    assert chosen(ConvSpec(20, 20, (3, 3, 3), dilation=(4,) * 3, pad_begin=(4,) * 3), (38, 38, 38)) == 4


def test_it_is_not_chosen_elsewhere():
    pads = {"pad_begin": (1, 1)}
    for spec in (
        ConvSpec(3, 64, (3, 3), **pads),
        ConvSpec(64, 1, (3, 3), **pads),
        ConvSpec(64, 64, (3, 3), groups=64, **pads),
        ConvSpec(64, 64, (3, 3), (2, 2), **pads),
        ConvSpec(64, 64, (3, 3), dilation=(1, 17), pad_begin=(1, 17)),
        ConvSpec(64, 64, (5, 5), **pads),
        ConvSpec(64, 64, (3, 3), dtype="f64", **pads),
        ConvSpec(64, 64, (1, 1)),
    ):
        assert chosen(spec, (56, 56)) == 0, spec.text()
    assert chosen(ConvSpec(64, 64, (3,), pad_begin=(1,)), (1000,)) == 0
    assert chosen(ConvSpec(64, 64, (3, 3)), (1, 1)) == 0


def test_long_sums_take_smaller_tiles_then_none():
    described = targets.target("x86-64-v4")
    tiles = [winograd_tile(ConvSpec(n, 64, (3, 3)), described, (), (96, 96)) for n in (128, 2048, 8192, 65536)]
    assert tiles == [6, 4, 2, 0]
    assert error_bound(4, 2048) <= MOST_ERROR < error_bound(4, 8192)


def test_exact_is_without_it():
    described = targets.target("x86-64-v4")
    spec = ConvSpec(64, 64, (3, 3), pad_begin=(1, 1))
    plain = registry.normalize(spec, described, (56, 56), (56, 56), exact=True)
    assert plain.winograd == 0
    assert registry.select(plain, described, exact=True).exact
    assert not registry.select(registry.normalize(spec, described, (56, 56), (56, 56)), described).exact


# ---------------------------------------------------------------- in whole graphs


def residual_block(batch, height, width):
    """Two 3x3 convolutions of 24 channels with a residual add; sizes may be symbols."""
    rng = np.random.default_rng(7)
    graph = Graph("block")
    x = graph.input("x", "f32", (batch, 24, height, width))
    b = Builder(graph)
    inner = x
    for _ in range(2):
        weights = b.constant((rng.standard_normal((24, 24, 3, 3)) / 15).astype(np.float32))
        bias = b.constant(rng.standard_normal(24).astype(np.float32))
        inner = b.relu(b.conv(inner, weights, bias, pads_low=(1, 1), pads_high=(1, 1)))
    graph.output(b.add(inner, x), names=["y"])
    return graph


def kernels(artifact):
    """Symbols of the artifact's kernels."""
    return [item["symbol"] for item in artifact.plan["program"]["items"] if item["do"] == "kernel"]


@pytest.mark.parametrize("shape", [(1, 56, 56), ("N", 40, 41), ("N", "H", "W")])
def test_graphs_use_it_within_the_bound(shape):
    graph = residual_block(*shape)
    artifact = dhc.compile(graph)
    assert sum(symbol.startswith("winograd") for symbol in kernels(artifact)) == 2
    session = artifact.session(threads=2)
    sizes = [(2, 40, 41), (1, 3, 2)] if shape[0] == "N" else [(1, 56, 56)]
    for n, h, w in sizes:
        if shape[1:] == (40, 41) and (h, w) != (40, 41):
            continue
        x = np.random.default_rng(n).standard_normal((n, 24, h, w)).astype(np.float32)
        expected = graph.evaluate(x)[0]
        assert np.abs(session.run({"x": x})["y"] - expected).max() <= 4e-6 * np.abs(expected).max()


def test_exact_compilations_are_without_it():
    graph = residual_block(1, 56, 56)
    exact = dhc.compile(graph, exact=True)
    assert not [symbol for symbol in kernels(exact) if symbol.startswith("winograd")]
    x = np.random.default_rng(0).standard_normal((1, 24, 56, 56)).astype(np.float32)
    expected = graph.evaluate(x)[0]
    assert np.abs(exact.session().run({"x": x})["y"] - expected).max() <= 1e-6 * np.abs(expected).max()
