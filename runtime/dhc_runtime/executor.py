"""Executes one program: binds sizes, plans and holds memory, runs native segments, and hands control flow on."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from dhc_runtime.arena import plan_arena
from dhc_runtime.dims import bind_shapes, evaluate, evaluate_shape
from dhc_runtime.direct_run import DirectRun
from dhc_runtime.dtypes import itemsize
from dhc_runtime.errors import ArtifactError, ModelError, ShapeError
from dhc_runtime.memory import Block, Budget, FixedTarget
from dhc_runtime.native_segment import NativeSegment, Recorder
from dhc_runtime.program import Bind, Copy, If, Item, Kernel, Loop, Program, SymbolBinding
from dhc_runtime.staging import Segment, analyse
from dhc_runtime.thread_pool import ThreadPool

__all__ = ["Context", "Executor", "Memory", "Result", "byte_count"]

CACHED_SIZES = 16
"""For how many combinations of sizes a program keeps its plan."""

_MAX_SIZE = (1 << 62) - 1


class Memory(NamedTuple):
    """A value that already lies in memory: where, and its shape."""

    address: int
    shape: Tuple[int, ...]


Result = Memory
Target = Any
"""Where a result goes: an object with ``ensure(bytes) -> address`` (`Block`, `FixedTarget`, or a stack of a loop)."""


class Context:
    """What all programs of a session share.

    Args:
        pool: runs native step lists.
        function: gives the address of a compiled function, or raises ArtifactError.
        constants: address and bytes of each constant.
        budget: limits memory.
    """

    def __init__(
        self, pool: ThreadPool, function: Callable[[str], int], constants: Mapping[str, Tuple[int, int]], budget: Budget
    ) -> None:
        self.pool = pool
        self.function = function
        self.constants = constants
        self.budget = budget
        self.recorder: Optional[Recorder] = None


class _Instance:
    """A stage with all sizes known: memory plan and native segments."""

    __slots__ = ("arena_size", "offsets", "operations", "output_sizes", "places")

    def __init__(self) -> None:
        self.offsets: Dict[int, int] = {}
        self.arena_size = 0
        self.output_sizes: List[Tuple[int, int, int]] = []
        self.operations: List[Union[NativeSegment, int]] = []
        self.places: Dict[int, Tuple[int, int, int]] = {}


def byte_count(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a contiguous array.

    Raises:
        ShapeError: a dim is negative.
    """
    size = itemsize(dtype)
    for dim in shape:
        if dim < 0:
            raise ShapeError("A shape of {} cannot be".format(list(shape)))
        size *= dim
    return size


