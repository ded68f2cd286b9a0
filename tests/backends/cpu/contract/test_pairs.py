"""Convolutions with weights in 16 bits: widened on every target, or multiplied as pairs of bf16 where one does that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhc_runtime.errors import UsageError

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.factors import has_pairs
from dhc.backends.cpu.contract.pointwise import is_pointwise
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec
from dhc.backends.cpu.contract.transposed_plan import is_shared
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps
from dhc.backends.cpu.objects import native_half
from dhc.backends.cpu.target import compile_ir
from dhc.ir.dtypes import bf16, f16
from tests.backends.cpu.contract.test_contract import LARGER, RUNNABLE, check, conv_case, run, windows
from tests.backends.cpu.contract.test_methods import by
from tests.support.cpu_targets import ALL_TARGETS

WITH_PAIRS = dataclasses.replace(
    targets.target("x86-64-v4"), name="x86-64-v4 with bf16",
    features=(*targets.target("x86-64-v4").features, "avx512bf16"),
)  # fmt: skip
STORED = {name: [("bf16", False)] for name in RUNNABLE}
for _name, _ways in STORED.items():
    if f16 in native_half(targets.target(_name)):
        _ways.append(("f16", False))
    if has_pairs(targets.target(_name)):
        _ways += [("bf16", True)] * 3
REGIONS = [
    (ConvSpec(301, 40, (3, 3), dilation=(9, 9), pad_begin=(9, 9), bias=True, method="regions"), (17, 19), (17, 19)),
    (ConvSpec(7, 33, (2, 3, 3), dilation=(1, 5, 6), pad_begin=(1, 5, 6), method="regions"), (4, 7, 11), (5, 7, 11)),
    (ConvSpec(9, 18, (5,), (2,), (4,), (8,), method="regions"), (21,), (11,)),
]


def stored(spec, storage, pairs):
    return dataclasses.replace(spec, dtype="f32", storage=storage, pairs=pairs)


@settings(max_examples=60)
@given(case=st.one_of(windows(transposed=False), windows(transposed=True)), data=st.data())
def test_any_convolution(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    spec = stored(spec, *data.draw(st.sampled_from(STORED[target_name])))
    methods = ["window"]
    if isinstance(spec, ConvTransposeSpec):
        methods = ["transposed" if not spec.narrow and is_shared(spec) else "window"]
    else:
        if not is_pointwise(spec):
            methods.append("channels")
        elif tuple(spatial) == tuple(out):
            methods += ["channels", "pointwise"]
    method = data.draw(st.sampled_from(methods))
    if method in ("channels", "pointwise"):
        spec = by(method, spec, out)
    assert registry.select(spec, targets.target(target_name)).name == method
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


MANY_BLOCKS = {"wide": LARGER[0], "narrow": LARGER[1], "first": LARGER[3], "deep": LARGER[-6], "grouped": LARGER[-2]}


@pytest.mark.parametrize("case", MANY_BLOCKS)
def test_many_blocks(case):
    spec, spatial, out = MANY_BLOCKS[case]
    for way in dict.fromkeys(STORED["host"]):
        whole = stored(spec, *way)
        for chosen in (whole, by("channels", whole, out)) if isinstance(spec, ConvSpec) else (whole,):
            check(chosen, "host", *conv_case(chosen, "host", 1, spatial, out), threads=(1, 3))


@pytest.mark.parametrize("case", REGIONS, ids=["many_channels", "volume", "strided"])
def test_regions_of_taps(case):
    spec, spatial, out = case
    for target_name in ("host", "x86-64-v3") if "x86-64-v3" in RUNNABLE else ("host",):
        for way in dict.fromkeys(STORED[target_name]):
            chosen = stored(spec, *way)
            assert registry.select(chosen, targets.target(target_name)).name == "regions"
            check(chosen, target_name, *conv_case(chosen, target_name, 1, spatial, out), threads=(1, 3))


@pytest.mark.skipif(("bf16", True) not in STORED["host"], reason="this machine does not multiply pairs of bf16")
def test_inputs_are_rounded_to_nearest_even():
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 3e38, 2.0**-120], np.float32)
    x = np.stack([ties, np.zeros_like(ties), ties[::-1]])[None]
    spec = stored(ConvSpec(3, 1, (1,)), "bf16", True)
    operands, params, expected, _ = conv_case(spec, "host", 1, (6,), (6,))
    weights = registry.pack_weights(spec, targets.target("host"), np.array([[[1.0], [1.0], [0.0]]], np.float32))
    found = run(spec, "host", {**operands, "input": x, "weight": weights}, params, expected.shape)
    assert found[0, 0].tolist() == ties.astype(bf16.numpy).astype(np.float32).tolist()


def test_layout_of_pairs():
    spec = stored(ConvSpec(3, 1, (2,)), "bf16", True)
    pairs = in_steps(spec, np.array([[[1, 2], [3, 4], [5, 6]]], np.float32), 1)
    assert pairs.shape == (1, 2, 2)
    assert as_stored(spec, pairs).astype(int).tolist() == [1, 3, 2, 4, 5, 0, 6, 0]
    plain = stored(spec, "", False)
    assert in_steps(plain, pairs, 1) is pairs


@pytest.mark.parametrize("spec", [
    ConvSpec(24, 30, (3, 3), pad_begin=(1, 1), bias=True),
    ConvSpec(24, 64, (1, 1), method="pointwise"),
    ConvSpec(64, 64, (3, 3), (3, 3), method="channels", positions=49),
    ConvTransposeSpec(8, 4, (2, 2, 2), (2, 2, 2)),
])  # fmt: skip
def test_code_for_every_target(spec):
    for target_name in ALL_TARGETS:
        described = targets.target(target_name)
        for storage in ("bf16", "f16") if f16 in native_half(described) else ("bf16",):
            code = registry.emit(stored(spec, storage, False), described)
            assert compile_ir(code.ir, described)[:4] == b"\x7fELF" and "dpbf16ps" not in code.ir
    code = registry.emit(stored(spec, "bf16", True), WITH_PAIRS)
    assert compile_ir(code.ir, WITH_PAIRS)[:4] == b"\x7fELF" and "dpbf16ps" in code.ir


def test_where_pairs_are_multiplied():
    size = (64, 64)

    def chosen(spec, storage="bf16", target=WITH_PAIRS, **options):
        return registry.normalize(spec, target, size, size, storage=storage, **options)

    strided = ConvSpec(64, 64, (3, 3), (2, 2), pad_begin=(1, 1))
    assert chosen(strided).pairs
    assert not chosen(strided, "f16").pairs and chosen(strided, "f16").storage == "f16"
    assert not chosen(strided, target=targets.target("x86-64-v4")).pairs
    assert chosen(ConvSpec(64, 64, (1, 1)), exact=True).pairs
    square = ConvSpec(64, 64, (3, 3), pad_begin=(1, 1))
    assert chosen(square).winograd and not chosen(square).storage and chosen(square, exact=True).pairs
    few = ConvSpec(8, 12, (3, 3, 3), pad_begin=(1, 1, 1))
    assert registry.normalize(few, WITH_PAIRS, (64,) * 3, (64,) * 3, storage="bf16").pairs
    for kept in (ConvSpec(64, 64, (3, 3), groups=64), dataclasses.replace(strided, dtype="f64")):
        assert not chosen(kept).pairs and not chosen(kept).storage
    assert chosen(strided, "") == registry.normalize(strided, WITH_PAIRS, size, size)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"storage": "f8"}, {"storage": "bf16", "dtype": "f64"}):
        with pytest.raises(UsageError, match="weights of f32"):
            ConvSpec(4, 4, (3,), **wrong)
    for wrong in ({"storage": "f16"}, {}, {"storage": "bf16", "winograd": 4}):
        with pytest.raises(UsageError, match="pairs are of bf16"):
            ConvSpec(4, 4, (3, 3), pairs=True, **wrong)
