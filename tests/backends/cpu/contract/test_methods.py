"""Convolutions by the methods for known sizes (pointwise, channels) against NumPy, and when they are chosen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.pointwise import is_pointwise
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.ir.symbols import sym
from tests.backends.cpu.contract.test_contract import (
    EPILOGUES,
    RUNNABLE,
    check,
    conv_case,
    run,
    windows,
)
from tests.support.cpu_targets import ALL_TARGETS

LONG = ep.Chain((ep.Relu(),) * 8)  # too long to be repeated for every vector of a tile
GELU_LIKE = ep.Chain((ep.LeakyRelu(0.1), ep.Clip(-3, 3), ep.LeakyRelu(0.2), ep.Clip(-1, 2), ep.Relu()))


def by(method, spec, out):
    """The spec with a method set whether it pays or not."""
    positions = math.prod(out) if method == "channels" else 0
    return dataclasses.replace(spec, method=method, positions=positions, narrow=False)


UNEVEN = [  # sizes of which one axis cannot be divided fairly among two or three threads
    ("pointwise", ConvSpec(20, 67, (1, 1), method="pointwise"), (14, 14)),
    ("pointwise", ConvSpec(40, 130, (1, 1), method="pointwise", epilogue=ep.Relu()), (28, 28)),
    ("channels", by("channels", ConvSpec(17, 96, (1, 1)), (14, 14)), (14, 14)),
    ("channels", by("channels", ConvSpec(9, 70, (3, 3), pad_begin=(1, 1)), (11, 13)), (11, 13)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("method, spec, size", UNEVEN)
def test_uneven_sizes_are_divided_along_another_axis(method, spec, size, target_name):
    assert registry.select(spec, targets.target(target_name)).name == method
    check(spec, target_name, *conv_case(spec, target_name, 1, size, size), threads=(1, 2, 3))


@settings(max_examples=80)
@given(case=windows(transposed=False), data=st.data())
def test_channels(case, data):
    spec, batch, spatial, out = case
    # Pointwise layers are read in place: `choose` gives them this method only where no padding follows the input.
    assume(not is_pointwise(spec) or tuple(spatial) == tuple(out))
    target_name = data.draw(st.sampled_from(RUNNABLE))
    spec = by("channels", spec, out)
    assert registry.select(spec, targets.target(target_name)).name == "channels"
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


@settings(max_examples=80)
@given(
    groups=st.sampled_from([1, 1, 2, 3]),
    ins=st.sampled_from([1, 2, 5, 17, 20]),
    outs=st.sampled_from([1, 2, 5, 11, 12, 13, 30, 49]),
    batch=st.sampled_from([0, 1, 1, 2]),
    size=st.one_of(st.tuples(st.integers(1, 70)), st.tuples(st.integers(1, 9), st.integers(1, 40)),
                   st.sampled_from([(16, 32), (2, 3, 5), (4, 8, 16), (7, 7), (25, 41)])),
    bias=st.booleans(),
    dtype=st.sampled_from(["f32", "f32", "f64"]),
    epilogue=st.sampled_from([*EPILOGUES, GELU_LIKE]),
    data=st.data(),
)  # fmt: skip
def test_pointwise(groups, ins, outs, batch, size, bias, dtype, epilogue, data):
    ones = (1,) * len(size)
    spec = ConvSpec(
        ins * groups, outs * groups, ones, groups=groups, bias=bias, dtype=dtype, epilogue=epilogue, method="pointwise"
    )
    target_name = data.draw(st.sampled_from(RUNNABLE))
    operands, params, expected, magnitude = conv_case(spec, target_name, batch, size, size)
    if epilogue is GELU_LIKE:
        plain = dataclasses.replace(spec, method="", epilogue=ep.Epilogue())
        slow = conv_case(plain, target_name, batch, size, size)
        expected = run(plain, target_name, slow[0], slow[1], expected.shape).clip(0, 2)
    check(spec, target_name, operands, params, expected, magnitude)


@st.composite
def depthwise(draw):
    """A depthwise spec with input and output sizes."""
    rank = draw(st.integers(1, 2))

    def ints(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    kernel, stride, dilation, before = ints(1, 5), ints(1, 3), ints(1, 2), ints(-1, 3)
    out = (*ints(1, 8)[1:], draw(st.one_of(st.integers(1, 16), st.sampled_from([17, 28, 33, 56]))))
    after = ints(-1, 3)
    reach = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    size = tuple(r - b - a for r, b, a in zip(reach, before, after, strict=True))
    assume(min(size) >= 1 and size[-1] <= reach[-1] + stride[-1])
    channels = draw(st.sampled_from([1, 3, 8, 15, 16, 17, 40]))
    spec = ConvSpec(
        channels, channels, kernel, stride, dilation, before, channels, draw(st.booleans()),
        draw(st.sampled_from(["f32", "f32", "f64"])), draw(st.sampled_from(EPILOGUES)),
        method="depthwise-channels", positions=out[-1],
    )  # fmt: skip
    return spec, draw(st.sampled_from([0, 1, 1, 2])), size, out


@settings(max_examples=80)
@given(case=depthwise(), data=st.data())
def test_depthwise_channels(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    assert registry.select(spec, targets.target(target_name)).name == "depthwise-channels"
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


def depthwise_layer(channels, kernel, stride, out_width):
    pad = (kernel - 1) // 2
    return ConvSpec(
        channels, channels, (kernel,) * 2, (stride,) * 2, pad_begin=(pad,) * 2, groups=channels, bias=True,
        method="depthwise-channels", positions=out_width,
    )  # fmt: skip


LARGER = [
    (ConvSpec(3, 24, (3, 3), (2, 2), pad_begin=(1, 1), bias=True, epilogue=ep.Relu()), (61, 160), (31, 80)),
    (ConvSpec(4, 17, (7, 11), (1, 2), pad_begin=(3, 5), epilogue=LONG), (40, 151), (40, 76)),
    (ConvSpec(1, 70, (5, 5), pad_begin=(2, 2)), (30, 90), (30, 90)),
    (ConvSpec(6, 18, (3, 3), pad_begin=(1, 1), groups=6, bias=True), (70, 131), (70, 131)),
    (ConvSpec(5, 5, (5, 5), (2, 2), pad_begin=(2, 2), groups=5, epilogue=ep.Relu()), (90, 200), (45, 100)),
    (ConvSpec(3, 3, (3, 3), (1, 1), (4, 3), (4, 3), groups=3), (50, 60), (50, 60)),
    (ConvSpec(2, 2, (25,), (2,), pad_begin=(12,), groups=2, epilogue=LONG), (1000,), (500,)),
    (ConvSpec(4, 4, (3, 3), pad_begin=(1, 1), groups=4, bias=True, epilogue=LONG), (20, 45), (20, 45)),
    (depthwise_layer(40, 3, 1, 61), (60, 61), (60, 61)),
    (depthwise_layer(100, 5, 2, 40), (79, 80), (40, 40)),
    (ConvSpec(300, 150, (1, 1), bias=True, method="pointwise"), (40, 41), (40, 41)),
    (ConvSpec(40, 200, (1, 1), method="pointwise"), (64, 64), (64, 64)),  # rows a power of two apart
    (ConvSpec(5000, 14, (1,), method="pointwise"), (70,), (70,)),  # a panel larger than the cache
    (by("channels", ConvSpec(700, 80, (3, 3), pad_begin=(1, 1), bias=True), (7, 7)), (7, 7), (7, 7)),
    (by("channels", ConvSpec(90, 100, (3, 3), (2, 2), pad_begin=(1, 1)), (29, 29)), (57, 58), (29, 29)),
    (by("channels", ConvSpec(3000, 40, (1, 1)), (14, 14)), (14, 14), (14, 14)),
    (by("channels", ConvSpec(1000, 300, (1, 1), bias=True), (1, 1)), (1, 1), (1, 1)),
    (by("channels", ConvSpec(64, 70, (1, 1), (3, 3)), (5, 5)), (14, 15), (5, 5)),
    (by("channels", ConvSpec(12, 60, (3, 3, 3), (1, 2, 1), (2, 1, 2), (2, 1, 2)), (4, 5, 9)), (4, 10, 9), (4, 5, 9)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case[0].text().split(" bias")[0].replace(" ", "_"))
def test_many_blocks(case, target_name):
    spec, spatial, out = case
    check(spec, target_name, *conv_case(spec, target_name, 2, spatial, out), threads=(1, 3))


@pytest.mark.parametrize("target_name", ALL_TARGETS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("method", ["pointwise", "channels", "depthwise-channels"])
def test_every_target_emits_and_verifies(method, dtype, target_name):
    described = targets.target(target_name)
    spec = by(method, ConvSpec(70, 64, (1, 1), bias=True, dtype=dtype, epilogue=EPILOGUES[2]), (14, 14))
    if method == "depthwise-channels":
        spec = dataclasses.replace(depthwise_layer(70, 3, 2, 14), dtype=dtype, epilogue=EPILOGUES[2])
    code = registry.emit(spec, described)
    assert code == registry.emit(spec, described)
    assert targets.compile_ir(code.ir, described)[:4] == b"\x7fELF"


@pytest.mark.parametrize("method", ["pointwise", "channels"])
def test_layers_of_other_channels_share_a_kernel(method):
    described = targets.target("x86-64-v4")
    first, second = (
        registry.emit(by(method, ConvSpec(*channels, (1, 1), bias=True), (14, 14)), described)
        for channels in ((70, 240), (512, 960))
    )
    assert (first.name, first.ir) == (second.name, second.ir)
    assert first.constants != second.constants


@pytest.mark.parametrize("method", ["pointwise", "channels"])
def test_tiles_keep_their_sums_in_registers(method):
    described = targets.target("x86-64-v4")
    spec = by(method, ConvSpec(64, 240, (1, 1), bias=True, epilogue=ep.Relu()), (14, 14))
    text = targets.assembly(registry.emit(spec, described).ir, described)
    products = [line for line in text.splitlines() if "vfmadd" in line]
    assert sum("%zmm" in line for line in products) >= 24
    assert not [line for line in products if "(%rsp)" in line]


@pytest.mark.parametrize("outs", [1, 16, 28, 48, 112])
def test_few_output_channels_come_with_few_zeros(outs):
    # The first layer of a squeeze: one position, where reading the weights is all there is to do.
    spec = ConvSpec(72, outs, (1, 1), method="channels", positions=1)
    packed = registry.pack_weights(spec, targets.target("x86-64-v4"), np.ones((outs, 72, 1, 1), np.float32))
    assert packed.size <= 72 * max(16, outs * 4 // 3 + 16)
    operands = conv_case(spec, "host", 1, (1, 1), (1, 1))
    check(spec, "host", *operands, threads=(1, 2))


def test_masks_let_depthwise_kernels_read_in_place():
    spec = ConvSpec(8, 8, (3, 3), pad_begin=(1, 1), groups=8)
    names = [registry.select(spec, targets.target(name)).name for name in ("x86-64-v3", "x86-64-v4", "aarch64")]
    assert names == ["depthwise", "depthwise-direct", "depthwise"]
    described = targets.target("x86-64-v4")
    for other in (
        dataclasses.replace(spec, kernel=(7, 7)),
        dataclasses.replace(spec, stride=(3, 3)),
        dataclasses.replace(spec, stride=(2, 2), dilation=(1, 2)),
        ConvSpec(8, 8, (3, 3, 3), groups=8),
    ):
        assert registry.select(other, described).name == "depthwise"


@settings(max_examples=60)
@given(case=windows(transposed=False), data=st.data())
def test_depthwise_direct(case, data):
    spec, batch, spatial, out = case
    # One input channel for each group: the weights of one image are reused by several outputs.
    outs = spec.out_channels // spec.groups
    spec = dataclasses.replace(spec, in_channels=spec.groups, out_channels=spec.groups * min(outs, 3))
    assume(registry.select(spec, targets.target("x86-64-v4")).name == "depthwise-direct")
    wide = [name for name in RUNNABLE if targets.target(name).masks] or RUNNABLE
    target_name = data.draw(st.sampled_from(wide))
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


@settings(max_examples=60)
@given(case=windows(transposed=False), ins=st.integers(1, 4), outs=st.sampled_from([8, 12, 13, 23, 24]), data=st.data())
def test_few_channels(case, ins, outs, data):
    spec, batch, spatial, out = case
    spec = dataclasses.replace(spec, in_channels=spec.groups * ins, out_channels=spec.groups * outs)
    assume(registry.select(spec, targets.target("x86-64-v4")).name == "few-channels")
    wide = [name for name in RUNNABLE if targets.target(name).masks] or RUNNABLE
    target_name = data.draw(st.sampled_from(wide))
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


def test_methods_are_chosen_from_the_sizes():
    described = targets.target("x86-64-v4")
    n = sym("n")

    def method(spec, size, out=None):
        return registry.normalize(spec, described, size, out or size).method

    assert method(ConvSpec(64, 64, (1, 1)), (56, 56)) == "pointwise"
    assert method(ConvSpec(64, 64, (1, 1)), (n, 56)) == "pointwise"
    assert method(ConvSpec(64, 64, (1, 1)), (n, 56), (n + 1, 56)) == ""
    assert method(ConvSpec(64, 64, (1, 1)), ()) == ""
    assert method(ConvSpec(512, 128, (1, 1)), (7, 7)) == "channels"
    assert method(ConvSpec(512, 128, (1, 1)), (7, 7), (8, 7)) == ""  # a pad behind the last element
    assert method(ConvSpec(512, 128, (3, 3), (2, 2), pad_begin=(1, 1)), (28, 28), (14, 14)) == "channels"
    assert method(ConvSpec(512, 8, (3, 3), (2, 2), pad_begin=(1, 1)), (28, 28), (14, 14)) == ""
    narrow = ConvSpec(64, 64, (3, 3), groups=64, pad_begin=(1, 1))
    assert method(narrow, (7, 7)) == method(narrow, (n, 7)) == "depthwise-channels"
    assert method(narrow, (7, n)) == method(narrow, (14, 14)) == method(narrow, (7, 20), (7, 7)) == ""
