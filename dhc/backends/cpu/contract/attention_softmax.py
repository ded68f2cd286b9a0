"""The softmax of attention over rows of scores that lie in panels: exponentials in place, and their sums.

A row of a few vectors, where its length is known, stays in registers from the scores to the exponentials, and two rows
go side by side, so that one computes while the other waits. Longer ones are gone through twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dhc.backends.cpu.contract.activations import exp_of_difference
from dhc.backends.cpu.contract.epilogue import EpilogueContext
from dhc.backends.cpu.contract.tile import TileShape, load_lanes
from dhc.backends.cpu.llvm.builder import Function, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.cpu.vector_writer import VectorWriter

if TYPE_CHECKING:
    from dhc.backends.cpu.contract.attention import AttentionSpec

_ITEM = 4
_LARGEST_IN_FLIGHT = 2  # rows side by side
Operands = Sequence[tuple[Value, tuple[str, str]]]


def rows_in_registers(target: CpuTarget, keys: int) -> int:
    """How many rows of so many keys fit half of the registers; 0 for none, or where their number is not known."""
    vectors = -(-keys // target.lanes("f32"))
    return min(_LARGEST_IN_FLIGHT, target.vector_registers // 2 // vectors) if vectors else 0


def emit_short_softmax(
    f: Function,
    spec: AttentionSpec,
    rows: Sequence[Value],
    n: Value,
    shape: TileShape,
    panel_bytes: int,
    operands: Sequence[Operands],
) -> list[Value]:
    """Turns rows of ``spec.keys`` scores into exponentials and returns their sums. Arguments as `emit_softmax`."""
    lanes, columns = shape.lanes, shape.columns
    lowest = f.constant(float("-inf"), f"<{lanes} x float>")
    places = [
        (column // columns * panel_bytes + column % columns * _ITEM, column, spec.keys - column)
        for column in range(0, spec.keys, lanes)
    ]
    scored: list[list[Value]] = []
    for row, more in zip(rows, operands, strict=True):
        scored.append([])
        for place, column, left in places:
            some = f.const(left) if left < lanes else None
            value = _score(f, spec, f.at(row, place), f.const(column), some, lanes, more)
            scored[-1].append(value if some is None else f.select(f.lanes_below(some, lanes), value, lowest))
    largest: list[Value] = []
    for values in scored:
        top = lowest
        for value in values:
            top = f.select(f.compare("ogt", value, top), value, top)
        largest.append(f.splat(_maximum(f, top, lanes), lanes))
    totals: list[Value] = []
    for row, values, most in zip(rows, scored, largest, strict=True):
        total = f.constant(0.0, lowest.type)
        for value, (place, _, _) in zip(values, places, strict=True):
            weight = exp_of_difference(f, f.binary("fsub", value, most))
            f.store(weight, f.at(row, place), lanes * _ITEM)
            total = f.binary("fadd", total, weight)
        totals.append(total)
    # What the last panel has beyond the keys is no step of any sum, and stays as it is.
    return [_folded(f, total, lanes, lambda a, b: f.binary("fadd", a, b)) for total in totals]


def emit_softmax(
    f: Function,
    spec: AttentionSpec,
    rows: Sequence[Value],
    n: Value,
    shape: TileShape,
    panel_bytes: int,
    operands: Sequence[Operands],
) -> list[Value]:
    """Turns one row of any number of scores into exponentials and returns their sum.

    Args:
        f: the function.
        spec: the attention: its expression is applied to the scores first.
        rows: where the rows begin in the first panel.
        n: number of keys.
        shape: of the panels.
        panel_bytes: from one panel of a block to the next.
        operands: for each row, the operands of the expression: where the row begins, and what it holds.
    """
    (row,), (own,) = rows, operands
    lanes, columns = shape.lanes, shape.columns
    vector = f"<{lanes} x float>"
    lowest = f.constant(float("-inf"), vector)
    top = f.variable(vector, lowest)
    total = f.variable(vector, f.constant(0.0, vector))
    full = n // columns

    def scored(place: Value, column: Value, left: Value | None) -> None:
        value = _score(f, spec, place, column, left, lanes, own)
        if left is not None:
            value = f.select(f.lanes_below(left, lanes), value, lowest)
        f.store(value, place, lanes * _ITEM)
        now = top.get()
        top.set(f.select(f.compare("ogt", value, now), value, now))

    def summed(place: Value, column: Value, left: Value | None) -> None:
        value = f.load(vector, place, lanes * _ITEM)
        value = exp_of_difference(f, f.binary("fsub", value, largest))
        f.store(value, place, lanes * _ITEM)
        total.set(f.binary("fadd", total.get(), value))

    def over_row(body: Callable[[Value, Value, Value | None], None]) -> None:
        with f.loop(0, full) as panel:
            for v in range(shape.vectors):
                body(f.at(row, panel * panel_bytes + v * lanes * _ITEM), panel * columns + v * lanes, None)
        with f.if_(full * columns < n):
            for v in range(shape.vectors):
                column = full * columns + v * lanes
                left = f.value(f.maximum(0, f.minimum(lanes, n - column)))
                body(f.at(row, full * panel_bytes + v * lanes * _ITEM), column, left)

    over_row(scored)
    largest = f.splat(_maximum(f, top.get(), lanes), lanes)
    over_row(summed)
    return [_folded(f, total.get(), lanes, lambda a, b: f.binary("fadd", a, b))]


def _score(
    f: Function, spec: AttentionSpec, place: Value, column: Value, left: Value | None, lanes: int, operands: Operands
) -> Value:
    """A vector of scores after the spec's expression; of operands only ``left`` lanes are read."""
    vector = f"<{lanes} x float>"

    def operand(i: int) -> Value:
        pointer, (kind, form) = operands[i]
        item, element = (1, "i8") if kind == "bool" else (_ITEM, "float")
        if form == "scalar":
            held = f.splat(f.load(element, pointer, item), lanes)
        elif left is None:
            held = f.load(f"<{lanes} x {element}>", f.at(pointer, column * item), item)
        else:
            held = load_lanes(f, f"<{lanes} x {element}>", f.at(pointer, column * item), left, item)
        if kind == "bool":
            return f.emit(f"<{lanes} x i1>", f"icmp ne {held.type} {held.ref}, zeroinitializer")
        return held

    context = EpilogueContext(f, "f32", lanes, vector, operand)
    return VectorWriter(context, {"sum": f.load(vector, place, lanes * _ITEM)}).write(spec.expression)


def _maximum(f: Function, vector: Value, lanes: int) -> Value:
    return _folded(f, vector, lanes, lambda a, b: f.select(f.compare("ogt", a, b), a, b))


def _folded(f: Function, vector: Value, lanes: int, combine: Callable[[Value, Value], Value]) -> Value:
    """Combines all lanes, halves first."""
    while lanes > 1:
        lanes //= 2
        vector = combine(f.shuffle(vector, vector, range(lanes)), f.shuffle(vector, vector, range(lanes, 2 * lanes)))
    return f.emit("float", f"extractelement {vector.type} {vector.ref}, i64 0")
