"""Weights stored in 16 bits: exactly the results of the rounded weights, half the bytes, and a report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dhc_runtime.cpu_features import host_arch
from dhc_runtime.errors import UsageError

import dhc
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import MatmulSpec
from dhc.backends.cpu.objects import native_half
from dhc.backends.cpu.target import compile_ir, target
from dhc.ir import Builder, Graph
from dhc.ir.dtypes import dtype, f16
from dhc.passes.round_factors import round_factors
from tests.backends.cpu.differential.running import assert_close
from tests.backends.cpu.differential.test_cpu_levels import LEVELS, need

TYPES = {"bf16": "bf16", "fp16": "f16"}


def need_halves(precision: str) -> None:
    """Skips where the code is for a level that has no half precision."""
    if precision == "fp16" and f16 not in native_half(target()):
        pytest.skip("this target does not convert fp16")


def perceptron(storage: str | None = None, scale: float = 1.0) -> Graph:
    """Two layers of odd sizes; with a type, weights that have been rounded to it."""
    rng = np.random.default_rng(4)
    graph = Graph("perceptron")
    b = Builder(graph)
    value = graph.input("x", "f32", ("N", 37))
    for before, after in ((37, 141), (141, 19)):
        weights = (rng.standard_normal((before, after)) * scale / np.sqrt(before)).astype(np.float32)
        if storage is not None:
            weights = weights.astype(dtype(storage).numpy).astype(np.float32)
        value = b.add(b.matmul(value, b.constant(weights, "f32")), b.constant(rng.standard_normal(after), "f32"))
        value = b.relu(value)
    graph.output(value, names=["y"])
    return graph


def has_pairs(level: str) -> bool:
    return "avx512bf16" in target(level).features


def runnable(level: str, precision: str) -> None:
    if level != "host":
        need(level)
    if precision == "bf16" and has_pairs(level):
        pytest.skip(f"{level} multiplies pairs, which rounds the other factor too")
    if precision == "fp16" and f16 not in native_half(target(level)):
        pytest.skip(f"{level} does not convert fp16")


@pytest.mark.parametrize("level", ["host", *LEVELS])
@pytest.mark.parametrize("precision", TYPES)
def test_results_are_those_of_rounded_weights(precision: str, level: str) -> None:
    runnable(level, precision)
    artifact = dhc.compile(perceptron(), precision=precision, cpu=level)
    rounded = dhc.compile(perceptron(TYPES[precision]), cpu=level)
    for rows in (1, 2, 3, 17, 29, 64, 131):
        x = np.random.default_rng(rows).standard_normal((rows, 37)).astype(np.float32)
        found = [artifact.session(threads=threads).run({"x": x})["y"] for threads in (1, 2, 7)]
        assert all(np.array_equal(found[0], other) for other in found)
        assert np.array_equal(found[0], rounded.session(threads=1).run({"x": x})["y"])
        limit = {"bf16": 2**16, "fp16": 2**13}[precision] * 4  # roundings of f32 in one of the type
        assert_close(perceptron().evaluate(x)[0], found[0], roundings=limit)


@pytest.mark.parametrize("precision", TYPES)
def test_the_report_and_the_bytes(precision: str) -> None:
    need_halves(precision)
    plain, artifact = dhc.compile(perceptron()), dhc.compile(perceptron(), precision=precision)
    assert plain.report.backend["stored_16_bit"] == []
    stored = artifact.report.backend["stored_16_bit"]
    saved = plain.report.backend["constant_bytes"] - artifact.report.backend["constant_bytes"]
    assert sorted(weights["saved"] for weights in stored) == [2 * 141 * 19, 2 * 37 * 141]
    assert saved >= sum(weights["saved"] for weights in stored)  # panels are filled up
    unit = {"bf16": 2.0**-8, "fp16": 2.0**-11}[precision]
    assert all(unit / 4 < weights["rounding"] <= unit for weights in stored)


def test_weights_beyond_the_range_stay_as_they_are() -> None:
    need_halves("fp16")
    artifact = dhc.compile(perceptron(scale=1e6), precision="fp16")
    assert artifact.report.backend["stored_16_bit"] == []
    assert artifact.plan == dhc.compile(perceptron(scale=1e6)).plan
    assert len(dhc.compile(perceptron(scale=1e6), precision="bf16").report.backend["stored_16_bit"]) == 2


def test_other_words_and_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="'fp8' is unknown"):
        dhc.compile(perceptron(), precision="fp8")
    with pytest.raises(UsageError, match="x86-64-v2 does not convert fp16"):
        dhc.compile(perceptron(), precision="fp16", cpu="x86-64-v2")
    for wrong in ({"storage": "bf16"}, {"storage": "f8", "packed_b": True}, {"storage": "f16", "dtype": "f64"}):
        with pytest.raises(UsageError, match="only a packed b of f32"):
            MatmulSpec(**wrong)  # type: ignore[arg-type]


PAIRS = replace(target("x86-64-v4"), name="x86-64-v4 with bf16", features=(*target("x86-64-v4").features, "avx512bf16"))


def test_code_with_pairs_of_products() -> None:
    spec = MatmulSpec(packed_b=True, storage="bf16", bias="n")
    assert registry.select(spec, PAIRS).name == "matmul-pairs"
    assert registry.select(spec, target("x86-64-v4")).name == "matmul"
    code = registry.emit(spec, PAIRS)
    assert compile_ir(code.ir, PAIRS) == compile_ir(registry.emit(spec, PAIRS).ir, PAIRS)
    packed = registry.pack_weights(spec, PAIRS, np.arange(15, dtype=np.float32).reshape(5, 3))
    assert packed.shape == (1, 3, 32, 2) and str(packed.dtype) == "bfloat16"
    assert packed[0, :, 1].astype(int).tolist() == [[1, 4], [7, 10], [13, 0]] and not packed[0, :, 3:].any()


@pytest.mark.skipif(not has_pairs("host"), reason="this machine has no AVX512-BF16")
@pytest.mark.parametrize(("k", "n"), [(1, 1), (37, 141), (64, 32), (5000, 33), (8193, 70)])
def test_products_of_rounded_factors(k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    weights = rng.standard_normal((k, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    graph = Graph("layer")
    b = Builder(graph)
    product = b.matmul(graph.input("x", "f32", ("N", k)), b.constant(weights, "f32"))
    graph.output(b.relu(b.add(product, b.constant(bias, "f32"))), names=["y"])
    artifact = dhc.compile(graph, precision="bf16", cpu="host")
    sessions = [artifact.session(threads=threads) for threads in (1, 2, 7)]

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(dtype("bf16").numpy).astype(np.float64)

    for rows in (0, 1, 2, 3, 7, 12, 13, 64):
        x = rng.standard_normal((rows, k)).astype(np.float32)
        found = [session.run({"x": x})["y"] for session in sessions]
        assert all(np.array_equal(found[0], other) for other in found)
        wanted = np.maximum(rounded(x) @ rounded(weights) + bias, 0).astype(np.float32)
        assert_close(wanted, found[0], roundings=64, least=float(np.sqrt(k)))


@pytest.mark.skipif(not has_pairs("host"), reason="this machine has no AVX512-BF16")
@pytest.mark.parametrize("rows", [5, 13, 29, 36])
def test_known_rows_beyond_whole_tiles(rows: int) -> None:
    rng = np.random.default_rng(rows)
    weights, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((301, 70), (rows, 301)))
    graph = Graph("layer")
    b = Builder(graph)
    graph.output(b.matmul(graph.input("x", "f32", (rows, 301)), b.constant(weights, "f32")), names=["y"])
    artifact = dhc.compile(graph, precision="bf16", cpu="host")
    assert [entry["multiplied"] for entry in artifact.report.backend["stored_16_bit"]] == [True]
    found = [artifact.session(threads=threads).run({"x": x})["y"] for threads in (1, 2, 7)]
    assert all(np.array_equal(found[0], other) for other in found)
    short, narrow = (values.astype(dtype("bf16").numpy).astype(np.float64) for values in (x, weights))
    assert_close((short @ narrow).astype(np.float32), found[0], roundings=64, least=float(np.sqrt(301)))


@pytest.mark.parametrize("storage", TYPES.values())
def test_code_for_aarch64(storage: str) -> None:
    described = target("aarch64")
    code = registry.emit(MatmulSpec(packed_b=True, storage=storage), described)
    assert compile_ir(code.ir, described)[:4] == b"\x7fELF"


def test_sums_longer_than_the_scratch_memory() -> None:
    """Their panels are read as they are stored, also for many rows."""
    rng = np.random.default_rng(6)
    weights = rng.standard_normal((target().l2_bytes // 2 // 4 // 16 + 3, 17)).astype(np.float32)
    graph, exact = Graph("long"), Graph("long")
    for g, w in ((graph, weights), (exact, weights.astype(dtype("bf16").numpy).astype(np.float32))):
        g.output(
            Builder(g).matmul(g.input("x", "f32", ("N", len(weights))), Builder(g).constant(w, "f32")), names=["y"]
        )
    x = rng.standard_normal((70, len(weights))).astype(np.float32)
    level = "x86-64-v3" if host_arch() == "x86_64" else "host"
    if level != "host":
        need(level)
    found = dhc.compile(graph, precision="bf16", cpu=level).session(threads=2).run({"x": x})["y"]
    assert np.array_equal(found, dhc.compile(exact, cpu=level).session(threads=2).run({"x": x})["y"])


def layer(kind: str) -> Graph:
    """One layer that rounds, between operations that do not."""
    rng = np.random.default_rng(7)
    graph = Graph(kind)
    b = Builder(graph)

    def weights(*shape: int) -> object:
        return b.constant((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), "f32")

    if kind == "signal":
        x = graph.input("x", "f32", (2, 9, 301))
        y = b.conv(x, weights(26, 9, 7), weights(26), strides=(2,), pads_low=(3,), pads_high=(3,))
    elif kind == "volume":
        x = graph.input("x", "f32", (1, 7, 9, 11, "W"))
        y = b.conv(x, weights(13, 7, 3, 3, 3), strides=(1, 2, 2), pads_low=(1, 1, 1), pads_high=(1, 1, 1))
    elif kind == "pointwise":
        x = graph.input("x", "f32", (1, 33, 24, 31))
        y = b.conv(x, weights(40, 33, 1, 1))
    elif kind == "small map":
        x = graph.input("x", "f32", (1, 65, 9, 9))
        y = b.conv(x, weights(96, 65, 3, 3), strides=(2, 2), pads_low=(1, 1), pads_high=(1, 1))
    elif kind == "upsampled":
        x = graph.input("x", "f32", (1, 21, 14, 17))
        up = b.relu(b.conv_transpose(x, weights(21, 12, 3, 3), strides=(2, 2)))
        y = b.conv(up, weights(1, 12, 1, 1))
    else:
        x = graph.input("x", "f32", (70, 48))
        y = b.matmul(x, weights(48, 35))
    graph.output(b.leaky_relu(b.mul(y, b.constant(0.5, "f32")), alpha=0.1), names=["y"])
    return graph


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("kind", ["signal", "volume", "pointwise", "small map", "upsampled", "matrix"])
def test_the_graph_with_conversions_is_the_meaning(kind: str, precision: str) -> None:
    need_halves(precision)
    graph = layer(kind)
    artifact = dhc.compile(graph, precision=precision)
    stored = {entry["node"]: entry["multiplied"] for entry in artifact.report.backend["stored_16_bit"]}
    pairs = precision == "bf16" and "avx512bf16" in target().features
    assert stored and all(both == pairs for both in stored.values())
    meaning = artifact.graph.clone()
    assert round_factors(meaning, dtype(TYPES[precision]), stored) == len(stored)
    shape = [19 if str(d) == "W" else int(d) for d in graph.inputs[0].shape]
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    found = [artifact.session(threads=threads).run({"x": x})["y"] for threads in (1, 2, 7)]
    assert all(np.array_equal(found[0], other) for other in found)
    # Where one layer feeds another, a last bit may tip the rounding of its input.
    limit = 2e-6 if len(stored) == 1 else 2e-3
    wanted = meaning.evaluate(x)[0]
    assert np.abs(found[0] - wanted).max() <= limit * np.abs(wanted).max()
    plain = graph.evaluate(x)[0]
    assert np.abs(plain - wanted).max() > 20 * np.abs(found[0] - wanted).max() or len(stored) > 1
