"""When each size of a program is known: the part of planning that needs no values.

Some symbols are bound only while a program runs (the number of non-zero elements, the shape that a loop leaves). Each
item that binds symbols ends a *stage*. The memory of a buffer is planned in the first stage in which its size is known,
together with the other buffers of that stage.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Union

from dhc_runtime.dims import Expr, bindable, symbols_of
from dhc_runtime.errors import ArtifactError
from dhc_runtime.program import Bind, Copy, If, Item, Kernel, Loop, Program

__all__ = ["Operation", "Place", "Segment", "Stage", "Staging", "analyse"]


class Place(NamedTuple):
    """Where a buffer lies: the buffer that owns the memory, and the byte offsets on the way (to be added)."""

    root: int
    offsets: Tuple[Expr, ...]


class Segment(NamedTuple):
    """A maximal run of kernel items: positions in the list of items, end excluded."""

    start: int
    stop: int


Operation = Union[Segment, int]
"""A step of execution: a segment of kernels, or the position of another item."""


class Stage(NamedTuple):
    """A part of a program with the same known symbols.

    Attributes:
        operations: what to execute, in order.
        arena: the arena buffers whose sizes become known at its start.
        outputs: numbers of the outputs whose sizes become known at its start.
        constraints: numbers of the constraints to check at its start.
        symbols: the symbols on which sizes, offsets and parameters up to this stage depend, sorted.
    """

    operations: Tuple[Operation, ...]
    arena: Tuple[int, ...]
    outputs: Tuple[int, ...]
    constraints: Tuple[int, ...]
    symbols: Tuple[str, ...]


class Staging(NamedTuple):
    """The stages of a program.

    Attributes:
        stages: at least one.
        places: where each buffer lies.
        buffer_stage: for each buffer that owns memory, the stage of its allocation; -1 for those that the run itself
            brings (inputs, constants, and results whose size only the run tells).
        inherited: symbols whose values come from the enclosing program, sorted.
        item_known: for each item, the symbols known when it starts.
    """

    stages: Tuple[Stage, ...]
    places: Tuple[Place, ...]
    buffer_stage: Tuple[int, ...]
    inherited: Tuple[str, ...]
    item_known: Tuple[FrozenSet[str], ...]


def _places(program: Program, where: str) -> Tuple[Place, ...]:
    places = []
    for index in range(len(program.buffers)):
        offsets: List[Expr] = []
        current, steps = index, 0
        while program.buffers[current].kind == "alias":
            offset = program.buffers[current].offset
            if offset != 0:
                offsets.append(offset)
            current = program.buffers[current].of
            steps += 1
            if steps > len(program.buffers):
                raise ArtifactError("Buffer {} is an alias of itself".format(index), where)
        places.append(Place(current, tuple(offsets)))
    return tuple(places)


def _bound_by(item: Item) -> List[str]:
    if isinstance(item, Bind):
        return [item.symbol]
    if isinstance(item, (If, Loop)):
        return [binding.symbol for binding in item.bind]
    return []


def uses_of(item: Item) -> List[int]:
    """All buffers that an item reads or writes."""
    if isinstance(item, Kernel):
        return list(item.buffers)
    if isinstance(item, Bind):
        return [item.buffer]
    if isinstance(item, Copy):
        return [item.source, item.target]
    if isinstance(item, If):
        return [item.cond, *item.then_args, *item.else_args, *item.results]
    optional = [buffer for buffer in (item.trip, item.cond) if buffer is not None]
    return optional + [*item.carried, *item.captures, *item.results] + [scan.buffer for scan in item.scan_inputs]


def _symbols(expressions: Tuple[Expr, ...]) -> FrozenSet[str]:
    return frozenset().union(*(symbols_of(expression) for expression in expressions))


def _nested_needs(program: Program) -> FrozenSet[str]:
    """Every symbol that a program or a program inside of it mentions."""
    found = set()  # type: set[str]
    for port in program.inputs + program.outputs:
        found |= _symbols(port.shape)
    for buffer in program.buffers:
        found |= _symbols(buffer.shape + (buffer.offset,))
        if buffer.size is not None:
            found |= symbols_of(buffer.size)
    for left, right, _ in program.constraints:
        found |= symbols_of(left) | symbols_of(right)
    for item in program.items:
        if isinstance(item, Kernel):
            found |= _symbols(item.params)
        elif isinstance(item, Bind) and item.maximum is not None:
            found |= symbols_of(item.maximum)
        elif isinstance(item, If):
            found |= _nested_needs(item.then_program) | _nested_needs(item.else_program)
        elif isinstance(item, Loop):
            found |= _nested_needs(item.body)
    return frozenset(found)


def analyse(program: Program, outer: FrozenSet[str], where: str) -> Staging:
    """Finds the stages of a program and checks that every size is known when it is needed.

    A symbol that the program lists as its own takes its value from the shapes of the inputs, even if the enclosing
    program has one of the same name; all other symbols are those of the enclosing program.

    Args:
        program: the program.
        outer: symbols that the enclosing program knows.
        where: what to call the program in messages.

    Raises:
        ArtifactError: a size depends on something that is not known by then, or an arena buffer is used outside of its
            lifetime.
    """
    shapes = [port.shape for port in program.inputs]
    own = frozenset(program.symbols)
    shadowed = bindable(shapes, outer - own)
    inherited = (outer - own) | (outer & own - shadowed)
    inherited &= _nested_needs(program)
    known = bindable(shapes, inherited)
    for port in program.inputs:
        missing = _symbols(port.shape) - known
        if missing:
            raise ArtifactError(
                "The shape of input {!r} does not determine {}".format(port.name, ", ".join(sorted(missing))), where
            )
    places = _places(program, where)
    knowledge = [known]
    item_stage: List[int] = []
    for item in program.items:
        item_stage.append(len(knowledge) - 1)
        bound = _bound_by(item)
        if bound:
            known = known | frozenset(bound)
            knowledge.append(known)

    return _Builder(program, places, knowledge, item_stage, where).build(inherited)


class _Builder:
    """Collects the stages of one program."""

    def __init__(
        self,
        program: Program,
        places: Tuple[Place, ...],
        knowledge: List[FrozenSet[str]],
        item_stage: List[int],
        where: str,
    ) -> None:
        self.program = program
        self.places = places
        self.knowledge = knowledge
        self.item_stage = item_stage
        self.where = where
        self.buffer_stage = self._buffer_stages()

    def stage_of(self, symbols: FrozenSet[str]) -> int:
        """The first stage in which all these symbols are known; one behind the last if there is none."""
        for number, available in enumerate(self.knowledge):
            if symbols <= available:
                return number
        return len(self.knowledge)

    def _fail(self, index: int, message: str) -> ArtifactError:
        item = self.program.items[index]
        return ArtifactError(
            message, "{}, item {} {}".format(self.where, index, item.node).strip(), "Compile the model again"
        )

    def _buffer_stages(self) -> List[int]:
        results: Dict[int, int] = {}
        for index, item in enumerate(self.program.items):
            if isinstance(item, (If, Loop)):
                for result in item.results:
                    results[result] = self.item_stage[index]
        stages = []
        for index, buffer in enumerate(self.program.buffers):
            if buffer.kind not in ("arena", "output"):
                stages.append(-1)
                continue
            size = self.program.buffers[index].size
            number = len(self.knowledge) if size is None else self.stage_of(symbols_of(size))
            if index in results:
                stages.append(number if number <= results[index] else -1)
            elif number >= len(self.knowledge):
                raise ArtifactError(
                    "The size of buffer {} is never known".format(index), self.where, "Compile the model again"
                )
            else:
                stages.append(number)
        return stages

    def _check_uses(self) -> None:
        produced: Dict[int, int] = {}
        for index, item in enumerate(self.program.items):
            stage = self.item_stage[index]
            results = item.results if isinstance(item, (If, Loop)) else ()
            for result in results:
                if self.places[result].root != result:
                    raise self._fail(index, "A result of control flow must own its memory")
                produced.setdefault(result, index)
            for used in uses_of(item):
                root = self.places[used].root
                buffer = self.program.buffers[root]
                if buffer.kind in ("arena", "output", "dynamic"):
                    late = self.buffer_stage[root] > stage
                    if late or (self.buffer_stage[root] < 0 and root not in produced):
                        raise self._fail(index, "Buffer {} is used before its size is known".format(used))
                if buffer.kind == "arena" and not buffer.first <= index <= buffer.last:
                    raise self._fail(index, "Buffer {} is used outside of the lifetime of buffer {}".format(used, root))
                if self.stage_of(_symbols(self.places[used].offsets)) > stage:
                    raise self._fail(index, "The place of buffer {} is not known".format(used))
            self._check_types(index, item)
            written = self._written(item)
            for used in written:
                if self.program.buffers[self.places[used].root].kind in ("const", "input"):
                    raise self._fail(index, "Buffer {} is written, but it is an input or a constant".format(used))
            needed = self._item_symbols(item) - self.knowledge[stage]
            if needed:
                raise self._fail(index, "The size {} is not known here".format(", ".join(sorted(needed))))

    def _check_types(self, index: int, item: Item) -> None:
        """Values that the executor itself reads or writes must have the element types with which it does."""
        expected: List[Tuple[int, str]] = []
        if isinstance(item, Bind):
            expected = [(item.buffer, "i64")]
        elif isinstance(item, If):
            expected = [(item.cond, "bool")]
        elif isinstance(item, Loop):
            expected = [(item.trip, "i64")] if item.trip is not None else []
            expected += [(item.cond, "bool")] if item.cond is not None else []
            ports = item.body.inputs[:2] + item.body.outputs[:1]
            if [port.dtype for port in ports] != ["i64", "bool", "bool"]:
                raise self._fail(index, "The body of a loop needs an i64 counter and bool conditions")
        for buffer, dtype in expected:
            if self.program.buffers[buffer].dtype != dtype:
                raise self._fail(index, "Buffer {} must be {}".format(buffer, dtype))

    @staticmethod
    def _written(item: Item) -> Tuple[int, ...]:
        if isinstance(item, Copy):
            return (item.target,)
        return item.results if isinstance(item, (If, Loop)) else ()

    def _item_symbols(self, item: Item) -> FrozenSet[str]:
        if isinstance(item, Kernel):
            return _symbols(item.params)
        if isinstance(item, Bind):
            return symbols_of(item.maximum) if item.maximum is not None else frozenset()
        if isinstance(item, Copy):
            return _symbols(self.program.buffers[item.source].shape + self.program.buffers[item.target].shape)
        return frozenset()

    def build(self, inherited: FrozenSet[str]) -> Staging:
        self._check_uses()
        program = self.program
        constraint_stage = [
            self.stage_of(symbols_of(left) | symbols_of(right)) for left, right, _ in program.constraints
        ]
        if any(number >= len(self.knowledge) for number in constraint_stage):
            raise ArtifactError(
                "A constraint depends on sizes that are never known", self.where, "Compile the model again"
            )
        stages: List[Stage] = []
        symbols: FrozenSet[str] = frozenset()
        for number in range(len(self.knowledge)):
            arena = tuple(
                [b for b, s in enumerate(self.buffer_stage) if s == number and program.buffers[b].kind == "arena"]
            )
            outputs = tuple([o for o, port in enumerate(program.outputs) if self.buffer_stage[port.buffer] == number])
            constraints = tuple([c for c, s in enumerate(constraint_stage) if s == number])
            items = [i for i, s in enumerate(self.item_stage) if s == number]
            for index in constraints:
                symbols |= symbols_of(program.constraints[index][0]) | symbols_of(program.constraints[index][1])
            for buffer in arena + tuple([program.outputs[o].buffer for o in outputs]):
                size = program.buffers[buffer].size
                symbols |= symbols_of(size if size is not None else 0)
            for index in items:
                symbols |= self._item_symbols(program.items[index])
                for used in uses_of(program.items[index]):
                    symbols |= _symbols(self.places[used].offsets)
                    size = program.buffers[used].size
                    if size is not None:
                        symbols |= symbols_of(size) & self.knowledge[number]
            stages.append(Stage(_operations(program, items), arena, outputs, constraints, tuple(sorted(symbols))))
        known = tuple([self.knowledge[stage] for stage in self.item_stage])
        return Staging(tuple(stages), self.places, tuple(self.buffer_stage), tuple(sorted(inherited)), known)


def _operations(program: Program, items: List[int]) -> Tuple[Operation, ...]:
    operations: List[Operation] = []
    start: Optional[int] = None
    for index in items:
        if isinstance(program.items[index], Kernel):
            start = index if start is None else start
            continue
        if start is not None:
            operations.append(Segment(start, index))
            start = None
        operations.append(index)
    if start is not None:
        operations.append(Segment(start, items[-1] + 1))
    return tuple(operations)