class Executor:
    """Runs one program, again and again; not reentrant.

    Args:
        program: what to run.
        context: what all programs of the session share.
        outer: symbols that the enclosing program knows.
        where: what to call the program in messages.

    Raises:
        ArtifactError: the program does not fit together with the code or the constants.
    """

    def __init__(self, program: Program, context: Context, outer: FrozenSet[str], where: str) -> None:
        from dhc_runtime.control_flow import IfRunner, LoopRunner

        self.program = program
        self.context = context
        self._where = where
        self._staging = analyse(program, outer, where)
        self._names = [port.name for port in program.inputs]
        self._shapes = [port.shape for port in program.inputs]
        self._input_ids = np.asarray([port.buffer for port in program.inputs], dtype=np.intp)
        self._output_of = {port.buffer: number for number, port in enumerate(program.outputs)}
        self._functions = self._resolve_functions()
        self.addresses = np.zeros(len(program.buffers) + len(self._staging.stages), dtype=np.uint64)
        self._place_constants()
        self._arenas = [Block(context.budget, lasting=True) for _ in self._staging.stages]
        self._blocks: Dict[int, Block] = {}
        self._bindings: "OrderedDict[Any, Dict[str, int]]" = OrderedDict()
        self._instances: List["OrderedDict[Tuple[int, ...], _Instance]"] = [OrderedDict() for _ in self._staging.stages]
        self._runners: Dict[int, Union[IfRunner, LoopRunner]] = {}
        for index, item in enumerate(program.items):
            place = "{}, item {}".format(where, index)
            known = self._staging.item_known[index]
            if isinstance(item, If):
                self._runners[index] = IfRunner(item, context, known, place)
            elif isinstance(item, Loop):
                self._runners[index] = LoopRunner(item, context, known, place)

    def _resolve_functions(self) -> Dict[int, int]:
        functions: Dict[int, int] = {}
        missing = []
        for index, item in enumerate(self.program.items):
            if isinstance(item, Kernel):
                try:
                    functions[index] = self.context.function(item.symbol)
                except ArtifactError:
                    missing.append(item.symbol)
        if missing:
            raise ArtifactError(
                "The code lacks functions: {}".format(", ".join(sorted(set(missing))[:20])), self._where
            )
        return functions

    def _place_constants(self) -> None:
        for index, buffer in enumerate(self.program.buffers):
            if buffer.kind != "const":
                continue
            found = self.context.constants.get(buffer.constant)
            if found is None:
                raise ArtifactError("The weights lack the tensor {!r}".format(buffer.constant), self._where)
            address, size = found
            shape = buffer.shape
            if (
                not all(isinstance(dim, int) for dim in shape)
                or byte_count(evaluate_shape(shape, {}), buffer.dtype) != size
            ):
                raise ArtifactError(
                    "The tensor {!r} of the weights has a wrong size".format(buffer.constant), self._where
                )
            self.addresses[index] = address

    # ------------------------------------------------------------------------------------------------ planning

    def _bind(self, outer: Mapping[str, int], inputs: Sequence[Memory]) -> Dict[str, int]:
        key = (tuple([outer[name] for name in self._staging.inherited]), tuple([value.shape for value in inputs]))
        found = self._bindings.get(key)
        if found is not None:
            self._bindings.move_to_end(key)
            return found
        symbols = {name: outer[name] for name in self._staging.inherited}
        problems = bind_shapes(self._names, self._shapes, key[1], symbols)
        if problems:
            raise ShapeError(
                "\n".join(problems) if len(problems) > 1 else problems[0],
                hint="Give arrays of the shapes that are expected",
            )
        self._bindings[key] = symbols
        while len(self._bindings) > CACHED_SIZES:
            self._bindings.popitem(last=False)
        return symbols

    def _instance(self, number: int, symbols: Mapping[str, int], earlier: Optional[_Instance]) -> _Instance:
        stage = self._staging.stages[number]
        key = tuple([symbols[name] for name in stage.symbols])
        cache = self._instances[number]
        found = cache.get(key)
        if found is not None:
            cache.move_to_end(key)
            return found
        instance = self._plan(number, symbols, earlier)
        cache[key] = instance
        while len(cache) > CACHED_SIZES:
            cache.popitem(last=False)
        return instance

    def _size(self, buffer: int, symbols: Mapping[str, int]) -> int:
        expression = self.program.buffers[buffer].size
        size = evaluate(expression if expression is not None else 0, symbols)
        if size < 0:
            raise ShapeError(
                "A buffer would have {} bytes".format(size), hint="The inputs are too small for this model"
            )
        return size

    def _plan(self, number: int, symbols: Mapping[str, int], earlier: Optional[_Instance]) -> _Instance:
        stage = self._staging.stages[number]
        for index in stage.constraints:
            left, right, message = self.program.constraints[index]
            values = evaluate(left, symbols), evaluate(right, symbols)
            if values[0] != values[1]:
                # Inequalities are written as equalities: max(a, b) == b, min(a, 0) == 0.
                inequality = right == 0 or (isinstance(left, list) and left[0] == "max")
                form = "{}: this does not hold" if inequality else "{}: {} and {} must be equal"
                raise ShapeError(form.format(message.rstrip(". "), *values), hint="Check the shapes of the inputs")
        instance = _Instance()
        buffers = self.program.buffers
        sizes = [self._size(buffer, symbols) for buffer in stage.arena]
        outputs = [(o, self.program.outputs[o].buffer) for o in stage.outputs]
        instance.output_sizes = [(o, buffer, self._size(buffer, symbols)) for o, buffer in outputs]
        # The plan is made only for sizes that can be run at all: it takes time and the check does not.
        self.context.budget.require(max(max(sizes, default=0) - self._arenas[number].capacity, 0))
        first = [buffers[buffer].first for buffer in stage.arena]
        offsets, instance.arena_size = plan_arena(sizes, first, [buffers[buffer].last for buffer in stage.arena])
        if earlier is not None:
            instance.offsets.update(earlier.offsets)
        instance.offsets.update(zip(stage.arena, offsets))

        def locate(buffer: int) -> Tuple[int, int, int]:
            return self._locate(buffer, instance, symbols)

        for operation in stage.operations:
            if isinstance(operation, Segment):
                span = range(operation.start, operation.stop)
                kernels = [
                    item for item in self.program.items[operation.start : operation.stop] if isinstance(item, Kernel)
                ]
                instance.operations.append(NativeSegment(kernels, [self._functions[i] for i in span], symbols, locate))
            else:
                instance.operations.append(operation)
        return instance

    def _locate(self, buffer: int, instance: _Instance, symbols: Mapping[str, int]) -> Tuple[int, int, int]:
        """Slot of the owner in `addresses`, byte offset, and bytes (0 if not known)."""
        found = instance.places.get(buffer)
        if found is not None:
            return found
        root, expressions = self._staging.places[buffer]
        offset = sum([evaluate(expression, symbols) for expression in expressions])
        size = self._known_size(buffer, symbols)
        whole = self._known_size(root, symbols)
        if root != buffer and whole is not None and not 0 <= offset <= offset + (size or 0) <= whole:
            raise ArtifactError(
                "Buffer {} lies outside of buffer {}".format(buffer, root), self._where, "Compile the model again"
            )
        slot = root
        if root in instance.offsets:
            slot = len(self.program.buffers) + self._staging.buffer_stage[root]
            offset += instance.offsets[root]
        instance.places[buffer] = (slot, offset, size or 0)
        return instance.places[buffer]

    def _known_size(self, buffer: int, symbols: Mapping[str, int]) -> Optional[int]:
        record = self.program.buffers[buffer]
        try:
            if record.size is not None:
                return evaluate(record.size, symbols)
            return byte_count(evaluate_shape(record.shape, symbols), record.dtype)
        except ArtifactError:
            return None

    # ------------------------------------------------------------------------------------------------ execution

    def execute(self, outer: Mapping[str, int], inputs: Sequence[Memory], targets: Sequence[Target]) -> List[Result]:
        """Runs the program.

        Args:
            outer: symbols of the enclosing program.
            inputs: where each input lies, and its shape.
            targets: where each output goes.

        Returns:
            Where each output lies, and its shape.

        Raises:
            ShapeError: the inputs do not fit.
            ModelError: a value is not allowed, such as an index out of bounds.
            ResourceError: not enough memory.
        """
        symbols = self._bind(outer, inputs)
        stages = self._staging.stages
        if len(stages) > 1:
            symbols = dict(symbols)
        addresses = self.addresses
        if len(inputs):
            addresses[self._input_ids] = [value.address for value in inputs]
        instance: Optional[_Instance] = None
        for number in range(len(stages)):
            instance = self._instance(number, symbols, instance)
            self._provide(number, instance, targets)
            for operation in instance.operations:
                if isinstance(operation, NativeSegment):
                    operation.run(addresses, self.context.pool, self.context.recorder)
                else:
                    self._run_item(operation, instance, symbols, targets)
        results = []
        for port in self.program.outputs:
            results.append(Memory(int(addresses[port.buffer]), evaluate_shape(port.shape, symbols)))
        return results

    def direct(
        self, arrays: "Sequence[np.ndarray[Any, Any]]", results: "Sequence[np.ndarray[Any, Any]]"
    ) -> Optional[DirectRun]:
        """The short way for runs like the last one, if there is one: the program is one list of kernels.

        Args:
            arrays: the inputs of the last run.
            results: its outputs.
        """
        program = self.program
        last = [instances[next(reversed(instances))] for instances in self._instances if instances]
        if len(last) != 1 or len(self._staging.stages) != 1 or len(last[0].operations) != 1:
            return None
        segment = last[0].operations[0]
        if not isinstance(segment, NativeSegment) or not DirectRun.serves(program.inputs, program.outputs, results):
            return None
        return DirectRun(
            segment,
            self.context.pool,
            self._arenas[0],
            self.context.budget,
            [(port, array.shape, port.buffer) for port, array in zip(program.inputs, arrays)],
            [(port, array.shape, port.buffer) for port, array in zip(program.outputs, results)],
        )

    def _provide(self, number: int, instance: _Instance, targets: Sequence[Target]) -> None:
        arena = self._arenas[number]
        if instance.arena_size > arena.capacity:
            outputs = sum([size for _, _, size in instance.output_sizes])
            self.context.budget.require(instance.arena_size - arena.capacity + outputs)
        if instance.arena_size:
            self.addresses[len(self.program.buffers) + number] = arena.ensure(instance.arena_size)
        for output, buffer, size in instance.output_sizes:
            self.addresses[buffer] = targets[output].ensure(size)

    def _run_item(self, index: int, instance: _Instance, symbols: Dict[str, int], targets: Sequence[Target]) -> None:
        item: Item = self.program.items[index]
        frame = Frame(self, instance, symbols, targets)
        if isinstance(item, Copy):
            source, target = self.program.buffers[item.source], self.program.buffers[item.target]
            size = byte_count(evaluate_shape(target.shape, symbols), target.dtype)
            # The source may be larger: a buffer for the most that a result can be, of which a part came to be used.
            if size > byte_count(evaluate_shape(source.shape, symbols), source.dtype):
                raise ArtifactError("A copy reads beyond its source", self._where, "Compile the model again")
            ctypes.memmove(frame.address(item.target), frame.address(item.source), size)
        elif isinstance(item, Bind):
            frame.bind_value(item)
        else:
            self._runners[index].run(frame)

    def block(self, buffer: int) -> Block:
        """Memory of its own for a result whose size only the run tells; kept for the next run."""
        if buffer not in self._blocks:
            self._blocks[buffer] = Block(self.context.budget)
        return self._blocks[buffer]

    def release(self) -> None:
        """Frees arenas and other memory; the next run takes it again."""
        for block in self._arenas + list(self._blocks.values()):
            block.release()
        for runner in self._runners.values():
            runner.release()


