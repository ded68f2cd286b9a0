"""Loads object code into this process: for tests, benchmarks and measured tuning at compile time.

Artifacts are loaded by ``dhc_runtime``, not by this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from dhc.backends.cpu.target import _machine, host_target


class LoadedObject:
    """An object file made callable. Keep it alive as long as its code may run.

    Args:
        object_code: ELF object for this machine.
    """

    def __init__(self, object_code: bytes) -> None:
        import llvmlite.binding as llvm

        empty = llvm.parse_assembly("")
        self._engine = llvm.create_mcjit_compiler(empty, _machine(host_target(), 2))
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """The address of a function of the object.

        Raises:
            KeyError: when the object has no such symbol.
        """
        found = int(self._engine.get_function_address(symbol))
        if not found:
            raise KeyError(symbol)
        return found

    def kernel(self, symbol: str) -> Kernel:
        """A kernel of the CPU kernel ABI, callable with buffer addresses and parameters."""
        return Kernel(self, self.address(symbol))


class Kernel:
    """Calls ``int32_t kernel(uint8_t **buffers, const int64_t *params, int64_t tid, int64_t nthreads)``."""

    def __init__(self, owner: LoadedObject, address: int) -> None:
        self._owner = owner
        self._call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
            address
        )

    def bind(
        self, buffers: Sequence[int], params: Sequence[int]
    ) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_int64]]:
        """Lays out arguments once for many calls of :meth:`run`."""
        return ((ctypes.c_void_p * max(len(buffers), 1))(*buffers), (ctypes.c_int64 * max(len(params), 1))(*params))

    def run(
        self, bound: tuple[ctypes.Array[ctypes.c_void_p], ctypes.Array[ctypes.c_int64]], tid: int = 0, nthreads: int = 1
    ) -> int:
        """Calls the kernel as thread ``tid`` of ``nthreads``; releases the GIL. Returns the kernel's status."""
        return int(self._call(ctypes.addressof(bound[0]), ctypes.addressof(bound[1]), tid, nthreads))
