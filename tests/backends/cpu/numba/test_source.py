"""The Numba source of kernels: its text, and that it computes what the directly printed LLVM IR computes."""

import numpy as np
import pytest

from dhc.backends.cpu.numba.compile import compile_source
from dhc.backends.cpu.target import target
from dhc.backends.loop.lower import lower_group
from dhc.backends.loop.numba_source import print_numba
from dhc.ir import scalar as s
from tests.backends.loop import harness
from tests.backends.loop.test_lower import GROUPS, f32


def test_text():
    graph = harness.graph_of(lambda b, x, y: b.relu(b.add(x, y)), ("f32", ["N", 5, 7]), ("f32", [5, 1]))
    found = lower_group(graph.nodes, graph.inputs, graph.outputs, "bias relu")
    assert (
        print_numba(found.kernel)
        == '''\
def bias_relu(x0, x1, y0, n0, n1, n2, n3, tid, nthreads):
    """Buffers: x0 f32, x1 f32, y0 f32."""
    for i0_i1 in range(first(n0, 1, tid, nthreads), last(n0, 1, tid, nthreads)):
        t1 = div(i0_i1, n1)
        i0 = t1
        t2 = rem(i0_i1, n1)
        i1 = t2
        t4 = x1[i1]
        for i2 in range(n2):
            t3 = x0[(((i0 * n3) + (i1 * n2)) + i2)]
            t5 = (t3 + t4)
            t6 = high(t5, f32(0.0))
            y0[(((i0 * n3) + (i1 * n2)) + i2)] = t6
    return 0
'''
    )


def check(graph, arrays, rtol=1e-5):
    lowered = lower_group(graph.nodes, graph.inputs, graph.outputs, "test")
    code = compile_source(lowered.kernel, target())
    original = harness.compile_kernel
    harness.compile_kernel = lambda *_: code
    try:
        bound = harness.bindings(graph, arrays)
        for nthreads in (1, 3):
            status, found = harness.run_kernel(lowered, arrays, bound, graph.outputs, nthreads)
            assert status == 0
            for got, want in zip(found, graph.evaluate(*arrays)):
                harness.compare(got, want, rtol, 1e-5, print_numba(lowered.kernel))
    finally:
        harness.compile_kernel = original


@pytest.mark.parametrize("name", ["softmax_last", "concat_of_sums", "pad_of_reduction", "argmax_of_sum"])
def test_groups(name):
    build, shapes = GROUPS[name]
    graph = harness.graph_of(build, *(("f32", list(shape)) for shape in shapes))
    check(graph, [f32(*shape) for shape in shapes])


RNG = np.random.default_rng(5)
CASES = {
    "gelu f32": (lambda b, x: b.gelu(x), [("f32", RNG.standard_normal(40))]),
    "log f16": (lambda b, x: b.log(x), [("f16", RNG.uniform(0.1, 9, 40))]),
    "sum bf16": (lambda b, x, y: b.add(x, y), [("bf16", RNG.standard_normal(40)), ("bf16", RNG.standard_normal(40))]),
    "mod i8": (lambda b, x, y: b.mod(x, y), [("i8", RNG.integers(-90, 90, 40)), ("i8", RNG.integers(1, 90, 40))]),
    "shift u32": (
        lambda b, x, y: b.shift_right(x, y), [("u32", RNG.integers(0, 2**31, 40)), ("u32", RNG.integers(0, 40, 40))],
    ),
    "cast u8": (lambda b, x: b.cast(x, dtype="u8"), [("f32", RNG.uniform(-50, 400, 40))]),
    "compare": (lambda b, x, y: b.logical_or(b.lt(x, y), b.is_nan(x)), [("f64", RNG.standard_normal(40))] * 2),
    "mul c64": (lambda b, x, y: b.mul(x, y), [("c64", RNG.standard_normal(40) + 1j)] * 2),
    "random": (lambda b, x: b.add(x, b.random_uniform(shape=[40], dtype="f32", low=0.0, high=1.0, seed=3)),
               [("f32", RNG.standard_normal(40))]),
    "gather": (lambda b, x, i: b.gather(x, i, axis=0),
               [("f32", RNG.standard_normal(40)), ("i64", RNG.integers(-40, 40, 9))]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_types(name):
    from dhc.ir.dtypes import dtype

    build, inputs = CASES[name]
    graph = harness.graph_of(build, *((kind, list(array.shape)) for kind, array in inputs))
    with np.errstate(all="ignore"):
        check(graph, [array.astype(dtype(kind).numpy) for kind, array in inputs])


def test_every_primitive_function_has_a_name():
    from dhc.backends.loop.functions import LIBRARY
    from dhc.backends.loop.numba_source import CPU

    known = {*CPU.infix, *CPU.calls}
    assert known >= LIBRARY
    assert set(s.COMPARE) <= known
