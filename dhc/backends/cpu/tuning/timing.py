"""Times one kernel on this machine, on data of a layer's real sizes, by as many threads as a session will have."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from dhc_runtime.errors import CompileError

from dhc.backends.cpu import executor_ir
from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import ConvTransposeSpec, MatmulSpec
from dhc.backends.cpu.llvm.loader import LoadedObject
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import CpuTarget, compile_ir
from dhc.backends.cpu.tuning.candidates import Candidate

# One measurement runs a kernel for about so long: clocks and the start of threads do not count then.
_LEAST_SECONDS = 0.003
_MOST_REPEATS = 1000


class Runner(Protocol):
    """A candidate that is ready to run."""

    def seconds(self) -> float:
        """Measures one run."""

    def result(self) -> np.ndarray[Any, Any]:
        """What it computes."""


Prepare = Callable[[Layer, Candidate], Runner]
"""Compiles a candidate and lays out its data; the same data for all candidates of a layer."""


class _Step(ctypes.Structure):
    _fields_ = [
        ("fn", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("flags", ctypes.c_int64),
    ]


class KernelTimer:
    """Prepares kernels for timing (a `Prepare`).

    Args:
        target: this machine.
        threads: number of threads.
        cache: where object code is kept.
        methods: writes the kernels.
    """

    def __init__(self, target: CpuTarget, threads: int, cache: KernelCache, methods: Methods) -> None:
        self._target = target
        self._threads = threads
        self._cache = cache
        self._methods = methods
        executor = LoadedObject(self._object(executor_ir.executor_ir(target)))
        self._executor = executor
        self._run = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
        )(executor.address(executor_ir.SYMBOL))

    def __call__(self, layer: Layer, candidate: Candidate) -> Runner:
        """See `Prepare`."""
        code = self._methods.emit(candidate.spec, candidate.target)
        held = layer_data(layer)
        constant = "weight" if "weight" in held else "b"
        if constant == "weight" or (isinstance(layer.spec, MatmulSpec) and layer.spec.packed_b):
            held[constant] = aligned_copy(registry.pack_weights(candidate.spec, candidate.target, held[constant]))
        held["scratch"] = aligned((code.scratch_per_thread * self._threads,), np.uint8)
        loaded = LoadedObject(self._object(code.ir))
        sizes = [int(size) for size in layer.sizes if isinstance(size, int)]
        return _KernelRunner(self._run, loaded, code.name, held, code.buffers, [*sizes, *code.constants], self._threads)

    def _object(self, text: str) -> bytes:
        return self._cache.get_or_make(text, self._target.text(), lambda: compile_ir(text, self._target))


class _KernelRunner:
    def __init__(
        self, run: Any, loaded: LoadedObject, symbol: str, held: dict[str, np.ndarray[Any, Any]],
        names: Sequence[str], params: Sequence[int], threads: int,
    ) -> None:  # fmt: skip
        self._run = run
        self._loaded = loaded
        self._function = loaded.address(symbol)
        self._held = held
        self._threads = threads
        self._buffers = (ctypes.c_void_p * len(names))(*(held[name].ctypes.data for name in names))
        self._params = (ctypes.c_int64 * max(len(params), 1))(*params)
        self._repeats = 1
        self._enter(1)
        taken = max(self._enter(1), 1e-7)
        self._repeats = min(max(math.ceil(_LEAST_SECONDS / taken), 1), _MOST_REPEATS)

    def seconds(self) -> float:
        return self._enter(self._repeats) / self._repeats

    def result(self) -> np.ndarray[Any, Any]:
        return self._held["out"]

    def _enter(self, repeats: int) -> float:
        step = _Step(self._function, ctypes.addressof(self._buffers), ctypes.addressof(self._params), 1)
        steps = (_Step * repeats)(*[step] * repeats)
        sync = (ctypes.c_int64 * (executor_ir.sync_bytes(self._threads) // 8))()
        sync[executor_ir.SYNC_SPIN // 8] = 2_000
        failed: list[int] = []

        def enter(tid: int) -> None:
            status = self._run(ctypes.addressof(steps), repeats, tid, self._threads, ctypes.addressof(sync))
            if status:
                failed.append(status)

        others = [threading.Thread(target=enter, args=(tid,)) for tid in range(1, self._threads)]
        for thread in others:
            thread.start()
        start = time.perf_counter()
        enter(0)
        taken = time.perf_counter() - start
        for thread in others:
            thread.join()
        if failed:
            raise CompileError(f"a kernel fails while it is measured, status {failed[0]}")
        return taken


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Zeros that start at a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array: np.ndarray[Any, Any] = memory[start : start + size].view(dtype).reshape(shape)
    return array


def aligned_copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy that starts at a cache line."""
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def layer_data(layer: Layer) -> dict[str, np.ndarray[Any, Any]]:
    """Random operands of a layer and room for its results, by the roles that kernels name; weights as in the model.

    Values lie between 0.5 and 1.5, so that no epilogue meets a number that is not in its domain.
    """
    spec = layer.spec
    dtype = np.dtype(np.float64 if spec.dtype == "f64" else np.float32)
    sizes = [int(size) for size in layer.sizes if isinstance(size, int)]
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray[Any, Any]:
        return aligned_copy((rng.random(shape, np.float32) + 0.5).astype(dtype))

    if isinstance(spec, MatmulSpec):
        counts, (m, n, k), a_steps, b_steps = sizes[:3], sizes[3:6], sizes[6:9], sizes[9:]
        last_a = sum((count - 1) * step for count, step in zip(counts, a_steps, strict=True))
        last_b = sum((count - 1) * step for count, step in zip(counts, b_steps, strict=True))
        found = {"a": values(last_a + m * k), "b": values(k, n) if spec.packed_b else values(last_b + k * n)}
        rows, columns, elements = m, n, math.prod(counts) * m * n
        bias = {"n": n, "m": m}.get(spec.bias, 0)
    else:
        batch, ins, outs = sizes[0], math.prod(sizes[1:4]), math.prod(sizes[4:7])
        pair = (spec.in_channels, spec.out_channels // spec.groups)
        if not isinstance(spec, ConvTransposeSpec):
            pair = (spec.out_channels, spec.in_channels // spec.groups)
        found = {"input": values(batch * spec.in_channels * ins), "weight": values(*pair, *spec.kernel)}
        rows, columns, elements = spec.out_channels, outs, batch * spec.out_channels * outs
        bias = spec.out_channels if spec.bias else 0
    if bias:
        found["bias"] = values(bias)
    lengths = {"same": elements, "row": rows, "column": columns, "scalar": 1}
    for index, shape in enumerate(spec.epilogue.operands()):
        found[f"epilogue{index}"] = values(lengths[shape])
    found["out"] = aligned((elements,), dtype)
    return found
