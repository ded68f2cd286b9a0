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


def merged_runs(
    x: Any, source: Any, target: Any, size: Any, start: Any, length: Any,
    base: Any, stride: Any, width: Any, descending: Any,
) -> None:  # fmt: skip
    """Merges neighbouring sorted runs of `size` positions from `source` into `target`; see `stably_ordered`."""
    low = 0
    while low < length:
        middle = min(low + size, length)
        high = min(low + 2 * size, length)
        left = low
        right = middle
        for place in range(low, high):
            if left >= middle:
                take_right = True
            elif right >= high:
                take_right = False
            else:
                take_right = False
                for c in range(width):
                    a = x[base + source[start + left] * stride + c]
                    d = x[base + source[start + right] * stride + c]
                    if descending != 0:
                        take_right = d > a or (d != d and a == a)
                        take_left = a > d or (a != a and d == d)
                    else:
                        take_right = d < a or (a != a and d == d)
                        take_left = a < d or (d != d and a == a)
                    if take_right or take_left:
                        break
            if take_right:
                target[start + place] = source[start + right]
                right = right + 1
            else:
                target[start + place] = source[start + left]
                left = left + 1
        low = high


def stably_ordered(
    x: Any, order: Any, other: Any, start: Any, length: Any, base: Any, stride: Any, width: Any, descending: Any,
) -> None:  # fmt: skip
    """Sorts ``order[start : start + length]``, positions of rows, by merging runs of 1, 2, 4, ...; part of kernels.

    The row at a position is ``x[base + position * stride]`` and the `width` elements from there on; rows compare by
    their first different element, NaN equals NaN and is the greatest. `other` is working memory like `order`.
    """
    for j in range(length):
        order[start + j] = j
    size = 1
    while size < length:
        merged_runs(x, order, other, size, start, length, base, stride, width, descending)
        size = 2 * size
        if size < length:
            merged_runs(x, other, order, size, start, length, base, stride, width, descending)
            size = 2 * size
        else:
            for j in range(length):
                order[start + j] = other[start + j]


def sort_kernel(x, values, indices, order, other, outer, length, kept, inner, descending, first, end):  # type: ignore[no-untyped-def]
    """Work item: one line along the axis, which has its own part of the scratch buffers."""
    for item in range(first, end):
        start = item * length
        base = (item // inner) * length * inner + item % inner
        stably_ordered(x, order, other, start, length, base, inner, 1, descending)
        result = (item // inner) * kept * inner + item % inner
        for j in range(kept):
            position = order[start + j]
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
