"""Sorting along an axis: stable, NaN is greater than every number, equal keys keep their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import BOOL, REALS, i64
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.precision import wide_array
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType


def sort_kernel(x, values, indices, order, other, outer, length, kept, inner, descending, first, end):  # type: ignore[no-untyped-def]
    """Work item: one line along the axis. Merges runs of 1, 2, 4, ... positions between `order` and `other`."""
    for item in range(first, end):
        base = (item // inner) * length * inner + item % inner
        start = item * length  # the line's own part of the scratch buffers
        for j in range(length):
            order[start + j] = j
        width = 1
        flipped = False
        while width < length:
            low = 0
            while low < length:
                middle = min(low + width, length)
                high = min(low + 2 * width, length)
                left = low
                right = middle
                for target in range(low, high):
                    if left >= middle:
                        take_right = True
                    elif right >= high:
                        take_right = False
                    else:
                        if flipped:
                            a = x[base + other[start + left] * inner]
                            c = x[base + other[start + right] * inner]
                        else:
                            a = x[base + order[start + left] * inner]
                            c = x[base + order[start + right] * inner]
                        if descending != 0:
                            take_right = c > a or (c != c and a == a)
                        else:
                            take_right = c < a or (a != a and c == c)
                    if take_right:
                        chosen = right
                        right = right + 1
                    else:
                        chosen = left
                        left = left + 1
                    if flipped:
                        order[start + target] = other[start + chosen]
                    else:
                        other[start + target] = order[start + chosen]
                low = high
            flipped = not flipped
            width = 2 * width
        result = (item // inner) * kept * inner + item % inner
        for j in range(kept):
            position = other[start + j] if flipped else order[start + j]
            values[result + j * inner] = x[base + position * inner]
            indices[result + j * inner] = position
    return 0


def _lines(call: Call) -> tuple[Dim, Dim, Dim]:
    """Sizes before the axis, of the axis, after the axis."""
    shape, axis = call.types[0].shape, call.axis(call.attrs.axis)
    return symbols.product(shape[:axis]), shape[axis], symbols.product(shape[axis + 1 :])


def _sorter(kept: Any, descending: Any) -> Opaque:
    def args(call: Call) -> Sequence[Any]:
        outer, length, inner = _lines(call)
        return [outer, length, kept(call), inner, int(descending(call))]

    def items(call: Call) -> Dim:
        outer, _, inner = _lines(call)
        return outer * inner

    return Opaque(
        sort_kernel,
        args=args,
        scratch=lambda call: [(i64, (call.types[0].numel,)), (i64, (call.types[0].numel,))],
        role="sort",
        parallel=items,
        flat=True,
    )


def stable_order(x: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Positions that sort `x`; equal keys keep their order in both directions."""
    x = wide_array(x)  # NumPy knows of its own floats alone that NaN comes last
    if not descending:
        return np.argsort(x, axis=axis, kind="stable").astype(np.int64)
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    order: np.ndarray = np.flip(x.shape[axis] - 1 - backwards, axis).astype(np.int64)
    return order


def _sort_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    call.axis(call.attrs.axis)
    return [TensorType(x.dtype, x.shape), TensorType(i64, x.shape)]


def _sort_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axis = call.axis(call.attrs.axis)
    order = stable_order(x, axis, call.attrs.descending)
    return np.take_along_axis(x, order, axis), order


def _grad_values(b: Builder, node: Node, g: Value, *_: Value) -> Sequence[Value | None]:
    """The cotangent of each value goes to the position it came from."""
    (x,) = node.operands
    zeros = b.full(x.type.shape, 0, g.dtype)
    return (b.scatter_elements(zeros, node.results[1], g, axis=node.attrs["axis"], reduction="none"),)


def _f(values: object) -> np.ndarray:
    return np.array(values, np.float32)


register(
    OpDef(
        name="sort",
        doc="Sorts along an axis; gives the values and the positions they came from.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(Attr("axis", "int", -1, "axis to sort along"), Attr("descending", "bool", False, "largest first")),
        infer=_sort_type,
        reference=_sort_reference,
        kind=_sorter(lambda call: _lines(call)[1], lambda call: call.attrs.descending),
        grad=_grad_values,
        examples=lambda: [
            ([_f([[3, 1, 2], [0, 5, -4]])], {"axis": -1}),
            ([_f([[3, 1], [2, 5], [0.5, 7]])], {"axis": 0, "descending": True}),
            ([_f([])], {"axis": 0}),
            ([_f([4])], {"axis": 0}),
            ([_f([[np.nan, 1, np.nan, -np.inf, 0, -0.0, 1]])], {"axis": 1}),
            ([_f([[np.nan, 1, np.nan, -np.inf, 0, -0.0, 1]])], {"axis": 1, "descending": True}),
        ],
        source="numpy.sort",
    )
)


def _topk_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    axis, k = call.axis(call.attrs.axis), call.attrs.k
    if isinstance(k, int) and k < 0:
        call.fail(f"k is {k}")
    call.require(symbols.maximum(k, x.shape[axis]), x.shape[axis], f"size of axis {axis}, which k must not exceed")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [TensorType(x.dtype, shape), TensorType(i64, shape)]


def _topk_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    axis = call.axis(call.attrs.axis)
    order = np.take(stable_order(x, axis, call.attrs.largest), np.arange(call.attrs.k), axis=axis)
    return np.take_along_axis(x, order, axis), order


register(
    OpDef(
        name="topk",
        doc="The k largest (or smallest) elements along an axis and their positions; the lower position wins ties.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(
            Attr("k", "dim", doc="how many"),
            Attr("axis", "int", -1, "axis to search along"),
            Attr("largest", "bool", True, "the largest elements, else the smallest"),
            Attr("sorted", "bool", True, "asks for sorted results (they always are)"),
        ),
        infer=_topk_type,
        reference=_topk_reference,
        kind=_sorter(lambda call: call.attrs.k, lambda call: call.attrs.largest),
        grad=_grad_values,
        examples=lambda: [
            ([_f([[3, 1, 2], [0, 5, -4]])], {"k": 2}),
            ([_f([[3, 1], [2, 5], [0.5, 7]])], {"k": 1, "axis": 0, "largest": False}),
            ([_f([1, 2])], {"k": 0}),
            ([_f([4])], {"k": 1, "axis": 0}),
            ([_f([2, np.nan, 2, 7, 2])], {"k": 4}),
        ],
        source="ONNX TopK",
    )
)
