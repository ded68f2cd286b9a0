"""``if`` and ``loop``: programs inside of programs, whose memory and plans last from one execution to the next."""

from __future__ import annotations

import ctypes
from typing import Any, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np

from dhc_runtime.dtypes import storage_dtype
from dhc_runtime.errors import ModelError, ShapeError
from dhc_runtime.executor import Context, Executor, Frame, Memory, Target, byte_count
from dhc_runtime.memory import Block, Budget, aligned_bytes
from dhc_runtime.program import If, Loop, Scan

__all__ = ["IfRunner", "LoopRunner"]


def _view(address: int, shape: Sequence[int], dtype: str) -> "np.ndarray[Any, Any]":
    """An array over memory that somebody else owns."""
    size = byte_count(shape, dtype)
    if size == 0:
        return np.zeros(tuple(shape), dtype=storage_dtype(dtype))
    raw: Any = (ctypes.c_uint8 * size).from_address(address)
    flat: "np.ndarray[Any, Any]" = np.frombuffer(raw, dtype=storage_dtype(dtype))
    return flat.reshape(tuple(shape))


class IfRunner:
    """Executes an ``if`` item.

    Args:
        item: the item.
        context: what all programs of the session share.
        known: symbols that are known where the item stands.
        where: what to call it in messages.
    """

    def __init__(self, item: If, context: Context, known: FrozenSet[str], where: str) -> None:
        self._item = item
        self._then = Executor(item.then_program, context, known, where + ", then")
        self._else = Executor(item.else_program, context, known, where + ", else")

    def run(self, frame: Frame) -> None:
        """Executes the branch that the condition selects; its outputs go straight to the results."""
        item = self._item
        taken = frame.read_bool(item.cond)
        branch, arguments = (self._then, item.then_args) if taken else (self._else, item.else_args)
        targets = [frame.target(buffer) for buffer in item.results]
        values = branch.execute(frame.symbols, [frame.value(buffer) for buffer in arguments], targets)
        frame.finish(item.results, values, item.bind, item.node)

    def release(self) -> None:
        """Frees the memory of both branches."""
        self._then.release()
        self._else.release()


