"""Opaque ops as compiled kernels: against the references, for any number of threads, without traces of the process."""

import subprocess
import sys

import numpy as np
import pytest

from dhc_runtime.code_object import ALLOWED_SYMBOLS
from dhc_runtime.elf import ElfObject

from dhc.backends.cpu.numba.compile import compile_opaque
from dhc.backends.cpu.numba.opaque import (
    ArrayArgument,
    OpaqueKernel,
    fingerprint,
    helpers_of,
    lower_opaque,
    source_of,
)
from dhc.backends.cpu.target import target
from dhc.ir import registry, symbols
from dhc.ir.dtypes import f32
from dhc.ir.kinds import Opaque
from dhc.ir.verifier import defined_symbols
from tests.backends.loop.harness import CACHE, _loaded
from tests.ir.op_examples import examples_for
from tests.ir.test_definitions import assert_close

OPS = [op for op in registry.all_ops() if isinstance(op.kind, Opaque) and examples_for(op)]


def run(example, nthreads):
    """Status and results of the compiled kernel."""
    graph = example.graph()
    (node,) = graph.nodes
    lowered = lower_opaque(node)
    code = compile_opaque(lowered.kernel, target(), CACHE)
    kernel = _loaded(code.symbol, code.data)
    kind = node.op.kind
    from dhc.ir.op import Call

    call = Call.of(node)
    shapes = kind.bounds(call) if kind.bounds is not None else [r.type.shape for r in node.results]
    operands = [np.ascontiguousarray(a) for a in example.arrays]
    results = [np.full(symbols.product(s) + 64, 77, r.dtype.numpy) for s, r in zip(shapes, node.results)]
    count = [np.full(1, -1, np.int64)] if kind.count else []
    scratch = [np.full(int(symbols.product(s)) + 1, 99, d.numpy) for d, s in lowered.scratch]
    arguments = kernel.bind([a.ctypes.data for a in (*operands, *results, *count, *scratch)], list(lowered.params))
    status = 0
    for tid in reversed(range(nthreads)):
        status = max(status, kernel.run(arguments, tid, nthreads))
    for r, s in zip(results, shapes):
        assert (r[symbols.product(s) :] == 77).all(), "wrote outside of the result"
    sizes = {name: int(count[0][0]) for name in defined_symbols(node)} if count else {}
    found = []
    for r, value in zip(results, node.results):
        shape = [symbols.evaluate(d, sizes) for d in value.type.shape]
        found.append(r[: int(np.prod(shape))].reshape(shape))
    return status, found


def sample(op):
    """One example for each family of element types, and the op's second and third."""
    examples = examples_for(op)
    chosen, seen = [], set()
    for number, example in enumerate(examples):
        kinds = tuple("h" if d.itemsize == 2 and d.is_float else d.kind for d in example.dtypes)
        if kinds not in seen:
            seen.add(kinds)
            chosen.append(number)
    return [examples[n] for n in sorted({*chosen[:4], *range(1, min(3, len(examples)))})]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_compiled_function_gives_the_reference(op):
    for example in sample(op):
        expected = example.graph().evaluate(*example.arrays)
        for nthreads in (1, 3):
            status, found = run(example, nthreads)
            assert status == 0, example
            for value, got, want in zip(example.graph().outputs, found, expected):
                assert_close(got, want, value.type.dtype, example)


def test_out_of_range_index_is_reported():
    graph_example = next(e for e in examples_for(registry.get("scatter_elements")))
    arrays = list(graph_example.arrays)
    arrays[1] = np.full_like(arrays[1], 10**6)
    from dataclasses import replace

    status, _ = run(replace(graph_example, arrays=tuple(arrays)), 1)
    assert status == 1


def _object(name):
    example = examples_for(registry.get(name))[0]
    return compile_opaque(lower_opaque(example.graph().nodes[0]).kernel, target("x86-64-v3"), CACHE)


@pytest.mark.parametrize("name", ["sort", "lstm", "scatter_nd"])
def test_objects_refer_to_nothing_of_numba(name):
    undefined = set(ElfObject(_object(name).data, name).undefined)
    assert undefined <= ALLOWED_SYMBOLS


def test_objects_are_the_same_in_every_process():
    """Also where Numba has compiled for the host before, and under another hash seed."""
    program = """
import hashlib, sys
import dhc.ir.ops
from dhc.ir import registry
if len(sys.argv) > 1:
    import numba
    numba.njit(lambda a, b: min(a, b))(1.5, 2.5)
from tests.backends.cpu.numba.test_opaque import _object
print(*(hashlib.sha256(_object(n).data).hexdigest() for n in ("lstm", "sort")))
"""
    import os
    from pathlib import Path

    root = Path(__file__).resolve().parents[4]
    path = os.pathsep.join([str(root), str(root / "runtime")])
    answers = {
        subprocess.run(
            [sys.executable, "-c", program, *extra], check=True, capture_output=True, text=True, cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for extra, seed in (([], "1"), (["warm"], "2"))
    }  # fmt: skip
    assert len(answers) == 1


def test_kernels_for_another_processor():
    example = examples_for(registry.get("lstm"))[0]
    code = compile_opaque(lower_opaque(example.graph().nodes[0]).kernel, target("aarch64"), CACHE)
    assert ElfObject(code.data, "lstm").arch == "aarch64"


def _doubled(x):
    return 2.0 * x


def _scaled(x, factor):
    if factor > 1:
        return _doubled(x) * max(factor, 3.0)
    return x


def _calling(x, out, first, end):
    for i in range(first, end):
        out[i] = _scaled(x[i], 2.0)
    return 0


def _other(x):
    return 3.0 * x


def test_functions_may_call_functions(monkeypatch):
    """They are written into the one that calls them: its text, its fingerprint and its object hold them."""
    assert list(helpers_of(_calling)) == ["_scaled"]
    assert source_of(_calling).index("def _doubled") < source_of(_calling).index("def _scaled")
    arrays = (ArrayArgument(f32, ("n0",)), ArrayArgument(f32, ("n0",), written=True))
    kernel = OpaqueKernel("calling", _calling, arrays, (), ("n0",), "n0")
    code = compile_opaque(kernel, target(), CACHE)
    assert set(ElfObject(code.data, "kernel").undefined) <= ALLOWED_SYMBOLS
    x, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    loaded = _loaded(code.symbol, code.data)
    assert loaded.run(loaded.bind([x.ctypes.data, out.ctypes.data], [5])) == 0
    np.testing.assert_array_equal(out, x * 6)
    before = fingerprint(_calling)
    monkeypatch.setitem(_scaled.__globals__, "_doubled", _other)
    assert fingerprint(_calling) != before