class Frame:
    """One execution of a program, as control flow sees it."""

    __slots__ = ("_executor", "_instance", "_targets", "symbols")

    def __init__(
        self, executor: Executor, instance: _Instance, symbols: Dict[str, int], targets: Sequence[Target]
    ) -> None:
        self._executor = executor
        self._instance = instance
        self._targets = targets
        self.symbols = symbols

    def address(self, buffer: int) -> int:
        """Where a buffer lies now."""
        slot, offset, _ = self._executor._locate(buffer, self._instance, self.symbols)
        return int(self._executor.addresses[slot]) + offset

    def value(self, buffer: int) -> Memory:
        """A buffer with its shape."""
        return Memory(self.address(buffer), evaluate_shape(self._executor.program.buffers[buffer].shape, self.symbols))

    def dtype(self, buffer: int) -> str:
        """The element type of a buffer."""
        return self._executor.program.buffers[buffer].dtype

    def read_i64(self, buffer: int, index: int = 0) -> int:
        """An element of an i64 buffer."""
        return int(ctypes.c_int64.from_address(self.address(buffer) + 8 * index).value)

    def read_bool(self, buffer: int) -> bool:
        """The value of a bool scalar."""
        return bool(ctypes.c_uint8.from_address(self.address(buffer)).value)

    def bind_value(self, item: Bind) -> None:
        """Carries out a ``bind`` item.

        Raises:
            ModelError: the value is negative or larger than it may be.
        """
        _, _, size = self._executor._locate(item.buffer, self._instance, self.symbols)
        if size and 8 * (item.element + 1) > size:
            raise ArtifactError(
                "A size is read from outside of its buffer", item.node or None, "Compile the model again"
            )
        value = self.read_i64(item.buffer, item.element)
        limit = None if item.maximum is None else evaluate(item.maximum, self.symbols)
        limit = _MAX_SIZE if limit is None else limit
        if not 0 <= value <= min(limit, _MAX_SIZE):
            allowed = "0 or more" if value < 0 else "at most {}".format(limit)
            raise ModelError(
                "The size {} became {}; it must be {}".format(item.symbol, value, allowed), item.node or None
            )
        self.symbols[item.symbol] = value

    def target(self, buffer: int) -> Target:
        """Where a result of control flow goes."""
        executor = self._executor
        if executor._staging.buffer_stage[buffer] < 0:
            output = executor._output_of.get(buffer)
            return executor.block(buffer) if output is None else self._targets[output]
        _, _, size = executor._locate(buffer, self._instance, self.symbols)
        return FixedTarget(self.address(buffer), size, "The result of control flow")

    def declared_shape(self, buffer: int) -> Tuple[Optional[int], ...]:
        """The shape of a buffer as far as it is known; None for a dim that is not."""
        dims: List[Optional[int]] = []
        for dim in self._executor.program.buffers[buffer].shape:
            try:
                dims.append(evaluate(dim, self.symbols))
            except ArtifactError:
                dims.append(None)
        return tuple(dims)

    def finish(
        self, results: Sequence[int], values: Sequence[Memory], bindings: Sequence[SymbolBinding], node: str
    ) -> None:
        """Takes over the results of control flow: their memory, and the symbols that their shapes bind.

        Raises:
            ShapeError: a result has another shape than the model declares.
        """
        executor = self._executor
        for buffer, value in zip(results, values):
            if executor._staging.buffer_stage[buffer] < 0:
                executor.addresses[buffer] = value.address
        for symbol, result, axis in bindings:
            if axis >= len(values[result].shape):
                raise ShapeError("A result of control flow has too few dimensions", node or None)
            found = values[result].shape[axis]
            if self.symbols.setdefault(symbol, found) != found:
                raise ShapeError("Results of control flow disagree on the size {}".format(symbol), node or None)
        for buffer, value in zip(results, values):
            declared = self.declared_shape(buffer)
            fits = len(declared) == len(value.shape) and all(d is None or d == s for d, s in zip(declared, value.shape))
            if not fits:
                raise ShapeError(
                    "A result of control flow has the shape {} where the model declares {}".format(
                        list(value.shape), [d if d is not None else "?" for d in declared]
                    ),
                    node or None,
                )
