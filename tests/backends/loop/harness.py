"""Runs groups as kernels and compares them with the interpreter."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

import dhc.ir.ops  # noqa: F401
from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.llvm.loader import LoadedObject
from dhc.backends.cpu.objects import compile_kernel
from dhc.backends.cpu.target import target
from dhc.backends.loop.lower import lower_group
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from dhc.ir.interpreter import bind_symbols
from dhc.ir.symbols import evaluate

CACHE = KernelCache(None)


@functools.cache
def _loaded(symbol, data):
    return LoadedObject(data).kernel(symbol)


def graph_of(build, *inputs):
    """A graph from a function of a builder and inputs given as (dtype, shape)."""
    graph = Graph()
    values = [graph.input(f"a{i}", d, shape) for i, (d, shape) in enumerate(inputs)]
    results = build(Builder(graph), *values)
    graph.output(*(results if isinstance(results, (tuple, list)) else (results,)))
    return graph


def run_kernel(lowered, arrays, bound, outputs, nthreads=1):
    """Calls a lowered kernel as each of its threads; returns (status, results)."""
    code = compile_kernel(lowered.kernel, target(), CACHE)
    kernel = _loaded(code.symbol, code.data)
    arrays = [np.ascontiguousarray(a) for a in arrays]
    results = []
    for value in outputs:
        shape = tuple(evaluate(d, bound) for d in value.type.shape)
        guarded = np.full(int(np.prod(shape)) * value.dtype.itemsize + 128, 0xA5, dtype=np.uint8)
        results.append((guarded, shape, value.dtype))
    addresses = [a.ctypes.data for a in arrays] + [g.ctypes.data + 64 for g, _, _ in results]
    params = [evaluate(d, bound) for d in lowered.params]
    arguments = kernel.bind(addresses, params)
    status = 0
    for tid in range(nthreads):
        status = status or kernel.run(arguments, tid, nthreads)
    found = []
    for guarded, shape, dtype in results:
        assert (guarded[:64] == 0xA5).all() and (guarded[-64:] == 0xA5).all(), "wrote outside of the result"
        found.append(guarded[64 : len(guarded) - 64].view(dtype.numpy).reshape(shape))
    return status, found


def bindings(graph, arrays):
    bound = {}
    bind_symbols(graph, arrays, bound)
    return bound


def check_graph(graph, *arrays, rtol=2e-6, atol=1e-6, threads=(1, 3)):
    """Runs a whole graph as one kernel and compares with the interpreter; results are bit-equal for all threads."""
    lowered = lower_group(graph.nodes, graph.inputs, graph.outputs, "test")
    bound = bindings(graph, arrays)
    expected = graph.evaluate(*arrays)
    first = None
    for nthreads in threads:
        status, found = run_kernel(lowered, arrays, bound, graph.outputs, nthreads)
        assert status == 0, f"kernel returned {status}"
        if first is None:
            first = found
            for value, got, want in zip(graph.outputs, found, expected):
                assert got.dtype == want.dtype and got.shape == want.shape
                compare(got, want, rtol, atol, f"{value!r}\n{lowered.kernel}")
        else:
            for one, other in zip(first, found):
                assert one.tobytes() == other.tobytes(), f"{nthreads} threads differ from {threads[0]}"
    return lowered


def compare(got, want, rtol, atol, message=""):
    if got.dtype.kind in "fc" or got.dtype.name == "bfloat16":
        wide = np.complex128 if got.dtype.kind == "c" else np.float64
        if got.dtype.itemsize == 2:
            rtol, atol = (1e-2, 1e-2) if got.dtype.name == "bfloat16" else (1e-3, 1e-3)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=atol, err_msg=message)
    else:
        np.testing.assert_array_equal(got, want, err_msg=message)


def address(array):
    return ctypes.c_void_p(array.ctypes.data)
