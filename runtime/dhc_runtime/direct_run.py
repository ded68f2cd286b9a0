"""The short way of a run whose inputs are like the last ones: checks, addresses, one call of native code, results.

For small models the general way (binding sizes, looking for plans, reserving memory) takes as long as some of their
layers, the more so as a run of the model throws the interpreter's own data out of the caches.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from dhc_runtime.dtypes import numpy_dtype, storage_dtype, value_range
from dhc_runtime.memory import ALIGNMENT, Block, Budget
from dhc_runtime.native_segment import NativeSegment
from dhc_runtime.program import Port
from dhc_runtime.thread_pool import ThreadPool

__all__ = ["DirectRun"]

_FLAGS = 0x101  # C-contiguous and aligned
_MOST_OUTPUT = 16 << 20
_Places = List[Tuple[int, int]]
"""Where an address goes in the table of a segment, and what is added to it."""


class DirectRun:
    """Runs the one segment of a program again for inputs of known shapes.

    Args:
        segment: what to run; a run of the general way has filled its table.
        pool: runs it.
        arena: the memory that it works in.
        budget: limits the memory of results.
        inputs: for each input its port, shape, and slot in the table of addresses.
        outputs: the same for each output.
    """

    __slots__ = ("_arena", "_arena_address", "_budget", "_bytes", "_inputs", "_outputs", "_pool", "_segment")

    def __init__(
        self,
        segment: NativeSegment,
        pool: ThreadPool,
        arena: Block,
        budget: Budget,
        inputs: Sequence[Tuple[Port, Tuple[int, ...], int]],
        outputs: Sequence[Tuple[Port, Tuple[int, ...], int]],
    ) -> None:
        self._segment = segment
        self._pool = pool
        self._arena = arena
        self._arena_address = arena.address
        self._budget = budget
        self._inputs = [
            (port.name, storage_dtype(port.dtype), shape, segment.places(slot)) for port, shape, slot in inputs
        ]
        self._outputs: List[Tuple[str, Any, Tuple[int, ...], int, int, _Places]] = []
        self._bytes = 0
        for port, shape, slot in outputs:
            dtype = numpy_dtype(port.dtype)
            count = int(np.prod(shape, dtype=np.int64))
            self._bytes += count * dtype.itemsize + ALIGNMENT
            self._outputs.append((port.name, dtype, shape, count, ALIGNMENT // dtype.itemsize, segment.places(slot)))

    @staticmethod
    def serves(inputs: Sequence[Port], outputs: Sequence[Port], results: "Sequence[np.ndarray[Any, Any]]") -> bool:
        """Whether values need no more than their addresses: no ranges to check, no other types, results not large."""
        plain = all(
            value_range(port.dtype) is None and storage_dtype(port.dtype) == numpy_dtype(port.dtype)
            for port in (*inputs, *outputs)
        )
        sizes = [numpy_dtype(port.dtype).itemsize for port in outputs] if plain else []
        small = sum([result.nbytes for result in results]) <= _MOST_OUTPUT
        return plain and small and all(ALIGNMENT % size == 0 for size in sizes)

    def run(self, given: Mapping[str, Any]) -> "Optional[Dict[str, np.ndarray[Any, Any]]]":
        """The outputs by name; None if this run must go the general way, and nothing has happened.

        Raises:
            ModelError: a value is not allowed, such as an index out of bounds.
        """
        budget = self._budget
        fits = len(given) == len(self._inputs) and self._arena.address == self._arena_address
        if not fits or budget.held + self._bytes > budget.limit:
            return None
        table = self._segment.table
        addresses = []
        for name, dtype, shape, _ in self._inputs:
            array = given.get(name)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return None
            if array.flags.num & _FLAGS != _FLAGS:
                return None
            addresses.append(array.__array_interface__["data"][0])
        for address, (_, _, _, places) in zip(addresses, self._inputs):
            for position, offset in places:
                table[position] = address + offset
        answers: "Dict[str, np.ndarray[Any, Any]]" = {}
        for name, dtype, shape, count, room, places in self._outputs:
            raw = np.empty(count + room, dtype)
            address = raw.__array_interface__["data"][0]
            skip = -address % ALIGNMENT
            address += skip
            first = skip // dtype.itemsize
            answers[name] = raw[first : first + count].reshape(shape)
            for position, offset in places:
                table[position] = address + offset
        self._segment.launch(self._pool)
        return answers
