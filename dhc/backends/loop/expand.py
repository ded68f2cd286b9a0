"""Composes the definitions of a group's ops: every value at a position becomes a small named definition.

Names keep the result a graph: a value used twice at one position is one definition, however the ops nest. Nothing is
ordered or emitted yet; `schedule.py` does that, evaluating a definition where it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dhc_runtime.errors import CompileError

from dhc.backends.loop.index import Ranges
from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.dtypes import DType, i64
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce, Structural
from dhc.ir.op import Call
from dhc.ir.ops.view import broadcast_index, linear_index, unravel
from dhc.ir.scalar import ScalarExpr
from dhc.ir.symbols import Dim, Shape


@dataclass(frozen=True)
class Position:
    """A place in a tensor: one index per axis, and the row-major position when it is known in a simpler form."""

    index: tuple[ScalarExpr, ...]
    flat: ScalarExpr | None = None


@dataclass
class Fold:
    """A reduction at a position of its result."""

    name: str
    loops: list[tuple[str, Dim]]
    names: list[str]
    init: list[ScalarExpr]
    step: list[ScalarExpr]
    associative: bool


@dataclass
class Definition:
    """What a name stands for.

    Attributes:
        value: the expression.
        eager: names that are evaluated before it even where only a branch of it needs them (operands of an
            elementwise op may always be read).
        fold: the reduction that must have run.
    """

    value: ScalarExpr
    eager: tuple[str, ...] = ()
    fold: Fold | None = None


@dataclass
class Expansion:
    """Definitions of values of a group, made on demand.

    Attributes:
        inputs: external values; number i is buffer i.
        calls: the call of each node, sizes generalised.
        shapes: the shape of every value, sizes generalised.
    """

    inputs: dict[Value, int]
    calls: dict[Node, Call]
    shapes: dict[Value, Shape]
    ranges: Ranges = field(default_factory=Ranges)
    definitions: dict[str, Definition] = field(default_factory=dict)
    _count: int = 0
    _values: dict[Any, str] = field(default_factory=dict)
    _folds: dict[Any, tuple[Fold, tuple[ScalarExpr, ...]]] = field(default_factory=dict)

    def at(self, value: Value, position: Position) -> ScalarExpr:
        """The element of a value at a position, as a name."""
        shape = self.shapes[value]
        flat = position.flat if position.flat is not None else linear_index(position.index, shape)
        flat = self.ranges.simplify(flat)
        key = (value, flat)
        name = self._values.get(key)
        if name is None:
            index = tuple(self.ranges.simplify(e) for e in position.index)
            definition = self._define(value, index, flat)
            name = self._values[key] = f"v{len(self._values)}"
            self.definitions[name] = definition
        return s.Var(name, value.type.dtype)

    def _define(self, value: Value, index: tuple[ScalarExpr, ...], flat: ScalarExpr) -> Definition:
        dtype = value.type.dtype
        buffer = self.inputs.get(value)
        if buffer is not None:
            return Definition(s.Load(dtype, buffer, (flat,)))
        node = value.producer
        if node is None or node not in self.calls:
            raise CompileError(f"the group uses {value!r} without having it as an input")
        kind = node.op.kind
        if isinstance(kind, Elementwise):
            return self._elementwise(node, kind, value.index, Position(index, flat))
        if isinstance(kind, Map):
            return self._map(node, kind, value.index, index, flat)
        if isinstance(kind, (Reduce, Contract)):
            return self._fold(node, kind, value.index, index)
        if isinstance(kind, Structural) and kind.name == "constant":
            return Definition(_literal(node, dtype))
        raise CompileError(
            f"{node.op.name} ({node.op.kind.name}) cannot be part of a loop nest",
            where=str(node.location),
            hint="this is a defect of the fusion pass; please report it",
        )

    def _elementwise(self, node: Node, kind: Elementwise, which: int, position: Position) -> Definition:
        call = self.calls[node]
        shape = self.shapes[node.results[which]]
        operands = []
        for operand in node.operands:
            own = self.shapes[operand]
            there = position if own == shape else Position(tuple(broadcast_index(position.index, own, shape)))
            operands.append(self.at(operand, there))
        expr: Any = kind.expr
        value = expr[which](call, *operands) if isinstance(expr, (tuple, list)) else expr(call, *operands)
        if isinstance(value, (tuple, list)):
            value = value[which]
        eager = tuple(o.name for o in operands if isinstance(o, s.Var))
        return Definition(self.ranges.simplify(value), eager)

    def _loader(self, node: Node) -> Any:
        def load(operand: int, index: Sequence[Any]) -> ScalarExpr:
            value = node.operands[operand]
            raw = tuple(s.lift(e, i64) for e in index)
            return self.at(value, Position(raw, _flat_position(raw, self.shapes[value], self.ranges)))

        return load

    def _map(self, node: Node, kind: Map, which: int, index: tuple[ScalarExpr, ...], flat: ScalarExpr) -> Definition:
        element: Any = kind.element
        if isinstance(element, (tuple, list)):
            element = element[which]
        if node.op.name == "reshape":
            operand = node.operands[0]
            return Definition(self.at(operand, Position(tuple(unravel(flat, self.shapes[operand])), flat)))
        call = self.calls[node]
        value = element(call, list(index), self._loader(node))
        if isinstance(value, (tuple, list)):
            value = value[which]
        return Definition(self.ranges.simplify(value))

    def _fold(self, node: Node, kind: Reduce | Contract, which: int, index: tuple[ScalarExpr, ...]) -> Definition:
        key = (node, index)
        if key not in self._folds:
            self._folds[key] = self._make_fold(node, kind, index)
        fold, results = self._folds[key]
        return Definition(results[which], (), fold)

    def _make_fold(
        self, node: Node, kind: Reduce | Contract, index: tuple[ScalarExpr, ...]
    ) -> tuple[Fold, tuple[ScalarExpr, ...]]:
        spec = kind.spec(self.calls[node])
        number = self._count
        self._count += 1  # taken before the step is built, which may hold reductions itself
        load = self._loader(node)
        loops: list[tuple[str, Dim]] = []
        red: list[ScalarExpr] = []
        for axis, extent in enumerate(spec.domain):
            if extent == 1:
                red.append(s.const(0, i64))
                continue
            name = f"r{number}_{axis}"
            self.ranges.extents[name] = extent
            loops.append((name, extent))
            red.append(s.Var(name))
        init = list(spec.init(list(index), load))
        accs = tuple(s.Var(f"a{number}_{k}", e.dtype) for k, e in enumerate(init))
        step = list(spec.step(list(index), red, load, accs))
        results = tuple(spec.finish(list(index), accs))
        for acc, new in zip(accs, step, strict=True):
            if acc.dtype != new.dtype:
                raise CompileError(
                    f"{node.op.name}: the step gives {new.dtype} for an accumulator of {acc.dtype}",
                    where=str(node.location),
                    hint="this is a defect of the op's definition; please report it",
                )
        fold = Fold(
            f"f{number}", loops, [a.name for a in accs], [self.ranges.simplify(e) for e in init],
            [self.ranges.simplify(e) for e in step], spec.associative,
        )  # fmt: skip
        return fold, tuple(self.ranges.simplify(e) for e in results)


def _flat_position(index: tuple[ScalarExpr, ...], shape: Shape, ranges: Ranges) -> ScalarExpr | None:
    """The row-major position, when the index is one taken apart by `unravel`."""
    wide = [axis for axis, dim in enumerate(shape) if dim != 1]
    if not wide or not index:
        return None
    last = index[wide[-1]]
    if wide[-1] == 0:
        position = last
    elif isinstance(last, s.Binary) and last.function == "mod":
        position = last.left
    else:
        return None
    if tuple(unravel(position, shape)) != index:
        return None
    if wide[0] > 0:
        # The remainder on the outermost axis may be one that matters (tile), unless the position is within the value.
        _, high = ranges.bounds(ranges.linear(position))
        if high is None or not symbols.is_nonnegative(symbols.product(shape) - 1 - high):
            return None
    return position


def _literal(node: Node, dtype: DType) -> ScalarExpr:
    array = np.asarray(node.attrs["value"])
    if array.size != 1:
        raise CompileError(
            f"a constant of {array.size} elements inside a loop nest",
            where=str(node.location),
            hint="this is a defect of the fusion pass; please report it",
        )
    item = array.reshape(()).item()
    if dtype.kind == "b":
        return s.const(bool(item), dtype)
    return s.const(item if dtype.kind == "c" else float(item) if dtype.is_float else int(item), dtype)
