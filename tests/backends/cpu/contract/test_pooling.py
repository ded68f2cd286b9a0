"""Pooling kernels against the operators' references, on guarded memory, for every instruction set of this machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dhc_runtime.errors import UsageError

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract.pooling import PoolSpec, emit_pool
from dhc.backends.cpu.pooling import plan_pool
from dhc.ir import Builder, Graph
from dhc.ir import dtype as as_dtype
from dhc.ir.symbols import sym
from tests.backends.cpu.contract.test_contract import RUNNABLE, Guarded, loaded
from tests.support.cpu_targets import ALL_TARGETS
from tests.support.threads import run_kernel


def pool_node(op, shape, dtype, attrs):
    """A graph of one pooling node; returns it with the node."""
    graph = Graph("pool")
    y = Builder(graph).call(op, graph.input("x", as_dtype(np.dtype(dtype)), shape), attrs=attrs)
    graph.output(y)
    return graph, y.producer


def run(node, x, target_name, nthreads=1):
    code, params = plan_pool(node, targets.target(target_name))
    kernel = loaded(code.name, code.ir, target_name)
    out = Guarded(tuple(node.result.shape), x.dtype)
    out.array[...] = 77
    scratch = Guarded((code.scratch_per_thread * nthreads // 8,), np.float64)
    scratch.array[...] = np.nan
    held = [Guarded.of(x), out, scratch]
    bound = kernel.bind([guarded.address for guarded in held], [int(p) for p in params])
    run_kernel(kernel, bound, nthreads)
    return out.array.copy()


def check(op, shape, dtype, attrs, target_name, threads=(1, 2, 7), x=None):
    graph, node = pool_node(op, shape, dtype, attrs)
    if x is None:
        x = np.random.default_rng(7).standard_normal(shape).astype(dtype)
    (expected,) = graph.evaluate(x=x)
    first = run(node, x, target_name, threads[0])
    if op == "max_pool":
        np.testing.assert_array_equal(first, expected)
    else:
        tolerance = {"float32": 1e-6, "float64": 1e-14}[np.dtype(dtype).name]
        np.testing.assert_allclose(first, expected, rtol=0, atol=tolerance * math.prod(attrs["kernel"]))
    for nthreads in threads[1:]:
        assert run(node, x, target_name, nthreads).tobytes() == first.tobytes()


@settings(max_examples=120)
@given(data=st.data(), op=st.sampled_from(["max_pool", "avg_pool"]), rank=st.integers(1, 3))
def test_pool(data, op, rank):
    def ints(low, high):
        return tuple(data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    width = data.draw(st.one_of(st.integers(1, 9), st.sampled_from([14, 16, 17, 31, 32, 33, 70])))
    spatial = (*ints(1, 7)[1:], width)
    kernel, strides, dilations, low, high = (
        ints(1, data.draw(st.sampled_from([3, 3, 6]))),
        ints(1, 3),
        ints(1, 3),
        ints(-1, 3),
        ints(-1, 3),
    )
    attrs = {"kernel": kernel, "strides": strides, "dilations": dilations, "pads_low": low, "pads_high": high}
    if op == "avg_pool":
        attrs["count_include_pad"] = data.draw(st.booleans())
        attrs["extra_high"] = tuple(data.draw(st.integers(0, max(pad, 0))) for pad in high)
    reach = zip(spatial, kernel, dilations, low, high, strict=True)
    assume(all(size + before + after >= (k - 1) * d + 1 for size, k, d, before, after in reach))
    assume(all(size + min(b, 0) + min(a, 0) >= 1 for size, b, a in zip(spatial, low, high, strict=True)))
    planes = data.draw(st.sampled_from([(1, 1), (2, 3), (0, 2), (1, 5)]))
    dtype = data.draw(st.sampled_from(["float32", "float32", "float64"]))
    check(op, (*planes, *spatial), dtype, attrs, data.draw(st.sampled_from(RUNNABLE)))


LARGER = [
    ("max_pool", (1, 3, 112, 112), {"kernel": (3, 3), "strides": (2, 2), "pads_low": (1, 1), "pads_high": (1, 1)}),
    ("max_pool", (2, 1, 5000), {"kernel": (3,), "strides": (2,)}),
    ("max_pool", (1, 2, 1300), {"kernel": (600,), "strides": (1,)}),
    ("avg_pool", (1, 2, 3000), {"kernel": (4,), "strides": (3,), "pads_low": (2,), "pads_high": (1,)}),
    ("avg_pool", (3, 5, 7, 7), {"kernel": (7, 7)}),
    ("avg_pool", (1, 2, 9, 20, 40), {"kernel": (2, 2, 2), "strides": (2, 2, 2)}),
]


@pytest.mark.parametrize("target_name", RUNNABLE)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case[0]}{case[1]}".replace(" ", ""))
def test_larger(case, target_name):
    op, shape, attrs = case
    check(op, shape, "float32", attrs, target_name, threads=(1, 3))


@pytest.mark.parametrize("target_name", RUNNABLE)
def test_nan_wins_and_padding_never_does(target_name):
    x = np.random.default_rng(1).standard_normal((1, 1, 6, 40)).astype(np.float32)
    x[0, 0, 2, [3, 20, 39]] = np.nan
    x[0, 0, 4:, :5] = -np.inf
    attrs = {"kernel": (3, 3), "pads_low": (1, 1), "pads_high": (1, 1)}
    check("max_pool", x.shape, "float32", attrs, target_name, x=x)
    check("max_pool", x.shape, "float32", {**attrs, "strides": (2, 2)}, target_name, x=-np.abs(x))


@pytest.mark.parametrize("target_name", ALL_TARGETS)
@pytest.mark.parametrize("mean", [False, True])
def test_every_target_emits_and_verifies(mean, target_name):
    described = targets.target(target_name)
    small = emit_pool(PoolSpec(mean, (3, 3), (2, 2), (1, 1), (1, 1), (0, 0), (0, 0)), described)
    assert targets.compile_ir(small.ir, described)[:4] == b"\x7fELF"
    first = emit_pool(PoolSpec(mean, (7, 7), (2, 2), (1, 1), (1, 1), (0, 0), (0, 0)), described)
    assert targets.compile_ir(first.ir, described)[:4] == b"\x7fELF"
    other = emit_pool(PoolSpec(mean, (2, 5, 7), (1, 1, 3), (1, 2, 1), (0, 0, 3), (0, 0, 0), (0, 0, 0)), described)
    assert (other.name, other.ir) == (first.name, first.ir)
    assert other.constants != first.constants


def test_what_is_left_to_the_loop_level():
    described = targets.target("x86-64-v3")
    n = sym("n")
    node = pool_node("max_pool", (1, 2, n, n), "float32", {"kernel": (2, 2)})[1]
    assert plan_pool(node, described) is not None
    node = pool_node("max_pool", (1, 2, 8, 8), "int8", {"kernel": (2, 2)})[1]
    assert plan_pool(node, described) is None
    node = pool_node("lp_pool", (1, 2, 8, 8), "float32", {"kernel": (2, 2)})[1]
    assert plan_pool(node, described) is None


def test_specs_reject_what_makes_no_sense():
    one, none = (1,), (0,)
    for make in (
        lambda: PoolSpec(False, one, one, one, none, none, none, "f16"),
        lambda: PoolSpec(False, (0,), one, one, none, none, none),
        lambda: PoolSpec(False, one, (1, 1), one, none, none, none),
        lambda: PoolSpec(False, one * 4, one * 4, one * 4, none * 4, none * 4, none * 4),
    ):
        with pytest.raises(UsageError):
            make()


def test_compiled_graphs_use_it():
    graph, _ = pool_node("avg_pool", (2, 3, 9, 17), "float32", {"kernel": (3, 3), "pads_low": (1, 1)})
    x = np.random.default_rng(2).standard_normal((2, 3, 9, 17)).astype(np.float32)
    session = dhc.compile(graph).session(threads=2, profile=True)
    (result,) = session.run({"x": x}).values()
    np.testing.assert_allclose(result, graph.evaluate(x=x)[0], rtol=0, atol=1e-6)
    assert any(step.symbol.startswith("mean_pool") for step in session.profile())
