"""Turns the definitions of a group into statements: what is evaluated where, once, and only where it is safe.

A definition is evaluated in the scope that first needs it. What depends on outer loops alone, and is safe whatever the
inner loops do, moves out to them; a reduction moves out to the loops that its position depends on. A branch that reads
memory becomes an `If`, so that the branch not taken reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dhc.backends.loop import complex as complex_numbers
from dhc.backends.loop import functions
from dhc.backends.loop.complex import Pair
from dhc.backends.loop.expand import Definition, Expansion, Fold
from dhc.backends.loop.index import variables
from dhc.backends.loop.ir import Assign, Check, Declare, For, If, Let, Statement, Store
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, boolean, i64
from dhc.ir.scalar import ScalarExpr
from dhc.ir.symbols import Dim

Emitted = ScalarExpr | Pair


@dataclass
class Block:
    """A list of statements being written, and what has been evaluated in it.

    Attributes:
        conditional: the block may not run although the one around it does (a branch).
        known: emitted values by definition name, and by key for checked indices and random words.
        variables: loop variables and accumulators that live here.
    """

    conditional: bool = False
    statements: list[Statement] = field(default_factory=list)
    known: dict[Any, Any] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)


class Scheduler:
    """Writes the body of a kernel.

    Attributes:
        params: dims in the order in which they became kernel parameters.
    """

    def __init__(self, expansion: Expansion) -> None:
        self._expansion = expansion
        self.params: dict[Dim, str] = {}
        self._stack: list[Block] = [Block()]
        self._counter = 0
        self._wide_half = False

    @property
    def body(self) -> tuple[Statement, ...]:
        """Everything written so far."""
        return tuple(self._stack[0].statements)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def _add(self, statement: Statement) -> None:
        self._stack[-1].statements.append(statement)

    def _fresh(self) -> str:
        self._counter += 1
        return f"t{self._counter}"

    def let(self, value: ScalarExpr) -> ScalarExpr:
        """Names a value; see `functions.Writer`."""
        if isinstance(value, (s.Const, s.Var)):
            return value
        name = self._fresh()
        self._add(Let(name, value))
        return s.Var(name, value.dtype)

    def check(self, condition: ScalarExpr, code: int) -> None:
        """Makes the kernel return `code` unless the condition holds."""
        self._add(Check(condition, code))

    def repeat(self, count: int, initial: list[ScalarExpr], step: Callable[..., list[ScalarExpr]]) -> list[ScalarExpr]:
        """Runs a step a fixed number of times on mutable values."""
        names = [self._fresh() for _ in initial]
        for name, value in zip(names, initial, strict=True):
            self._add(Declare(name, value))
        held = [s.Var(name, value.dtype) for name, value in zip(names, initial, strict=True)]
        update = Assign(tuple(names), tuple(step(*held)))
        self._add(For(self._fresh(), s.const(count, i64), (update,), independent=False))
        return list(held)

    def param(self, dim: Dim) -> ScalarExpr:
        """A dim as a parameter of the kernel; numbers stay numbers."""
        if isinstance(dim, int):
            return s.const(dim, i64)
        name = self.params.setdefault(dim, f"n{len(self.params)}")
        return s.Var(name)

    @contextmanager
    def block(self, conditional: bool = False) -> Iterator[Block]:
        """An inner block; the caller adds the statement that holds it."""
        inner = Block(conditional)
        self._stack.append(inner)
        try:
            yield inner
        finally:
            self._stack.pop()

    @contextmanager
    def loop(
        self, var: str, extent: Dim | ScalarExpr, parallel: bool = False, independent: bool = True
    ) -> Iterator[None]:
        """A loop around what is written inside."""
        length = extent if isinstance(extent, ScalarExpr) else self.param(extent)
        with self.block() as inner:
            inner.variables.add(var)
            yield
        self._add(For(var, length, tuple(inner.statements), parallel, independent))

    @contextmanager
    def _level(self, depth: int) -> Iterator[None]:
        """Writes into an outer block for a while."""
        saved = self._stack
        self._stack = saved[: depth + 1]
        try:
            yield
        finally:
            self._stack = saved

    def bind(self, name: str, value: ScalarExpr) -> None:
        """Defines a loop variable by an expression (a collapsed index taken apart)."""
        self._add(Let(name, self.index(value)))
        self._stack[-1].variables.add(name)

    def hold(self, name: str, value: ScalarExpr) -> None:
        """Gives an accumulator that lives in memory its value for the current block."""
        self._add(Let(name, value))
        self._stack[-1].variables.add(name)

    def write(self, buffer: int, place: ScalarExpr, value: ScalarExpr) -> None:
        """Writes one element at an offset that is already a primitive."""
        emitted = self.emit(value)
        assert not isinstance(emitted, Pair), "accumulators in memory are real"
        self._add(Store(buffer, place, emitted))

    def mark(self, fold: Fold) -> None:
        """Notes that a reduction has been done: its accumulators have their final values in this block."""
        self._stack[-1].known[fold.name] = True

    def store(self, buffer: int, dtype: DType, offset: ScalarExpr, value: ScalarExpr) -> None:
        """Writes one element of a result."""
        emitted = self.emit(value)
        place = self.index(offset)
        if isinstance(emitted, Pair):
            twice = s.Binary(i64, "mul", place, s.const(2, i64))
            self._add(Store(buffer, twice, emitted.re))
            self._add(Store(buffer, s.Binary(i64, "add", twice, s.const(1, i64)), emitted.im))
            return
        if dtype in functions.HALF:
            inner = emitted.operand if isinstance(emitted, s.Cast) else None
            narrow = inner if isinstance(inner, s.Cast) and inner.dtype == dtype else s.Cast(dtype, emitted)
            self._add(Store(buffer, place, narrow))
            return
        self._add(Store(buffer, place, emitted))

    # ---- evaluating ------------------------------------------------------------------------------------------------

    def index(self, e: ScalarExpr) -> ScalarExpr:
        """Emits an index expression."""
        emitted = self.emit(e)
        assert not isinstance(emitted, Pair), "an index is an integer"
        return emitted

    def emit(self, e: ScalarExpr) -> Emitted:
        """The value of an expression in primitives; statements that it needs are written before."""
        if isinstance(e, s.Const):
            if e.dtype.kind == "c":
                return complex_numbers.literal(complex(e.value), e.dtype)
            return functions.literal(e)
        if isinstance(e, s.Size):
            return self.param(e.dim)
        if isinstance(e, s.Var):
            if e.name in self._expansion.definitions:
                return self._ensure(e.name)
            return s.Var(e.name, functions.register(e.dtype)) if e.dtype.kind != "c" else _pair_var(e)
        if isinstance(e, s.Load):
            return self._load(e)
        if isinstance(e, s.Select):
            return self._select(e)
        if isinstance(e, s.Unary):
            x = self.emit(e.operand)
            if isinstance(x, Pair):
                return complex_numbers.unary(self, e.function, x)
            return functions.unary(self, e.function, x, self._logical(e.operand.dtype))
        if isinstance(e, s.Binary):
            return self._binary(e)
        if isinstance(e, s.Cast):
            return self._cast(e)
        if isinstance(e, s.Bitcast):
            x = self.emit(e.operand)
            assert not isinstance(x, Pair), "complex numbers have no bitcast"
            return functions.bitcast(x, e.operand.dtype, e.dtype)
        if isinstance(e, s.Checked):
            return self._checked(e)
        assert isinstance(e, s.Philox), type(e).__name__
        return self._philox(e)

    def _logical(self, dtype: DType) -> DType:
        """Inside a reduction of half floats intermediate results keep the precision of f32."""
        return functions.register(dtype) if self._wide_half and dtype in functions.HALF else dtype

    def _load(self, e: s.Load) -> Emitted:
        offset = self.index(e.index[0])
        if e.dtype.kind == "c":
            part = complex_numbers.part_dtype(e.dtype)
            twice = s.Binary(i64, "mul", offset, s.const(2, i64))
            second = s.Binary(i64, "add", twice, s.const(1, i64))
            return Pair(s.Load(part, e.operand, (twice,)), s.Load(part, e.operand, (second,)))
        loaded = s.Load(e.dtype, e.operand, (offset,))
        held = functions.register(e.dtype)
        return s.Cast(held, loaded) if e.dtype in functions.HALF else s.Load(held, e.operand, (offset,))

    def _binary(self, e: s.Binary) -> Emitted:
        a, b = self.emit(e.left), self.emit(e.right)
        if isinstance(a, Pair) or isinstance(b, Pair):
            assert isinstance(a, Pair) and isinstance(b, Pair), "operands of one dtype"
            return complex_numbers.binary(self, e.function, a, b)
        if e.function == "complex":
            return Pair(a, b)
        trusted = e.left.dtype == i64 and self._expansion.ranges.is_index(e.right)
        return functions.binary(self, e.function, a, b, self._logical(e.left.dtype), trusted)

    def _cast(self, e: s.Cast) -> Emitted:
        x = self.emit(e.operand)
        source = e.operand.dtype
        if e.dtype.kind == "c":
            part = complex_numbers.part_dtype(e.dtype)
            if isinstance(x, Pair):
                own = complex_numbers.part_dtype(source)
                return Pair(functions.cast(self, x.re, own, part, False), functions.cast(self, x.im, own, part, False))
            return Pair(functions.cast(self, x, source, part, False), s.const(0.0, part))
        if isinstance(x, Pair):
            if e.dtype == boolean:
                return s.Binary(boolean, "or", x.re.ne(0.0), x.im.ne(0.0))
            x, source = x.re, complex_numbers.part_dtype(source)
        return functions.cast(self, x, source, self._logical(e.dtype), e.saturate)

    def _checked(self, e: s.Checked) -> ScalarExpr:
        index, extent = self.index(e.index), self.index(e.extent)
        key = ("checked", index, extent)
        found = self._lookup(key)
        if found is None:
            found = functions.index_of(self, index, extent)
            self._stack[-1].known[key] = found
        return found

    def _philox(self, e: s.Philox) -> ScalarExpr:
        key, counter = self.index(e.key), self.index(e.counter)
        name = ("philox", key, counter)
        words = self._lookup(name)
        if words is None:
            words = functions.philox(self, key, counter)
            self._stack[-1].known[name] = words
        return words[e.lane]

    def _lookup(self, key: Any) -> Any:
        for block in reversed(self._stack):
            if key in block.known:
                return block.known[key]
        return None

    # ---- branches --------------------------------------------------------------------------------------------------

    def _select(self, e: s.Select) -> Emitted:
        condition = self.index(e.condition)
        if not (self._may_fail(e.if_true) or self._may_fail(e.if_false)):
            yes, no = self.emit(e.if_true), self.emit(e.if_false)
            if isinstance(yes, Pair) and isinstance(no, Pair):
                condition = self.let(condition)
                return Pair(s.Select(yes.re.dtype, condition, yes.re, no.re),
                            s.Select(yes.im.dtype, condition, yes.im, no.im))  # fmt: skip
            assert not isinstance(yes, Pair) and not isinstance(no, Pair)
            return s.Select(yes.dtype, condition, yes, no)
        branches: list[tuple[Block, Emitted]] = []
        for part in (e.if_true, e.if_false):
            with self.block(conditional=True) as inner:
                branches.append((inner, self.emit(part)))
        (yes_block, yes), (no_block, no) = branches
        yes_parts = (yes.re, yes.im) if isinstance(yes, Pair) else (yes,)
        no_parts = (no.re, no.im) if isinstance(no, Pair) else (no,)
        names = tuple(self._fresh() for _ in yes_parts)
        for name, value in zip(names, yes_parts, strict=True):
            self._add(Declare(name, s.const(False if value.dtype == boolean else 0, value.dtype)))
        yes_block.statements.append(Assign(names, yes_parts))
        no_block.statements.append(Assign(names, no_parts))
        self._add(If(condition, tuple(yes_block.statements), tuple(no_block.statements)))
        # The result is read at once into an immutable name: the slot may be set again in another turn of a loop.
        held = [self.let_copy(s.Var(name, v.dtype)) for name, v in zip(names, yes_parts, strict=True)]
        return Pair(held[0], held[1]) if len(held) == 2 else held[0]

    def let_copy(self, value: s.Var) -> ScalarExpr:
        """An immutable copy of a mutable local."""
        name = self._fresh()
        self._add(Let(name, value))
        return s.Var(name, value.dtype)

    def _may_fail(self, e: ScalarExpr) -> bool:
        """Whether evaluating reads memory, runs a loop or may stop the kernel, as opposed to mere arithmetic."""
        if isinstance(e, (s.Load, s.Checked)):
            return True
        if isinstance(e, s.Var):
            definition = self._expansion.definitions.get(e.name)
            if definition is None or self._lookup(e.name) is not None:
                return False
            return (
                definition.fold is not None
                or self._may_fail(definition.value)
                or any(self._may_fail(s.Var(name)) for name in definition.eager)
            )
        if isinstance(e, s.Binary) and e.dtype.is_integer:
            if e.function in ("div", "floordiv", "mod", "fmod") and not isinstance(e.right, s.Const):
                return True
            if e.function == "pow":
                return True
        return any(self._may_fail(c) for c in s.children(e))

    # ---- definitions -----------------------------------------------------------------------------------------------

    def _ensure(self, name: str) -> Emitted:
        found = self._lookup(name)
        if found is not None:
            return found
        definition = self._expansion.definitions[name]
        depth = self._home(definition)
        with self._level(depth):
            if definition.fold is not None:
                self._run_fold(definition.fold)
            for operand in definition.eager:
                self._ensure(operand)
            value = self.emit(definition.value)
            if isinstance(value, Pair):
                value = Pair(self.let(value.re), self.let(value.im))
            else:
                value = self.let(value)
            self._stack[-1].known[name] = value
        return value

    def _home(self, definition: Definition) -> int:
        """Depth of the block where a definition is evaluated: further out than here only when that is safe."""
        here = len(self._stack) - 1
        outermost = here
        while outermost > 0 and not self._stack[outermost].conditional:
            outermost -= 1
        if definition.fold is not None:
            needed = self.fold_reach(definition.fold)
        elif self._movable(definition):
            needed = self._reach(definition.value, set())
            for operand in definition.eager:
                needed |= self._reach(s.Var(operand), set())
        else:
            return here
        for depth in range(here, outermost, -1):
            if self._stack[depth].variables & needed:
                return depth
        return outermost

    def _movable(self, definition: Definition, known: dict[int, bool] | None = None) -> bool:
        """Mere arithmetic on sizes, loop variables and elements at linear offsets: safe where inner loops are empty."""
        memo: dict[int, bool] = {} if known is None else known  # definitions share parts: each is looked at once
        if id(definition) not in memo:
            memo[id(definition)] = self._steady(definition.value, memo) and all(
                self._movable(self._expansion.definitions[name], memo) for name in definition.eager
            )
        return memo[id(definition)]

    def _steady(self, e: ScalarExpr, known: dict[int, bool]) -> bool:
        if isinstance(e, s.Var):
            inner = self._expansion.definitions.get(e.name)
            return inner is None or (inner.fold is None and self._movable(inner, known))
        if isinstance(e, s.Load):
            form = self._expansion.ranges.linear(e.index[0])
            extents = self._expansion.ranges.extents
            return all(isinstance(term, s.Var) and term.name in extents for term, _ in form.terms)
        if isinstance(e, (s.Checked, s.Philox)):
            return False
        if isinstance(e, s.Binary) and e.dtype.is_integer and e.function in ("div", "floordiv", "mod", "fmod", "pow"):
            return False
        if isinstance(e, s.Select) and self._may_fail(e):
            return False
        return all(self._steady(c, known) for c in s.children(e))

    def _reach(self, e: ScalarExpr, seen: set[str]) -> set[str]:
        """Loop variables and accumulators that a value depends on, through definitions."""
        found: set[str] = set()
        for name in variables(e):
            definition = self._expansion.definitions.get(name)
            if definition is None:
                found.add(name)
            elif name not in seen:
                seen.add(name)
                parts = [definition.value]
                if definition.fold is not None:
                    found |= self.fold_reach(definition.fold)
                for part in parts:
                    found |= self._reach(part, seen)
                for operand in definition.eager:
                    found |= self._reach(s.Var(operand), seen)
        return found

    def fold_reach(self, fold: Fold) -> set[str]:
        """Loop variables around a reduction that it depends on."""
        needed: set[str] = set()
        for e in (*fold.init, *fold.step):
            needed |= self._reach(e, set())
        return needed - {name for name, _ in fold.loops} - set(fold.names)

    # ---- reductions ------------------------------------------------------------------------------------------------

    def _run_fold(self, fold: Fold) -> None:
        if self._lookup(fold.name) is not None:
            return
        names: list[str] = []
        for name, initial in zip(fold.names, fold.init, strict=True):
            value = self.emit(initial)
            for part_name, part in _parts(name, value):
                self._add(Declare(part_name, part))
                names.append(part_name)
                self._stack[-1].variables.add(part_name)
            self._stack[-1].variables.add(name)
        self._fold_loops(fold, list(fold.loops), names)
        self._stack[-1].known[fold.name] = True

    def _fold_loops(self, fold: Fold, loops: Sequence[tuple[str, Dim]], names: list[str]) -> None:
        if loops:
            (var, extent), *rest = loops
            with self.loop(var, extent, independent=False):
                self._fold_loops(fold, rest, names)
            return
        # The accumulators change here: whatever reads them belongs into this block.
        self._stack[-1].variables |= set(fold.names) | set(names)
        before, self._wide_half = self._wide_half, True
        values: list[ScalarExpr] = []
        for name, step in zip(fold.names, fold.step, strict=True):
            values += [part for _, part in _parts(name, self.emit(step))]
        self._wide_half = before
        self._add(Assign(tuple(names), tuple(values), fold.associative and _is_sum(names, values)))


def _pair_var(e: s.Var) -> Pair:
    part = complex_numbers.part_dtype(e.dtype)
    return Pair(s.Var(e.name + "_re", part), s.Var(e.name + "_im", part))


def _parts(name: str, value: Emitted) -> list[tuple[str, ScalarExpr]]:
    if isinstance(value, Pair):
        return [(name + "_re", value.re), (name + "_im", value.im)]
    return [(name, value)]


def _is_sum(names: Sequence[str], values: Sequence[ScalarExpr]) -> bool:
    """Whether every accumulator is a float to which something is added or multiplied: then the order may change."""
    for name, value in zip(names, values, strict=True):
        if not (isinstance(value, s.Binary) and value.function in ("add", "mul") and value.dtype.is_float):
            return False
        if not any(isinstance(side, s.Var) and side.name == name for side in (value.left, value.right)):
            return False
    return True
