"""Control flow: branches and loops over nested graphs. Gradients are in `control_gradients.py`.

Nested graphs see nothing around them but symbols: what they use is an operand. A size that a body changes, or in
which two branches differ, is only known at run time: it becomes a new symbol, named in the attribute `symbols`.
`if_symbols` and `loop_symbols` tell how many are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.dtypes import ANY, BOOL, i64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim, sym
from dhc.ir.types import TensorType, accepts, free_symbols, joined

_SYMBOLS = Attr("symbols", "strs", (), "new symbols for sizes that only run time knows, in order of results and axes")
_CAPTURES = Operand("values", ANY, variadic=True, sequence=True)


class _Fresh:
    """Hands out the symbols of a call one by one; without a call it only counts."""

    def __init__(self, call: Call | None) -> None:
        self.call = call
        self.used = 0

    def __call__(self) -> Dim:
        number = self.used
        self.used += 1
        if self.call is None:
            return 0
        names = self.call.attrs.symbols
        if number >= len(names):
            self.call.fail(
                f"result sizes depend on the data, but only {len(names)} new symbols are given",
                hint="pass symbols=[...] with one name for each such size",
            )
        return sym(names[number])


class _SizeNames:
    """Sizes inside of a nested graph in terms of those around it.

    Args:
        region: the nested graph.
        inputs: its inputs that come from operands.
        given: the types of these operands.
        after: what the inputs become in the next run (for values that stay as they are: their own types).
    """

    def __init__(self, region: Graph, inputs: Sequence[Value], given: Sequence[Any], after: Sequence[Any]) -> None:
        around = {name for t in given for name in free_symbols(t)}
        self._private = {name for v in inputs for name in free_symbols(v.type)} - around
        for node in region:
            for spec in node.op.attrs:
                if spec.kind == "symbol":
                    self._private.add(node.attrs[spec.name])
            self._private.update(node.attrs.get("symbols", ()))
            if node.op.kind == Structural("bind"):
                self._private.update(node.attrs["names"])
        self._known: dict[str, Dim] = {}
        changing: set[str] = set()
        for value, outer, later in zip(inputs, given, after):
            if not isinstance(outer, TensorType) or not isinstance(value.type, TensorType):
                continue
            for dim, start, following in zip(value.type.shape, outer.shape, later.shape):
                used = symbols.free_symbols(dim)
                if following not in (dim, start) and outer is not later:
                    changing.update(used)
                elif len(used) == 1 and dim == sym(used[0]) and used[0] in self._private:
                    self._known.setdefault(used[0], start)
        for name in changing:
            self._known.pop(name, None)

    def outside(self, dim: Dim) -> Dim | None:
        """The same size as seen around the nested graph; None when only its runs know it."""
        if any(name in self._private and name not in self._known for name in symbols.free_symbols(dim)):
            return None
        return symbols.substitute(dim, self._known)

    def shape(self, fresh: _Fresh, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """A shape as seen around the nested graph, with new symbols where needed."""
        return tuple(fresh() if outer is None else outer for outer in map(self.outside, shape))


def _check_inputs(call: Call, region: Graph, given: Sequence[Any], what: str) -> None:
    """A nested graph takes the given values; its own sizes may be more general than theirs."""
    if len(region.inputs) != len(given):
        call.fail(f"the {what} takes {len(region.inputs)} values, got {len(given)}")
    for value, type_ in zip(region.inputs, given):
        _check_same_kind(call, value.type, type_, f"input {value.name!r} of the {what}")


def _check_same_kind(call: Call, wanted: Any, given: Any, what: str) -> None:
    if not isinstance(wanted, TensorType) or not isinstance(given, TensorType):
        if isinstance(wanted, TensorType) or not accepts(wanted, given):
            call.fail_type(f"{what} is {wanted}, got {given}")
        return
    if wanted.dtype != given.dtype:
        call.fail_type(f"{what} is {wanted}, got {given}")
    if wanted.rank != given.rank:
        call.fail(f"{what} is {wanted}, got {given}")
    for a, b in zip(wanted.shape, given.shape):
        if isinstance(a, int) and isinstance(b, int) and a != b:
            call.fail(f"{what} is {wanted}, got {given}")


# ---- if --------------------------------------------------------------------------------------------------------------


def _merged_types(
    call: Call | None, fresh: _Fresh, captures: Sequence[Any], then: Graph, otherwise: Graph
) -> list[Any]:
    names = [_SizeNames(region, region.inputs, captures, captures) for region in (then, otherwise)]
    merged: list[Any] = []
    for a, b in zip(then.outputs, otherwise.outputs):
        if call is not None:
            _check_kinds_of_branches(call, a, b)
        if not isinstance(a.type, TensorType) or not isinstance(b.type, TensorType):
            merged.append(joined(a.type, b.type) or a.type)
            continue
        left, right = ([n.outside(d) for d in v.type.shape] for n, v in zip(names, (a, b)))
        shape = tuple(fresh() if p is None or p != q else p for p, q in zip(left, right))
        merged.append(TensorType(a.type.dtype, shape))
    return merged


def _check_kinds_of_branches(call: Call, a: Value, b: Value) -> None:
    if isinstance(a.type, TensorType) and isinstance(b.type, TensorType):
        same = a.type.dtype == b.type.dtype and a.type.rank == b.type.rank
    else:
        same = joined(a.type, b.type) is not None
    if not same:
        call.fail_type(f"one branch gives {a.type}, the other {b.type}")


def if_symbols(captures: Sequence[Any], then: Graph, otherwise: Graph) -> int:
    """How many symbols an `if` over these branches needs; `captures` are the types of the captured operands."""
    fresh = _Fresh(None)
    _merged_types(None, fresh, captures, then, otherwise)
    return fresh.used


def _if_type(call: Call) -> list[Any]:
    require_rank(call, 0, 0)
    then, otherwise = _regions(call, 2)
    _check_inputs(call, then, call.types[1:], "then branch")
    _check_inputs(call, otherwise, call.types[1:], "else branch")
    if len(then.outputs) != len(otherwise.outputs):
        call.fail(f"one branch gives {len(then.outputs)} values, the other {len(otherwise.outputs)}")
    return _merged_types(call, _Fresh(call), call.types[1:], then, otherwise)


def _regions(call: Call, count: int) -> tuple[Graph, ...]:
    if len(call.regions) != count:
        call.fail(f"needs {count} nested graphs, got {len(call.regions)}")
    return call.regions


def _if_reference(call: Call, condition: np.ndarray, *captures: Any) -> tuple[Any, ...]:
    assert call.run is not None
    return tuple(call.run(call.regions[0 if condition else 1], captures))


def _grad_if(b: Any, node: Node, *cotangents: Value | None) -> Sequence[Value | None]:
    from dhc.ir.ops.control_gradients import if_gradient

    return if_gradient(b, node, cotangents)


register(
    OpDef(
        name="if",
        doc="The results of the first nested graph when the condition holds, else of the second.",
        operands=(Operand("cond", BOOL), _CAPTURES),
        attrs=(_SYMBOLS,),
        infer=_if_type,
        reference=_if_reference,
        kind=Structural("control"),
        grad=_grad_if,
        source="ONNX If",
    )
)


# ---- loop ------------------------------------------------------------------------------------------------------------


def _carried_types(
    fresh: _Fresh, initial: Sequence[Any], inputs: Sequence[Value], outputs: Sequence[Value]
) -> list[Any]:
    """A size that the body keeps is the initial one; one that it changes is new."""
    result: list[Any] = []
    for start, before, after in zip(initial, inputs, outputs):
        if not isinstance(start, TensorType) or not isinstance(before.type, TensorType):
            result.append(before.type)  # wide enough for the first value and for what each run gives
            continue
        dims = zip(start.shape, before.type.shape, after.type.shape)
        result.append(TensorType(start.dtype, tuple(s if a in (b, s) else fresh() for s, b, a in dims)))
    return result


def _loop_types(fresh: _Fresh, types: Sequence[Any], body: Graph, carried: int) -> list[Any]:
    initial = types[2:]
    inputs, outputs = body.inputs[2:], body.outputs[1:]
    results = _carried_types(fresh, initial[:carried], inputs, outputs)
    after = [v.type for v in outputs[:carried]] + [v.type for v in inputs[carried:]]
    names = _SizeNames(body, inputs, initial, after)
    trips: Dim | None = None
    for value in outputs[carried:]:
        trips = fresh() if trips is None else trips  # the number of runs, the same for every stack
        results.append(TensorType(value.type.dtype, (trips, *names.shape(fresh, value.type.shape))))
    return results


def loop_symbols(types: Sequence[Any], body: Graph, carried: int) -> int:
    """How many symbols a `loop` needs: one for each size that changes, one for the number of runs if it stacks."""
    fresh = _Fresh(None)
    _loop_types(fresh, types, body, carried)
    return fresh.used


def _loop_type(call: Call) -> list[Any]:
    require_rank(call, 0, 0)
    require_rank(call, 1, 0)
    (body,) = _regions(call, 1)
    carried = call.attrs.carried
    if not 0 <= carried <= len(call.types) - 2:
        call.fail(f"{carried} carried values of {len(call.types) - 2}")
    _check_inputs(call, body, (TensorType(i64), call.types[1], *call.types[2:]), "body")
    if len(body.outputs) < 1 + carried:
        call.fail(f"the body gives {len(body.outputs)} values, needs the condition and {carried} carried ones")
    _check_same_kind(call, call.types[1], body.outputs[0].type, "the condition")
    for before, after in zip(body.inputs[2:], body.outputs[1 : 1 + carried]):
        _check_carried(call, before, after)
    return _loop_types(_Fresh(call), call.types, body, carried)


def _check_carried(call: Call, before: Value, after: Value) -> None:
    """What the body gives back must fit its input again."""
    if isinstance(before.type, TensorType) and isinstance(after.type, TensorType):
        for b, a in zip(before.type.shape, after.type.shape):
            if b != a and isinstance(b, int):
                call.fail(
                    f"carried value {before.name!r} is {before.type}, but {after.type} after one run",
                    hint="give the size that changes a symbol of its own in the body",
                )
    _check_same_kind(call, before.type, after.type, f"carried value {before.name!r}")


def _empty_stack(type_: TensorType, axis: int = 0) -> np.ndarray:
    shape = [d if isinstance(d, int) else 0 for d in type_.shape]
    shape[axis] = 0
    return np.zeros(shape, type_.dtype.numpy)


def _loop_reference(call: Call, trip: np.ndarray, condition: np.ndarray, *values: Any) -> tuple[Any, ...]:
    assert call.run is not None
    carried = call.attrs.carried
    state, captures = list(values[:carried]), values[carried:]
    stacks: list[list[Any]] = [[] for _ in call.results[carried:]]
    iteration = 0
    while iteration < trip and condition:
        condition, *results = call.run(call.regions[0], [np.array(iteration, np.int64), condition, *state, *captures])
        state = results[:carried]
        for stack, element in zip(stacks, results[carried:]):
            stack.append(element)
        iteration += 1
    stacked = [np.stack(s) if s else _empty_stack(t) for s, t in zip(stacks, call.results[carried:])]
    return (*state, *stacked)


def _grad_loop(b: Any, node: Node, *cotangents: Value | None) -> Sequence[Value | None]:
    from dhc.ir.ops.control_gradients import loop_gradient

    return loop_gradient(b, node, cotangents)


register(
    OpDef(
        name="loop",
        doc="Runs a body while a count is not reached and a condition holds; carries values and stacks elements.",
        operands=(Operand("trip", frozenset({i64})), Operand("cond", BOOL), _CAPTURES),
        attrs=(Attr("carried", "int", doc="how many of the values the body gives back for its next run"), _SYMBOLS),
        infer=_loop_type,
        reference=_loop_reference,
        kind=Structural("control"),
        grad=_grad_loop,
        source="ONNX Loop",
    )
)


# ---- scan ------------------------------------------------------------------------------------------------------------


def scan_layout(call: Call) -> tuple[list[int], list[bool], list[int], list[bool]]:
    """Axis and direction of every scanned input and of every stacked output, defaults filled in."""
    carried, scanned = call.attrs.carried, call.attrs.scanned
    inputs = call.types[carried : carried + scanned]
    elements = call.regions[0].outputs[carried:]

    def filled(name: str, count: int) -> list[int]:
        given = list(call.attrs[name]) or [0] * count
        if len(given) != count:
            call.fail(f"{name} needs {count} entries, got {len(given)}")
        return given

    in_axes = [call.axis(a, t.rank) for a, t in zip(filled("in_axes", scanned), inputs)]
    out_axes = [call.axis(a, v.type.rank + 1) for a, v in zip(filled("out_axes", len(elements)), elements)]
    in_reverse = [bool(r) for r in filled("in_reverse", scanned)]
    return in_axes, in_reverse, out_axes, [bool(r) for r in filled("out_reverse", len(elements))]


def _scan_type(call: Call) -> list[Any]:
    (body,) = _regions(call, 1)
    carried, scanned = call.attrs.carried, call.attrs.scanned
    if scanned < 1 or carried < 0 or carried + scanned > len(call.types):
        call.fail(f"{carried} carried and {scanned} scanned values of {len(call.types)}; at least one is scanned")
    if len(body.outputs) < carried:
        call.fail(f"the body gives {len(body.outputs)} values, needs {carried} carried ones")
    in_axes, _, out_axes, _ = scan_layout(call)
    steps: Dim = call.types[carried].shape[in_axes[0]]
    slices: list[Any] = []
    for type_, axis in zip(call.types[carried : carried + scanned], in_axes):
        call.require(type_.shape[axis], steps, "number of steps of all scanned values")
        slices.append(type_.with_shape((*type_.shape[:axis], *type_.shape[axis + 1 :])))
    given = [*call.types[:carried], *slices, *call.types[carried + scanned :]]
    _check_inputs(call, body, given, "body")
    for before, back, start in zip(body.inputs[:carried], body.outputs[:carried], call.types):
        _check_carried(call, before, back)
        for b, a, s in zip(before.type.shape, back.type.shape, start.shape):
            if a not in (b, s):
                call.fail(f"carried value {before.name!r} changes its size from {before.type} to {back.type}")
    results: list[Any] = list(call.types[:carried])
    fresh = _Fresh(call)
    after = [v.type for v in body.outputs[:carried]] + [v.type for v in body.inputs[carried:]]
    names = _SizeNames(body, body.inputs, given, after)
    for value, axis in zip(body.outputs[carried:], out_axes):
        shape = names.shape(fresh, value.type.shape)
        results.append(TensorType(value.type.dtype, (*shape[:axis], steps, *shape[axis:])))
    return results


def _scan_reference(call: Call, *values: Any) -> tuple[Any, ...]:
    assert call.run is not None
    carried, scanned = call.attrs.carried, call.attrs.scanned
    in_axes, in_reverse, out_axes, out_reverse = scan_layout(call)
    state, inputs, captures = values[:carried], values[carried : carried + scanned], values[carried + scanned :]
    steps = inputs[0].shape[in_axes[0]]
    stacks: list[list[Any]] = [[] for _ in out_axes]
    for step in range(steps):
        slices = [
            np.take(x, steps - 1 - step if backwards else step, axis=axis)
            for x, axis, backwards in zip(inputs, in_axes, in_reverse)
        ]
        results = call.run(call.regions[0], [*state, *slices, *captures])
        state = tuple(results[:carried])
        for stack, element in zip(stacks, results[carried:]):
            stack.append(element)
    stacked = []
    for stack, axis, backwards, type_ in zip(stacks, out_axes, out_reverse, call.results[carried:]):
        elements = stack[::-1] if backwards else stack
        stacked.append(np.stack(elements, axis=axis) if elements else _empty_stack(type_, axis))
    return (*state, *stacked)


def _grad_scan(b: Any, node: Node, *cotangents: Value | None) -> Sequence[Value | None]:
    from dhc.ir.ops.control_gradients import scan_gradient

    return scan_gradient(b, node, cotangents)


register(
    OpDef(
        name="scan",
        doc="Runs a body once for each slice of the scanned values; carries values and stacks elements.",
        operands=(Operand("values", ANY, variadic=True),),
        attrs=(
            Attr("carried", "int", doc="how many values the body gives back for its next run (the first operands)"),
            Attr("scanned", "int", doc="how many values are cut into slices (the operands after the carried ones)"),
            Attr("in_axes", "ints", (), "axis of each scanned value; none means 0"),
            Attr("out_axes", "ints", (), "axis along which each result is stacked; none means 0"),
            Attr("in_reverse", "ints", (), "1 for scanned values that are read from the end"),
            Attr("out_reverse", "ints", (), "1 for results that are stacked from the end"),
            _SYMBOLS,
        ),
        infer=_scan_type,
        reference=_scan_reference,
        kind=Structural("control"),
        grad=_grad_scan,
        source="ONNX Scan",
    )
)
