"""Reading and writing a window whose position is only known at run time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_at_most, require_rank
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim, Shape
from dhc.ir.types import TensorType


def _check_starts(call: Call, position: int, rank: int) -> None:
    require_rank(call, position, 1)
    call.require(call.types[position].shape[0], rank, "one start for each axis")


def _clamped_start(load: LoadFn, operand: int, axis: int, size: Dim, window: Dim) -> s.ScalarExpr:
    start = load(operand, [s.const(axis, i64)])
    return s.maximum(s.minimum(start, s.size(size - window)), 0)


def _clamp(starts: np.ndarray, shape: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    """The window as slices, moved so that it lies within the tensor."""
    first = [max(0, min(int(start), n - w)) for start, n, w in zip(starts, shape, window)]
    return tuple(slice(f, f + w) for f, w in zip(first, window))


def _check_window(call: Call, shape: Shape, window: Shape) -> None:
    for axis, (dim, size) in enumerate(zip(shape, window)):
        if isinstance(size, int) and size < 0:
            call.fail(f"axis {axis}: a window of {size}")
        require_at_most(call, size, dim, f"axis {axis}: the window fits into the operand")


def _dynamic_slice_type(call: Call) -> list[TensorType]:
    x = call.types[0]
    _check_starts(call, 1, x.rank)
    if len(call.attrs.sizes) != x.rank:
        call.fail(f"sizes need {x.rank} entries")
    _check_window(call, x.shape, call.attrs.sizes)
    return [TensorType(x.dtype, call.attrs.sizes)]


def _dynamic_slice_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    shape, sizes = call.types[0].shape, call.attrs.sizes
    source = [
        i if n == w else i + _clamped_start(load, 1, axis, n, w)
        for axis, (i, n, w) in enumerate(zip(index, shape, sizes))
    ]
    return load(0, source)


def _grad_dynamic_slice(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, starts = node.operands
    zeros = b.full(x.type.shape, 0, g.dtype)
    return b.dynamic_update_slice(zeros, g, starts), None


def _array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape)


def _starts(*starts: int) -> np.ndarray:
    return np.array(starts, np.int64)


register(
    OpDef(
        name="dynamic_slice",
        doc="A window at a position given at run time; positions are moved so that the window lies within.",
        operands=(Operand("x", FIXED), Operand("starts", frozenset({i64}))),
        attrs=(Attr("sizes", "dims", doc="result shape"),),
        infer=_dynamic_slice_type,
        reference=lambda call, x, starts: x[_clamp(starts, x.shape, call.attrs.sizes)].copy(),
        kind=Map(_dynamic_slice_element, role="gather"),
        grad=_grad_dynamic_slice,
        examples=lambda: [
            ([_array(4, 5), _starts(1, 2)], {"sizes": (2, 3)}),
            ([_array(4, 5), _starts(-3, 9)], {"sizes": (1, 2)}),
            ([_array(3), _starts(1)], {"sizes": (0,)}),
        ],
        source="XLA DynamicSlice",
    )
)


def _update_type(call: Call) -> list[TensorType]:
    x, update, _ = call.types
    require_rank(call, 1, x.rank)
    _check_starts(call, 2, x.rank)
    _check_window(call, x.shape, update.shape)
    return [TensorType(x.dtype, x.shape)]


def _update_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    x, update, _ = call.types
    inside: list[s.ScalarExpr] = []
    source: list[s.ScalarExpr] = []
    for axis, (i, n, w) in enumerate(zip(index, x.shape, update.shape)):
        if n == w:
            source.append(i)
            continue
        position = i - _clamped_start(load, 2, axis, n, w)
        inside += [position >= 0, position < s.size(w)]
        source.append(position)
    return s.select(s.logical_and(*inside), load(1, source), load(0, index))


def _update_reference(call: Call, x: np.ndarray, update: np.ndarray, starts: np.ndarray) -> np.ndarray:
    result = x.copy()
    result[_clamp(starts, x.shape, update.shape)] = update
    return result


def _grad_update(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    _, update, starts = node.operands
    zeros = b.full(update.type.shape, 0, g.dtype)
    kept = b.dynamic_update_slice(g, zeros, starts)
    return kept, b.dynamic_slice(g, starts, sizes=update.type.shape), None


register(
    OpDef(
        name="dynamic_update_slice",
        doc="The first operand with a window, at a position given at run time, replaced by the second.",
        operands=(Operand("x", FIXED), Operand("update", FIXED, same="x"), Operand("starts", frozenset({i64}))),
        infer=_update_type,
        reference=_update_reference,
        kind=Map(_update_element, role="gather"),
        grad=_grad_update,
        examples=lambda: [
            ([_array(4, 5), -_array(2, 2) - 1, _starts(1, 2)], {}),
            ([_array(4, 5), -_array(4, 1) - 1, _starts(-3, 9)], {}),
            ([_array(3), -_array(3) - 1, _starts(0)], {}),
        ],
        source="XLA DynamicUpdateSlice",
    )
)
