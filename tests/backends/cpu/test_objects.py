"""Object code of loop kernels: every target, allowed symbols only, the same bytes each time, in the runtime."""

import ctypes

import numpy as np
import pytest

from dhc_runtime.code_object import ALLOWED_SYMBOLS, CodeObject
from dhc_runtime.elf import ElfObject

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.objects import ObjectCode, compile_kernel, kernel_ir, merge
from dhc.backends.cpu.target import target
from dhc.backends.loop.lower import lower_group
from tests.backends.loop.harness import graph_of

TARGETS = ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"]
CASES = {
    "gelu": (lambda b, x: b.gelu(x), ("f32", ["N"])),
    "half": (lambda b, x: b.sqrt(x), ("f16", ["N"])),
    "brain": (lambda b, x: b.add(x, x), ("bf16", ["N"])),
    "narrow": (lambda b, x: b.cast(x, dtype="f16"), ("f64", ["N"])),
    "bytes": (lambda b, x: b.cast(x, dtype="i8"), ("f32", ["N"])),
    "library": (lambda b, x: b.atan(b.sin(x)), ("f64", ["N"])),
    "rounding": (lambda b, x: b.round(b.floor(x)), ("f32", ["N"])),
    "reduction": (lambda b, x: b.reduce_max(x, axes=[1]), ("f32", ["N", "M"])),
    "division": (lambda b, x: b.div(x, x), ("u64", ["N"])),
    "random": (lambda b, x: b.add(x, b.random_normal(shape=[9], dtype="f32", mean=0.0, std=1.0, seed=1)), ("f32", [9])),
}


def kernel(name):
    build, kind = CASES[name]
    graph = graph_of(build, kind)
    return lower_group(graph.nodes, graph.inputs, graph.outputs, name).kernel


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("goal", TARGETS)
def test_every_target(name, goal):
    code = compile_kernel(kernel(name), target(goal), KernelCache(None))
    elf = ElfObject(code.data, name)
    assert elf.arch == ("aarch64" if goal == "aarch64" else "x86_64")
    assert set(elf.undefined) <= ALLOWED_SYMBOLS
    assert code.data == compile_kernel(kernel(name), target(goal), KernelCache(None)).data


def test_wide_vectors_are_used():
    import re

    from dhc.backends.cpu.objects import _run_passes, _target_machine, parse_ir

    goal = target("x86-64-v3")
    for name in ("gelu", "reduction", "bytes", "brain", "half"):
        module = parse_ir(kernel_ir(kernel(name), goal), goal)
        _run_passes(module, _target_machine(goal))
        text = str(_target_machine(goal).emit_assembly(module))
        assert len(re.findall(r"%ymm", text)) >= 8, name


def test_the_runtime_loads_and_runs_it():
    code = compile_kernel(kernel("gelu"), target(), KernelCache(None))
    loaded = CodeObject(code.data)
    x = np.linspace(-4, 4, 999, dtype=np.float32)
    y = np.empty_like(x)
    call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        loaded.symbols[code.symbol]
    )
    buffers, params = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data), (ctypes.c_int64 * 1)(999)
    assert [call(buffers, params, tid, 2) for tid in range(2)] == [0, 0]
    from math import erf

    want = np.array([0.5 * float(v) * (1 + erf(float(v) / 2**0.5)) for v in x])
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_merge_keeps_one_of_each_in_order():
    a, b = ObjectCode("a", b"1"), ObjectCode("b", b"2")
    assert merge([b, a, b]) == [a, b]
