"""The CPU backend: vectorised native code for x86-64 and AArch64."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhc_runtime.code_archive import write_archive
from dhc_runtime.errors import UsageError

from dhc.backends.constants import ConstantPool
from dhc.backends.cost import moved_bytes, operations
from dhc.backends.cpu.kernels import KernelSet
from dhc.backends.cpu.lower import CpuLowering
from dhc.backends.cpu.methods import Methods
from dhc.backends.loop.lower import supports as supports_loops
from dhc.backends.plan import PlanBuilder
from dhc.backends.protocol import Blob, CompileOptions
from dhc.backends.values import interpreter_only
from dhc.ir.graph import Graph, Node
from dhc.ir.kinds import Composite, Opaque, Structural
from dhc.ir.op import Limitation

if TYPE_CHECKING:
    from dhc.backends.cpu.cache import KernelCache
    from dhc.backends.cpu.target import CpuTarget
    from dhc.backends.cpu.tuning.search import TuningReport

# Rough rates of one core for estimates before anything is measured: arithmetic, and bytes through memory, per second.
_FLOPS = 40e9
_BYTES = 10e9


class CpuBackend:
    """Lowers every kind of op to native kernels."""

    name = "cpu"
    tunes = True

    def available(self) -> Limitation | None:
        """The CPU is always there."""
        return None

    def supports(self, node: Node) -> Limitation | None:
        """Every kind but those that need Python objects: strings, sequences, optionals."""
        held = interpreter_only(node)
        if held is not None:
            return held
        kind = node.op.kind
        if isinstance(kind, Structural):
            if kind.name in ("constant", "control", "group", "bind"):
                return None
            return Limitation(f"{node.op.name} runs in the interpreter only", "use the reference target")
        if isinstance(kind, (Opaque, Composite)):
            return None
        return supports_loops(node)

    def cost(self, node: Node) -> float:
        """Seconds by a roofline of assumed rates."""
        return max(operations(node) / _FLOPS, moved_bytes(node) / _BYTES)

    def compile(self, graph: Graph, options: CompileOptions) -> Blob:
        """Generates, compiles (or takes from the cache) and collects the kernels of a graph."""
        from dhc.backends.cpu.target import required_features, target

        described = target(options.cpu)
        storage = _storage(options.precision, described)
        start = time.perf_counter()
        kernels = KernelSet(described, cache=options.cache)
        constants = ConstantPool()
        methods, tuning = Methods(kernels.cache), None
        if options.tune is not None:
            methods, tuning = _tuned(graph, described, storage, kernels.cache, options)
            start = time.perf_counter()
        lowering = CpuLowering(described, kernels, options.exact, storage, methods)
        program = PlanBuilder(graph, lowering, constants).build()
        lowered = time.perf_counter()
        objects = kernels.compile(_progress(options))
        compiled = time.perf_counter()
        if options.emit is not None:
            kernels.write_sources(Path(options.emit))
        archive = write_archive(objects)
        device: dict[str, Any] = {
            "triple": described.triple,
            "arch": described.arch,
            "features": required_features(described),
            "object": "cpu/code.a",
        }
        report: dict[str, Any] = {
            "seconds": {"lowering": lowered - start, "code": compiled - lowered},
            "cpu": described.name,
            "kernels": len(objects),
            "compiled": kernels.compiled,
            "cached": kernels.cached,
            "code_bytes": len(archive),
            "constant_bytes": sum(a.nbytes for a in constants.arrays.values()),
            "stored_16_bit": [asdict(weights) for weights in lowering.stored],
            "winograd": [asdict(layer) for layer in lowering.filtered],
            "steps": sum(1 for item in program["items"] if item["do"] == "kernel"),
        }
        if tuning is not None:
            report["seconds"]["tuning"] = tuning.seconds
            report["tuning"] = asdict(tuning)
        return Blob(program, {"cpu/code.a": archive}, constants.arrays, device, report)


_STORAGE = {"fp32": "", "bf16": "bf16", "fp16": "f16"}


def _storage(precision: str, described: CpuTarget) -> str:
    """The element type of stored weights, "" for their own.

    Raises:
        UsageError: the precision is unknown, or the target cannot widen the type in registers.
    """
    from dhc.backends.cpu.objects import native_half
    from dhc.ir.dtypes import f16

    found = _STORAGE.get(precision)
    if found is None:
        raise UsageError(f"the precision {precision!r} is unknown", hint=f"use one of: {', '.join(_STORAGE)}")
    if found == "f16" and f16 not in native_half(described):
        raise UsageError(f"{described.name} does not convert fp16 in registers", hint="use bf16, or another --cpu")
    return found


def _tuned(
    graph: Graph, described: CpuTarget, storage: str, cache: KernelCache, options: CompileOptions
) -> tuple[Methods, TuningReport]:
    """The methods that a search on this machine finds.

    Raises:
        UsageError: the code is for another machine.
    """
    from dhc.backends.cpu.target import host_target
    from dhc.backends.cpu.tuning.search import Recorder, Search, TunedMethods
    from dhc.backends.cpu.tuning.timing import KernelTimer

    assert options.tune is not None
    if described.text() != host_target().text():
        raise UsageError(
            f"tuning measures on this machine, and the code is for {described.name}",
            hint="compile for --cpu host, or on a machine of that kind",
        )
    recorder = Recorder(cache)
    lowering = CpuLowering(described, KernelSet(described), options.exact, storage, recorder)
    PlanBuilder(graph, lowering, ConstantPool()).build()
    threads = options.tune_threads
    timer = KernelTimer(described, threads, cache, recorder)

    def step(done: int, total: int) -> None:
        if options.progress is not None:
            options.progress("tuning", done, total)

    search = Search(described, threads, options.tune, timer, Methods(cache), cache, step)
    choices, report = search.run(recorder.layers)
    return TunedMethods(cache, choices), report


def _progress(options: CompileOptions) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if options.progress is not None:
            options.progress("kernels", done, total)

    return step
