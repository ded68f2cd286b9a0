"""What the machine can do at most, measured: multiply-adds in registers, and reading of memory.

Both are loops of generated code that do nothing else. `dhc bench --layers` and the benchmarks compare with them.
"""

from __future__ import annotations

import threading
import time
from functools import cache

import numpy as np

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.llvm.builder import Module
from dhc.backends.cpu.llvm.loader import LoadedObject

_CHAINS = 12  # independent sums, enough to hide the latency of a multiply-add on every processor we know
_LINE = 64
_CALLS = 40


@cache
def peak_gflops(threads: int = 1, cpu: str = "host") -> float:
    """Most f32 operations in 10⁹ a second that so many threads reach together; a multiply-add counts as two."""
    described = targets.target(cpu)
    lanes, rounds, unrolled = described.lanes("f32"), 100_000, 4
    module = Module(described, "limit")
    f = module.kernel("limit")
    vector = f"<{lanes} x float>"
    out = f.pointer_argument(0)
    factor = f.load(vector, out, 4)
    sums = [f.variable(vector, f.load(vector, f.at(out, _LINE * i), 4)) for i in range(_CHAINS)]
    with f.loop(0, rounds):
        for _ in range(unrolled):
            for total in sums:
                total.set(f.fma(total.get(), factor, factor))
    for i, total in enumerate(sums):
        f.store(total.get(), f.at(out, _LINE * i), 4)
    f.ret(0)
    loaded = LoadedObject(targets.compile_ir(module.text(), described))
    seconds = _seconds(loaded, "limit", [_aligned(_LINE * _CHAINS) for _ in range(threads)])
    return sum(2.0 * lanes * _CHAINS * unrolled * rounds / s for s in seconds) / 1e9


@cache
def read_gigabytes(size: int, threads: int = 1) -> float:
    """10⁹ bytes a second that so many threads read together from memory of `size` bytes, read again and again."""
    described = targets.target("host")
    lanes = described.lanes("f32")
    share = max(size // threads // 4096, 1) * 4096
    repeats = max((16 << 20) // share, 1)
    module = Module(described, "reading")
    f = module.kernel("reading")
    vector, step = f"<{lanes} x float>", lanes * 4
    unrolled = 8
    start = f.pointer_argument(0)
    sums = [f.variable(vector, f.load(vector, start, 4)) for _ in range(unrolled)]
    with f.loop(0, repeats), f.loop(0, share, step * unrolled) as offset:
        for i, total in enumerate(sums):
            total.set(f.binary("fadd", total.get(), f.load(vector, f.at(start, offset + step * i), 4)))
    for i, total in enumerate(sums):  # written back, so that the reading is not for nothing
        f.store(total.get(), f.at(start, step * i), 4)
    f.ret(0)
    loaded = LoadedObject(targets.compile_ir(module.text(), described))
    seconds = _seconds(loaded, "reading", [_aligned(share) for _ in range(threads)])
    return sum(share * repeats / s for s in seconds) / 1e9


def reading_speed(moved: int, threads: int) -> float:
    """10⁹ bytes a second for data of about this size: a cache's speed while it fits there, else the memory's."""
    size = 1 << 18
    while size < moved and size < 1 << 28:
        size <<= 2
    return read_gigabytes(size, threads)


def _aligned(size: int) -> np.ndarray:
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


def _seconds(loaded: LoadedObject, symbol: str, memories: list[np.ndarray]) -> list[float]:
    """Time of a call in each thread while the others run too, each with its own memory."""
    kernel = loaded.kernel(symbol)
    gate = threading.Barrier(len(memories))
    taken: list[list[float]] = [[] for _ in memories]

    def enter(number: int) -> None:
        bound = kernel.bind([memories[number].ctypes.data], [])
        gate.wait()
        for _ in range(_CALLS):
            start = time.perf_counter()
            kernel.run(bound)
            taken[number].append(time.perf_counter() - start)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(1, len(memories))]
    for thread in threads:
        thread.start()
    enter(0)
    for thread in threads:
        thread.join()
    # Not the best call, at which others may have been through; not the median, which other processes disturb.
    return [sorted(times)[len(times) // 4] for times in taken]