class _Stack:
    """Collects the elements of one scan output, each written by the body straight to its place.

    Args:
        target: where the whole result goes.
        scan: axis and direction.
        dtype: element type.
        count: the number of iterations if it is known, else None.
        budget: what elements count against that are collected before they go to their place.
    """

    def __init__(self, target: Target, scan: Scan, dtype: str, count: Optional[int], budget: Budget) -> None:
        self._target = target
        self._budget = budget
        self._scan = scan
        self._dtype = dtype
        # Without knowing the number of iterations, or with an order that is not that of memory, elements are collected
        # first.
        self._direct = count if scan.axis == 0 and not scan.reverse else None
        self._size: Optional[int] = None
        self._shape: Tuple[int, ...] = ()
        self._base = 0
        self._held: Optional["np.ndarray[Any, np.dtype[np.uint8]]"] = None
        self._count = 0

    def ensure(self, size: int) -> int:
        """The place for the next element."""
        if self._size is None:
            self._size = size
            if self._direct is not None:
                self._base = self._target.ensure(size * self._direct)
            else:
                self._held = self._taken(max(16 * size, 1))
        elif size != self._size:
            raise ShapeError("A loop stacks elements of different sizes ({} and {} bytes)".format(self._size, size))
        if self._held is None:
            return self._base + self._count * size
        if (self._count + 1) * size > self._held.size:
            before = self._held
            grown = self._taken(2 * before.size)
            grown[: self._count * size] = before[: self._count * size]
            self._held = grown
            self._budget.give(before.size)
        return int(self._held.__array_interface__["data"][0]) + self._count * size

    def _taken(self, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        self._budget.take(size)
        try:
            return aligned_bytes(size)
        except BaseException:
            self._budget.give(size)
            raise

    def release(self) -> None:
        """Frees what was collected."""
        if self._held is not None:
            self._budget.give(self._held.size)
            self._held = None

    def pushed(self, shape: Tuple[int, ...]) -> None:
        """The body has written the element."""
        if self._count and shape != self._shape:
            raise ShapeError("A loop stacks elements of the shapes {} and {}".format(list(self._shape), list(shape)))
        self._shape = shape
        self._count += 1

    def finish(self, declared: Sequence[Optional[int]]) -> Memory:
        """Moves what was collected to the result."""
        axis = self._scan.axis
        if self._count == 0:
            # Nothing tells the shape of an element: dims that the model does not fix are empty.
            shape = tuple([0 if i == axis or dim is None else dim for i, dim in enumerate(declared)])
            return Memory(self._target.ensure(0), shape)
        if axis > len(self._shape):
            raise ShapeError("A loop stacks elements of {} dimensions along axis {}".format(len(self._shape), axis))
        shape = self._shape[:axis] + (self._count,) + self._shape[axis:]
        if self._held is None:
            return Memory(self._base, shape)
        size = (self._size or 0) * self._count
        address = self._target.ensure(size)
        stacked = self._held[:size].view(storage_dtype(self._dtype)).reshape((self._count,) + self._shape)
        if self._scan.reverse:
            stacked = stacked[::-1]
        if size:
            _view(address, shape, self._dtype)[...] = np.moveaxis(stacked, 0, axis)
        return Memory(address, shape)


class _Slices:
    """Gives the body one slice of a scan input for each iteration."""

    def __init__(self, frame: Frame, scan: Scan) -> None:
        value, dtype = frame.value(scan.buffer), frame.dtype(scan.buffer)
        if scan.axis >= len(value.shape):
            raise ShapeError(
                "A scan goes along axis {} of a value with {} dimensions".format(scan.axis, len(value.shape))
            )
        self.count = value.shape[scan.axis]
        self._shape = value.shape[: scan.axis] + value.shape[scan.axis + 1 :]
        self._size = byte_count(self._shape, dtype)
        self._reverse = scan.reverse
        self._address = value.address
        if scan.axis:
            # The slices of an inner axis are scattered in memory: one copy puts each in one piece.
            self._copy = np.ascontiguousarray(np.moveaxis(_view(value.address, value.shape, dtype), scan.axis, 0))
            self._address = int(self._copy.__array_interface__["data"][0])

    def at(self, iteration: int) -> Memory:
        """The slice for an iteration."""
        index = self.count - 1 - iteration if self._reverse else iteration
        return Memory(self._address + index * self._size, self._shape)


class LoopRunner:
    """Executes a ``loop`` item: a counted loop, a while loop, or a scan.

    Args:
        item: the item.
        context: what all programs of the session share.
        known: symbols that are known where the item stands.
        where: what to call it in messages.
    """

    def __init__(self, item: Loop, context: Context, known: FrozenSet[str], where: str) -> None:
        self._item = item
        self._budget = context.budget
        self._body = Executor(item.body, context, known, where + ", body")
        # A body reads the carried values of one set of blocks and writes those of the other.
        self._carry = [(Block(context.budget), Block(context.budget)) for _ in item.carried]
        self._iteration = np.zeros(1, dtype=np.int64)
        self._flag = np.zeros(64, dtype=np.uint8)
        self._continue = Block(context.budget)
        # ONNX lets the counter and the condition be of shape [] or [1].
        ports = item.body.inputs
        iteration_shape, flag_shape = (tuple([1] * len(port.shape)) for port in ports[:2])
        self._counter = Memory(int(self._iteration.__array_interface__["data"][0]), iteration_shape)
        self._condition = Memory(int(self._flag.__array_interface__["data"][0]), flag_shape)

    def _trip_count(self, frame: Frame, slices: Sequence[_Slices]) -> Optional[int]:
        if slices:
            if len({part.count for part in slices}) > 1:
                raise ShapeError("The scanned inputs have different lengths", self._item.node or None)
            return slices[0].count
        return None if self._item.trip is None else max(frame.read_i64(self._item.trip), 0)

    def run(self, frame: Frame) -> None:
        """Executes the loop."""
        item = self._item
        slices = [_Slices(frame, scan) for scan in item.scan_inputs]
        trip = self._trip_count(frame, slices)
        going = True if item.cond is None else frame.read_bool(item.cond)
        fixed_trip = trip if item.cond is None else None
        carried = [frame.value(buffer) for buffer in item.carried]
        captures = [frame.value(buffer) for buffer in item.captures]
        stacks = [
            _Stack(frame.target(scan.buffer), scan, frame.dtype(scan.buffer), fixed_trip, self._budget)
            for scan in item.scans
        ]
        try:
            self._iterate(frame, slices, carried, captures, stacks, trip, going)
        finally:
            for stack in stacks:
                stack.release()

    def _iterate(
        self,
        frame: Frame,
        slices: Sequence[_Slices],
        carried: Sequence[Memory],
        captures: Sequence[Memory],
        stacks: Sequence[_Stack],
        trip: Optional[int],
        going: bool,
    ) -> None:
        item = self._item
        count = len(carried)
        targets: List[List[Target]] = [
            [self._continue, *[pair[side] for pair in self._carry], *stacks] for side in (0, 1)
        ]
        iteration = 0
        while going and (trip is None or iteration < trip):
            self._iteration[0] = iteration
            self._flag[0] = going
            inputs = [self._counter, self._condition, *carried, *[part.at(iteration) for part in slices], *captures]
            values = self._body.execute(frame.symbols, inputs, targets[iteration & 1])
            if item.cond is not None:
                going = bool(ctypes.c_uint8.from_address(values[0].address).value)
            carried = values[1 : 1 + count]
            for stack, value in zip(stacks, values[1 + count :]):
                stack.pushed(value.shape)
            iteration += 1
        self._hand_over(frame, carried, stacks)

    def _hand_over(self, frame: Frame, carried: Sequence[Memory], stacks: Sequence[_Stack]) -> None:
        item = self._item
        finals = []
        for buffer, value in zip(item.results, carried):
            size = byte_count(value.shape, frame.dtype(buffer))
            address = frame.target(buffer).ensure(size)
            ctypes.memmove(address, value.address, size)
            finals.append(Memory(address, value.shape))
        for scan, stack in zip(item.scans, stacks):
            finals.append(stack.finish(frame.declared_shape(scan.buffer)))
        if any(len(value.shape) > 64 for value in finals):
            raise ModelError("A result of a loop has too many dimensions", item.node or None)
        frame.finish(item.results, finals, item.bind, item.node)

    def release(self) -> None:
        """Frees the memory of the body and of the carried values."""
        self._body.release()
        self._continue.release()
        for pair in self._carry:
            for block in pair:
                block.release()
