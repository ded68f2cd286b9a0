"""Transposed convolutions of small maps by vectors over output channels, against NumPy, and when they are chosen."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import ConvTransposeSpec
from dhc.backends.cpu.contract.transposed_channels import serves
from dhc.ir.symbols import sym
from tests.backends.cpu.contract.test_contract import RUNNABLE, check, conv_case, windows
from tests.support.cpu_targets import ALL_TARGETS

GENERATOR = ConvTransposeSpec(24, 70, (4, 4), (2, 2), pad_begin=(1, 1), bias=True)


def by_channels(spec, out):
    """The spec with the method set whether it pays or not."""
    height, width = (1, *out)[-2:]
    return dataclasses.replace(spec, method="channels", positions=height * width, width=width, narrow=False)


@settings(max_examples=100)
@given(case=windows(transposed=True), data=st.data())
def test_any_window(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    assume(serves(spec, targets.target(target_name), *(1, *out)[-2:]))
    spec = by_channels(spec, out)
    assert registry.select(spec, targets.target(target_name)).name == "transposed-channels"
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("size, out", [((4, 4), (8, 8)), ((7, 5), (13, 10)), ((8, 8), (16, 16))])
def test_sizes_of_generators(size, out, target_name):
    spec = by_channels(GENERATOR, out)
    check(spec, target_name, *conv_case(spec, target_name, 2, size, out), threads=(1, 2, 7))


@pytest.mark.parametrize("target_name", ALL_TARGETS)
def test_every_target_has_code(target_name):
    target = targets.target(target_name)
    code = registry.emit(by_channels(GENERATOR, (8, 8)), target)
    assert len(targets.compile_ir(code.ir, target)) > 0


@pytest.mark.parametrize("target_name", ALL_TARGETS)
def test_small_maps_of_many_channels_are_chosen(target_name):
    target = targets.target(target_name)
    spec = dataclasses.replace(GENERATOR, out_channels=256)
    assert registry.normalize(spec, target, (4, 4), (8, 8)).method == "channels"
    assert registry.normalize(spec, target, (64, 64), (128, 128)).method == ""
    assert registry.normalize(spec, target, (4, 4), (8, 9)).method == ""
    assert registry.normalize(spec, target, (4, sym("W")), (8, 2 * sym("W"))).method == ""
    assert registry.normalize(dataclasses.replace(spec, out_channels=3), target, (4, 4), (8, 8)).method == ""
