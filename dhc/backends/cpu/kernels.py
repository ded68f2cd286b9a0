"""The kernels of one compilation: each distinct one once, compiled or taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dhc_runtime.safe_write import write_bytes

from dhc.backends.cpu.cache import KernelCache, default_cache
from dhc.backends.cpu.contract.spec import KernelCode
from dhc.backends.cpu.numba.opaque import LoweredOpaque, OpaqueKernel, lower_opaque, source_of
from dhc.backends.cpu.objects import compile_kernel
from dhc.backends.cpu.target import CpuTarget, compile_ir
from dhc.backends.cpu.team_ir import team_ir
from dhc.backends.loop.ir import Kernel
from dhc.ir.graph import Node

EXECUTOR = "dhc_team"


class KernelSet:
    """Collects kernels while a graph is lowered, then compiles them.

    Attributes:
        compiled: kernels that were compiled.
        cached: kernels that came from the cache.
        cache: where they are kept.
    """

    def __init__(self, target: CpuTarget, cache: bool = True) -> None:
        self.target = target
        self.compiled = 0
        self.cached = 0
        self.cache = default_cache() if cache else KernelCache(None)
        self._loops: dict[str, Kernel] = {}
        self._contractions: dict[str, KernelCode] = {}
        self._opaques: dict[str, OpaqueKernel] = {}

    def loop(self, kernel: Kernel) -> str:
        """Adds a loop-level kernel and returns its symbol."""
        self._loops.setdefault(kernel.symbol, kernel)
        return kernel.symbol

    def contract(self, code: KernelCode) -> str:
        """Adds a generated contraction and returns its symbol."""
        self._contractions.setdefault(code.name, code)
        return code.name

    def opaque(self, node: Node) -> tuple[str, LoweredOpaque]:
        """Adds the kernel of an opaque op; returns its symbol and how to call it."""
        lowered = lower_opaque(node)
        self._opaques.setdefault(lowered.kernel.symbol, lowered.kernel)
        return lowered.kernel.symbol, lowered

    def compile(self, progress: Callable[[int, int], None] | None = None) -> dict[str, bytes]:
        """Object code by symbol, sorted; the executor is among them.

        Raises:
            CompileError: a kernel cannot be compiled.
        """
        makers = self._makers()
        before = (self.cache.hits, self.cache.misses)
        objects: dict[str, bytes] = {}
        for done, (symbol, make) in enumerate(makers):
            if progress is not None:
                progress(done, len(makers))
            objects[symbol] = make()
        if progress is not None:
            progress(len(makers), len(makers))
        self.cached, self.compiled = self.cache.hits - before[0], self.cache.misses - before[1]
        return dict(sorted(objects.items()))

    def _makers(self) -> Sequence[tuple[str, Callable[[], bytes]]]:
        from dhc.backends.cpu.numba.compile import compile_opaque

        def text_object(text: str) -> bytes:
            return self.cache.get_or_make(text, self.target.text(), lambda: compile_ir(text, self.target))

        makers: list[tuple[str, Callable[[], bytes]]] = [(EXECUTOR, lambda: text_object(team_ir(self.target)))]
        for name, code in self._contractions.items():
            makers.append((name, lambda code=code: text_object(code.ir)))  # type: ignore[misc]
        for name, kernel in self._loops.items():
            makers.append((name, lambda k=kernel: compile_kernel(k, self.target, self.cache).data))  # type: ignore[misc]
        for name, opaque in self._opaques.items():
            makers.append((name, lambda k=opaque: compile_opaque(k, self.target, self.cache).data))  # type: ignore[misc]
        return makers

    def write_sources(self, folder: Path) -> None:
        """Writes readable sources: Numba Python for loop kernels and opaque ops, LLVM IR for contractions."""
        from dhc.backends.loop.numba_source import print_numba

        folder.mkdir(parents=True, exist_ok=True)
        for name, code in self._contractions.items():
            write_bytes(folder / f"{name}.ll", code.ir.encode())
        for name, kernel in self._loops.items():
            write_bytes(folder / f"{name}.py", print_numba(kernel).encode())
        for name, opaque in self._opaques.items():
            write_bytes(folder / f"{name}.py", source_of(opaque.function).encode())
