"""Contraction kernels against NumPy in float64, on guarded memory, for every instruction set this machine can run."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import platform

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dhc_runtime.errors import UsageError

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, MatmulSpec
from dhc.backends.cpu.contract.tile import tile_shape
from dhc.backends.cpu.llvm.loader import LoadedObject
from dhc.ir.dtypes import bf16
from dhc.ir.dtypes import dtype as as_dtype
from tests.support.cpu_targets import ALL_TARGETS
from tests.support.cpu_targets import RUNNABLE as NAMED
from tests.support.threads import run_kernel

RUNNABLE = ["host", *NAMED]
NUMPY = {"f32": np.float32, "f64": np.float64}
# Relative to sum |a||b|; sums are at most a few thousand terms long.
TOLERANCE = {"f32": 1e-5, "f64": 1e-13}
PAGE = mmap.PAGESIZE


class Guarded:
    """An array that ends at a page nobody may touch: reading or writing one element too far ends the process."""

    def __init__(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pages = -(-max(size, 1) // PAGE) + 2
        self._memory = mmap.mmap(-1, pages * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (0, pages - 1):
            assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
        offset = (pages - 1) * PAGE - size
        self.array = np.frombuffer(self._memory, dtype=np.uint8)[offset : offset + size].view(dtype).reshape(shape)
        self.address = start + offset

    @classmethod
    def of(cls, values):
        guarded = cls(values.shape, values.dtype)
        guarded.array[...] = values
        return guarded


@functools.cache
def compiled(spec, target_name):
    code = registry.emit(spec, targets.target(target_name))
    return code, loaded(code.name, code.ir, target_name)


@functools.cache
def loaded(name, ir, target_name):
    return LoadedObject(targets.compile_ir(ir, targets.target(target_name))).kernel(name)


def run(spec, target_name, operands, params, out_shape, nthreads=1, only=None):
    """Runs a kernel, or the share of thread `only`, on copies of the operands in guarded memory; returns the output."""
    code, kernel = compiled(spec, target_name)
    dtype = NUMPY[spec.dtype]
    held = {
        name: Guarded.of(np.ascontiguousarray(values, dtype=values.dtype if name == "weight" else dtype))
        for name, values in operands.items()
    }
    held["out"] = Guarded(out_shape, dtype)
    held["out"].array[...] = np.nan
    held["scratch"] = Guarded((code.scratch_per_thread * nthreads // 8,), np.float64)
    held["scratch"].array[...] = np.nan
    assert set(code.buffers) <= set(held)
    bound = kernel.bind(
        [held[name].address for name in code.buffers], [*(params[name] for name in code.params), *code.constants]
    )
    if only is None:
        run_kernel(kernel, bound, nthreads)
    else:
        assert kernel.run(bound, only, nthreads) == 0
    return held["out"].array.copy()


def check(spec, target_name, operands, params, expected, magnitude, threads=(1, 2, 7)):
    """Compares with the reference and over numbers of threads; NaN is left wherever a kernel forgets an output."""
    first = run(spec, target_name, operands, params, expected.shape, threads[0])
    np.testing.assert_array_less(np.abs(first - expected), TOLERANCE[spec.dtype] * magnitude + 1e-30)
    for nthreads in threads[1:]:
        again = run(spec, target_name, operands, params, expected.shape, nthreads)
        assert first.tobytes() == again.tobytes(), f"{nthreads} threads change the result"


# ---------------------------------------------------------------- matmul

sizes = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 48, 64, 65, 100, 130]))


def matmul_case(spec, batch, m, n, k, seed, a_broadcast=False, b_broadcast=False):
    rng = np.random.default_rng(seed)
    a_batch = tuple(1 if a_broadcast else size for size in batch)
    b_batch = tuple(1 if b_broadcast or spec.packed_b else size for size in batch)
    a, b = rng.standard_normal((*a_batch, m, k)), rng.standard_normal((*b_batch, k, n))
    a, b = (x.astype(NUMPY[spec.dtype]).astype(np.float64) for x in (a, b))
    operands = {"a": a.swapaxes(-1, -2) if spec.transpose_a else a, "b": b.swapaxes(-1, -2) if spec.transpose_b else b}
    expected, magnitude = a @ b, np.abs(a) @ np.abs(b)
    if spec.bias != "none":
        operands["bias"] = rng.standard_normal(n if spec.bias == "n" else m).astype(NUMPY[spec.dtype])
        bias = operands["bias"] if spec.bias == "n" else operands["bias"][:, None]
        expected, magnitude = expected + bias, magnitude + np.abs(bias)
    expected = np.broadcast_to(expected, (*batch, m, n))
    if isinstance(spec.epilogue, ep.Relu):
        expected = np.maximum(expected, 0)
    params = dict(zip(("batch0", "batch1", "batch2"), batch, strict=True)) | {"m": m, "n": n, "k": k}
    for name, shape, size in (("a", a_batch, m * k), ("b", b_batch, k * n)):
        for i in range(3):
            params[f"{name}_stride{i}"] = size * int(np.prod(shape[i + 1 :])) if shape[i] > 1 else 0
    return operands, params, expected, np.broadcast_to(magnitude, expected.shape)


@settings(max_examples=60)
@given(
    batch=st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 3)),
    m=sizes,
    n=sizes,
    k=sizes,
    ta=st.booleans(),
    tb=st.booleans(),
    packed=st.booleans(),
    bias=st.sampled_from(["none", "n", "m"]),
    dtype=st.sampled_from(["f32", "f64"]),
    a_once=st.booleans(),
    b_once=st.booleans(),
    data=st.data(),
)
def test_matmul(batch, m, n, k, ta, tb, packed, bias, dtype, a_once, b_once, data):
    target_name = data.draw(st.sampled_from(RUNNABLE))
    spec = MatmulSpec(dtype, ta, tb, packed, bias, ep.Relu() if bias == "n" else ep.Epilogue())
    operands, params, expected, magnitude = matmul_case(spec, batch, m, n, k, m * 31 + n, a_once, b_once)
    if packed:
        operands["b"] = registry.pack_weights(
            spec, targets.target(target_name), operands["b"].reshape(operands["b"].shape[-2:])
        )
    check(spec, target_name, operands, params, expected, magnitude)


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(150, 300, 70), (1, 300, 3000), (30, 20, 9000), (200, 1000, 40)])
def test_matmul_of_many_blocks(target_name, transpose_b, m, n, k):
    spec = MatmulSpec(transpose_b=transpose_b)
    check(spec, target_name, *matmul_case(spec, (1, 1, 1), m, n, k, 5), threads=(1, 3))


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("packed", [False, True])
def test_matmul_of_few_panels_divides_its_rows(target_name, packed):
    columns = tile_shape(targets.target(target_name), "f32").columns
    spec = MatmulSpec(packed_b=packed)
    operands, *rest = matmul_case(spec, (1, 1, 1), 200, 3 * columns, 50, 6)
    if packed:
        operands["b"] = registry.pack_weights(spec, targets.target(target_name), operands["b"].reshape(50, -1))
    check(spec, target_name, operands, *rest, threads=(1, 2, 7))


# ---------------------------------------------------------------- convolutions


def conv_reference(spec, x, w, bias, out_spatial):
    """Direct sum over taps; returns the result and the sum of magnitudes."""
    n, groups = x.shape[0], spec.groups
    rank = len(spec.kernel)
    result = np.zeros((n, spec.out_channels, *out_spatial))
    magnitude = np.zeros_like(result)
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    transposed = isinstance(spec, ConvTransposeSpec)
    for tap in itertools.product(*[range(size) for size in spec.kernel]):
        index_in, index_out = [], []
        for axis in range(rank):
            size, out = x.shape[2 + axis], out_spatial[axis]
            s, d, p = spec.stride[axis], spec.dilation[axis], spec.pad_begin[axis]
            if transposed:
                pairs = [(i, i * s - p + tap[axis] * d) for i in range(size)]
            else:
                pairs = [(o * s - p + tap[axis] * d, o) for o in range(out)]
            pairs = [(i, o) for i, o in pairs if 0 <= i < size and 0 <= o < out]
            index_in.append([i for i, _ in pairs])
            index_out.append([o for _, o in pairs])
        if not n or not all(index_in):
            continue
        part = x[np.ix_(range(n), range(spec.in_channels), *index_in)].reshape(n, groups, ins, -1)
        weight = w[(slice(None), slice(None), *tap)]
        weight = weight.reshape(groups, ins, outs).swapaxes(1, 2) if transposed else weight.reshape(groups, outs, ins)
        shape = (n, spec.out_channels, *map(len, index_out))
        where = np.ix_(range(n), range(spec.out_channels), *index_out)
        result[where] += np.einsum("ngip,goi->ngop", part, weight).reshape(shape)
        magnitude[where] += np.einsum("ngip,goi->ngop", np.abs(part), np.abs(weight)).reshape(shape)
    if bias is not None:
        wide = bias.reshape(-1, *([1] * rank))
        result, magnitude = result + wide, magnitude + np.abs(wide)
    return result, magnitude


def conv_case(spec, target_name, batch, in_spatial, out_spatial, seed=0):
    rng = np.random.default_rng(seed)
    dtype = NUMPY[spec.dtype]
    x = rng.standard_normal((batch, spec.in_channels, *in_spatial)).astype(dtype)
    if isinstance(spec, ConvTransposeSpec):
        w_shape = (spec.in_channels, spec.out_channels // spec.groups, *spec.kernel)
    else:
        w_shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    w = rng.standard_normal(w_shape).astype(dtype)
    bias = rng.standard_normal(spec.out_channels).astype(dtype) if spec.bias else None
    if spec.storage:
        w = w.astype(as_dtype(spec.storage).numpy).astype(dtype)
    seen = x.astype(bf16.numpy) if spec.pairs else x
    expected, magnitude = conv_reference(
        spec,
        seen.astype(np.float64),
        w.astype(np.float64),
        None if bias is None else bias.astype(np.float64),
        out_spatial,
    )
    operands = {"input": x, "weight": registry.pack_weights(spec, targets.target(target_name), w)}
    if bias is not None:
        operands["bias"] = bias
    for i, shape in enumerate(spec.epilogue.operands()):
        full = {"same": expected.shape, "row": (spec.out_channels,), "scalar": ()}[shape]
        extra = rng.standard_normal(full).astype(dtype)
        operands[f"epilogue{i}"] = extra
        wide = extra.reshape(-1, *([1] * len(spec.kernel))) if shape == "row" else extra
        expected, magnitude = expected + wide, magnitude + np.abs(wide)
    if "relu" in spec.epilogue.text():
        expected = np.maximum(expected, 0)
    rank = len(spec.kernel)
    ones = (1,) * (3 - rank)
    params = dict(
        zip(
            ("batch", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w"),
            (batch, *ones, *in_spatial, *ones, *out_spatial),
            strict=True,
        )
    )
    return operands, params, expected, magnitude


EPILOGUES = [
    ep.Epilogue(),
    ep.Relu(),
    ep.Chain((ep.AddOperand("same"), ep.Relu())),
    ep.Chain((ep.AddOperand("row"), ep.AddOperand("scalar"), ep.AddOperand("same"))),
]


@st.composite
def windows(draw, transposed):
    """A spec with input and output sizes; sizes over a vector's length, under it, 1 and 0 all occur."""
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    depthwise = draw(st.booleans()) and groups > 1
    ins = 1 if depthwise else draw(st.integers(1, 5))
    outs = draw(st.sampled_from([1, 2, 3, 5, 8, 13, 14, 26]))
    kernel = tuple(draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    stride = tuple(draw(st.lists(st.sampled_from([1, 1, 1, 2, 2, 3]), min_size=rank, max_size=rank)))
    dilation = tuple(draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=rank, max_size=rank)))
    pads = [draw(st.tuples(st.integers(-1, 3), st.integers(0, 3))) for _ in range(rank)]
    widths = st.one_of(st.integers(1, 9), st.sampled_from([14, 16, 17, 28, 33, 40, 70]))
    spatial = tuple(draw(st.integers(1, 6)) for _ in range(rank - 1)) + (draw(widths),)
    common = {
        "in_channels": ins * groups,
        "out_channels": outs * groups,
        "kernel": kernel,
        "stride": stride,
        "dilation": dilation,
        "pad_begin": tuple(p[0] for p in pads),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["f32", "f32", "f64"])),
        "epilogue": draw(st.sampled_from(EPILOGUES)),
    }
    out = []
    for size, k, s, d, (before, after) in zip(spatial, kernel, stride, dilation, pads, strict=True):
        reach = (k - 1) * d + 1
        if transposed:
            out.append((size - 1) * s + reach - before - after + draw(st.integers(0, s - 1)))
        else:
            out.append((size + before + after - reach) // s + 1)
    assume(min(out) >= 1)
    spec = (ConvTransposeSpec if transposed else ConvSpec)(**common, narrow=draw(st.booleans()))
    return spec, draw(st.sampled_from([0, 1, 1, 2])), spatial, tuple(out)


@settings(max_examples=80)
@given(case=windows(transposed=False), data=st.data())
def test_conv(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


@settings(max_examples=60)
@given(case=windows(transposed=True), data=st.data())
def test_conv_transpose(case, data):
    spec, batch, spatial, out = case
    target_name = data.draw(st.sampled_from(RUNNABLE))
    check(spec, target_name, *conv_case(spec, target_name, batch, spatial, out))


LARGER = [
    (ConvSpec(64, 30, (3, 3), pad_begin=(1, 1)), (40, 67), (40, 67)),
    (ConvSpec(300, 26, (3, 3), pad_begin=(1, 1), narrow=True), (14, 14), (14, 14)),
    (ConvSpec(70, 40, (1, 1)), (23, 31), (23, 31)),
    (ConvSpec(3, 24, (7, 7), stride=(2, 2), pad_begin=(3, 3)), (65, 65), (33, 33)),
    (ConvSpec(2, 3, (9,), pad_begin=(4,)), (5000,), (5000,)),
    (ConvSpec(5, 5, (3, 3, 3), dilation=(8, 8, 8), pad_begin=(8, 8, 8)), (9, 20, 41), (9, 20, 41)),
    (ConvSpec(6, 6, (3, 3), pad_begin=(1, 1), groups=6), (37, 600), (37, 600)),
    (ConvSpec(6, 12, (5, 3, 3), stride=(1, 2, 2), pad_begin=(2, 1, 1), groups=6), (6, 33, 70), (6, 17, 35)),
    (ConvSpec(2, 2, (64,), pad_begin=(31,), groups=2), (1500,), (1500,)),
    (ConvSpec(4, 4, (12, 12), groups=4), (30, 40), (19, 29)),
    (ConvTransposeSpec(40, 24, (2, 2), stride=(2, 2)), (20, 37), (40, 74)),
    (ConvTransposeSpec(9, 5, (4, 4, 4), stride=(2, 2, 2), pad_begin=(1, 1, 1)), (5, 6, 21), (10, 12, 42)),
    (ConvTransposeSpec(600, 13, (3, 3), stride=(2, 2)), (9, 40), (19, 81)),
    (ConvTransposeSpec(48, 2, (3, 3, 3), stride=(2, 2, 2), pad_begin=(1, 1, 1)), (5, 17, 70), (10, 34, 140)),
    (ConvTransposeSpec(40, 24, (3, 3), stride=(2, 2), pad_begin=(1, 1), groups=2), (33, 50), (65, 99)),
    (ConvTransposeSpec(20, 30, (4, 4), stride=(2, 2), pad_begin=(1, 1), narrow=True), (8, 8), (16, 16)),
    (ConvSpec(900, 30, (1, 1), groups=2), (23, 31), (23, 31)),
    (ConvTransposeSpec(40, 150, (4, 4), stride=(2, 2), pad_begin=(1, 1)), (4, 4), (8, 8)),
    (ConvSpec(20, 170, (3, 3), pad_begin=(1, 1), narrow=True), (5, 6), (5, 6)),
    (ConvTransposeSpec(1, 1, (16,), stride=(8,)), (300,), (2408,)),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case[0].text().split(" bias")[0].replace(" ", "_"))
def test_windows_of_many_blocks(case, target_name):
    spec, spatial, out = case
    check(spec, target_name, *conv_case(spec, target_name, 2, spatial, out), threads=(1, 3))


# ---------------------------------------------------------------- what is generated

SPECS = [
    MatmulSpec(),
    MatmulSpec("f64", True, True, bias="n", epilogue=ep.Relu()),
    MatmulSpec(packed_b=True),
    ConvSpec(24, 30, (3, 3), pad_begin=(1, 1), bias=True),
    ConvSpec(8, 8, (3,), (2,), dtype="f64"),
    ConvSpec(8, 8, (3, 3), groups=8, epilogue=ep.Clip(0, 6)),
    ConvTransposeSpec(8, 4, (2, 2, 2), (2, 2, 2), epilogue=ep.LeakyRelu(0.1)),
]


@pytest.mark.parametrize("target_name", ALL_TARGETS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_every_target_emits_and_verifies(spec, target_name):
    described = targets.target(target_name)
    code = registry.emit(spec, described)
    assert code == registry.emit(spec, described)
    assert targets.compile_ir(code.ir, described)[:4] == b"\x7fELF"


def test_hot_loops_use_the_target_s_vectors():
    for name, register in (("x86-64", "%xmm"), ("x86-64-v3", "%ymm"), ("x86-64-v4", "%zmm"), ("aarch64", ".4s")):
        described = targets.target(name)
        text = targets.assembly(registry.emit(MatmulSpec(), described).ir, described)
        products = [line for line in text.splitlines() if line.strip().startswith(("vfmadd", "mulps", "fmla"))]
        assert sum(register in line for line in products) >= 20, name


def test_tiles_do_not_spill():
    # A register tile that does not fit its registers keeps sums on the stack inside the hot loop.
    described = targets.target("x86-64-v4")
    text = targets.assembly(registry.emit(MatmulSpec(packed_b=True), described).ir, described)
    assert not [line for line in text.splitlines() if "(%rsp)" in line and "vfmadd" in line]


def test_names_are_content_hashes():
    described = targets.target("x86-64-v3")
    names = [registry.emit(spec, described).name for spec in SPECS]
    names += [registry.emit(SPECS[0], targets.target("x86-64")).name]
    names += [registry.emit(MatmulSpec(epilogue=epilogue), described).name for epilogue in EPILOGUES[1:3]]
    assert len(set(names)) == len(names)


def test_layers_of_other_sizes_share_a_kernel():
    described = targets.target("x86-64-v4")
    first = registry.emit(ConvSpec(64, 128, (3, 3), pad_begin=(1, 1), bias=True, narrow=True), described)
    for spec in (
        ConvSpec(512, 512, (3, 3), pad_begin=(1, 1), bias=True, narrow=True),
        ConvSpec(130, 256, (1, 1), bias=True),
        ConvSpec(64, 256, (5, 5), dilation=(2, 1), bias=True, groups=2, narrow=True),
    ):
        other = registry.emit(spec, described)
        assert (other.name, other.ir) == (first.name, first.ir)
        assert other.constants != first.constants


def test_normalize_sets_only_what_matters_for_speed():
    described = targets.target("x86-64-v4")
    spec = ConvSpec(128, 128, (3, 3), pad_begin=(1, 1))
    sizes = ((200, 8), (200, 12), (28, 28), ())
    narrow = [registry.normalize(spec, described, size, size, exact=True).narrow for size in sizes]
    assert narrow == [True, True, False, False]
    for other in (ConvSpec(128, 128, (3, 3), groups=128), MatmulSpec()):
        assert registry.normalize(other, described, (56, 56), (56, 56)) == other


def test_specs_reject_what_makes_no_sense():
    for make in (
        lambda: MatmulSpec("f16"),
        lambda: MatmulSpec(bias="k"),
        lambda: ConvSpec(3, 4, (3, 3), (1,)),
        lambda: ConvSpec(3, 4, (3,), groups=2),
        lambda: ConvSpec(3, 3, (0,)),
        lambda: ConvSpec(1, 1, (1, 1, 1, 1)),
    ):
        with pytest.raises(UsageError):
            make()


def test_relu_and_clip_keep_nan():
    for epilogue, inputs, outputs in (
        (ep.Relu(), [np.nan, -1, 2, np.inf], [np.nan, 0, 2, np.inf]),
        (ep.Clip(-1, 1), [np.nan, -5, 0.5, np.inf], [np.nan, -1, 0.5, 1]),
        (ep.LeakyRelu(0.5), [np.nan, -1, 2, -np.inf], [np.nan, -0.5, 2, -np.inf]),
    ):
        spec = MatmulSpec(epilogue=epilogue)
        params = dict.fromkeys(compiled(spec, "host")[0].params, 0) | {
            "batch0": 1,
            "batch1": 1,
            "batch2": 1,
            "m": 4,
            "n": 1,
            "k": 1,
        }
        result = run(spec, "host", {"a": np.array(inputs), "b": np.ones(1)}, params, (4,))
        np.testing.assert_array_equal(result, outputs)


def test_this_machine_runs_its_own_level():
    assert platform.machine().lower() not in ("x86_64", "amd64") or "x86-64" in RUNNABLE
