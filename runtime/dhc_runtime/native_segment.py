"""A run of kernels as native data: the step list, the tables of buffer addresses, and the parameters."""

from __future__ import annotations

import time
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from dhc_runtime.dims import evaluate
from dhc_runtime.errors import DeviceError, DhcError, ModelError
from dhc_runtime.program import Kernel
from dhc_runtime.team_choice import TeamChoice
from dhc_runtime.thread_pool import ThreadPool
from dhc_runtime.trace import StepTime

__all__ = ["NativeSegment", "Recorder"]

SERIAL_NANOSECONDS = 120_000
"""Segments with less estimated work run on one thread: waking the others would take as long. Results do not depend on
it."""
_NANOSECONDS_PER_BYTE = 0.1

_BARRIER = 1
_STEP_BYTES = 32
_STATUS = {
    1: "An index is out of bounds",
    2: "An integer is divided by zero",
    3: "A value is outside of the range that the operation allows",
}


class Recorder(NamedTuple):
    """Collects the times of steps: the list to which they go, and the clock's value when the run began."""

    steps: List[StepTime]
    origin: float


def _address(array: "np.ndarray[Any, Any]") -> int:
    return int(array.__array_interface__["data"][0])


class NativeSegment:
    """Kernels with all sizes known.

    Args:
        kernels: the items.
        functions: the address of each kernel's function.
        symbols: values of the symbols.
        locate: for a buffer, the slot of its owner in the table of addresses, its byte offset there, and its bytes (0
            if unknown).

    Attributes:
        table: the addresses of the kernels' buffers, kernel after kernel.
    """

    __slots__ = (
        "_choice",
        "_kernels",
        "_offsets",
        "_params",
        "_roots",
        "_serial",
        "_steps",
        "_steps_address",
        "table",
    )

    def __init__(
        self,
        kernels: Sequence[Kernel],
        functions: Sequence[int],
        symbols: Mapping[str, int],
        locate: Callable[[int], Tuple[int, int, int]],
    ) -> None:
        self._kernels = kernels
        roots: List[int] = []
        offsets: List[int] = []
        params: List[int] = []
        starts: List[Tuple[int, int]] = []
        work = 0.0
        for kernel in kernels:
            starts.append((len(roots), len(params)))
            touched = 0
            for buffer in kernel.buffers:
                slot, offset, size = locate(buffer)
                roots.append(slot)
                offsets.append(offset)
                touched += size
            work += touched * _NANOSECONDS_PER_BYTE if kernel.work is None else evaluate(kernel.work, symbols)
            params.extend([value if type(value) is int else evaluate(value, symbols) for value in kernel.params])
        self._roots = np.asarray(roots, dtype=np.intp)
        self._offsets = np.asarray(offsets, dtype=np.uint64)
        self.table = np.zeros(max(len(roots), 1), dtype=np.uint64)[: len(roots)]
        self._params = np.asarray(params + [0], dtype=np.int64)
        table, values = _address(self.table), _address(self._params)
        self._steps = np.asarray(
            [
                (function, table + 8 * slot, values + 8 * value, _BARRIER if kernel.barrier else 0)
                for kernel, function, (slot, value) in zip(kernels, functions, starts)
            ],
            dtype=np.uint64,
        )
        self._steps_address = _address(self._steps)
        self._serial = work < SERIAL_NANOSECONDS
        self._choice = TeamChoice()

    def run(
        self, addresses: "np.ndarray[Any, np.dtype[np.uint64]]", pool: ThreadPool, recorder: Optional[Recorder]
    ) -> None:
        """Runs the kernels with the owners of buffers at ``addresses``.

        Raises:
            ModelError: a kernel found a value that the model does not allow.
            DeviceError: a kernel failed in another way.
        """
        np.take(addresses, self._roots, out=self.table, mode="clip")
        np.add(self.table, self._offsets, out=self.table)
        if recorder is not None:
            self._run_singly(pool, recorder)
        else:
            self.launch(pool)

    def places(self, slot: int) -> List[Tuple[int, int]]:
        """Where the address of an owner goes in `table`, and the offset that is added to it."""
        return [(int(at), int(self._offsets[at])) for at in np.flatnonzero(self._roots == slot)]

    def launch(self, pool: ThreadPool) -> None:
        """Runs the kernels with the addresses that stand in `table`.

        Raises:
            ModelError: a kernel found a value that the model does not allow.
            DeviceError: a kernel failed in another way.
        """
        if self._serial or pool.threads == 1:
            word = pool.run(self._steps_address, len(self._kernels), True)
        else:
            choice = self._choice
            start = time.perf_counter()
            word = pool.run(self._steps_address, len(self._kernels), choice.alone)
            choice.report(time.perf_counter() - start, 0.0 if choice.alone else pool.waited)
        if word:
            raise self._error((word >> 8) - 1, word & 0xFF)

    def _run_singly(self, pool: ThreadPool, recorder: Recorder) -> None:
        for index, kernel in enumerate(self._kernels):
            start = time.perf_counter()
            word = pool.run(self._steps_address + _STEP_BYTES * index, 1, self._serial)
            duration = time.perf_counter() - start
            if word:
                raise self._error(index, word & 0xFF)
            recorder.steps.append(
                StepTime(kernel.node, kernel.op, kernel.symbol, duration * 1e6, (start - recorder.origin) * 1e6)
            )

    def _error(self, index: int, status: int) -> DhcError:
        kernel = self._kernels[index] if 0 <= index < len(self._kernels) else None
        op = "in {}".format(kernel.op) if kernel is not None and kernel.op else "in a kernel"
        where = None if kernel is None else (kernel.node or kernel.symbol)
        if status in _STATUS:
            return ModelError("{} {}".format(_STATUS[status], op), where, "Check the values of the inputs")
        return DeviceError(
            "A kernel failed with status {} {}".format(status, op), where, "Report this as a defect of dhc"
        )
