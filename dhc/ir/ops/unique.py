"""Distinct values of a vector and distinct rows of a matrix: NaN equals NaN, and zeros of both signs are equal."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.ir.dtypes import BOOL, REALS, i64
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.select import new_dim
from dhc.ir.ops.sort import stably_ordered
from dhc.ir.precision import wide_array
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def unique_kernel(x, values, first, inverse, counts, count, order, other, n, width, in_order):  # type: ignore[no-untyped-def]
    """Sorts the rows, then one pass over groups of equal ones. A vector has rows of one element."""
    stably_ordered(x, order, other, 0, n, 0, width, width, 0)
    found = 0
    for j in range(n):
        position = order[j]
        new = True
        if j > 0:
            new = False
            for c in range(width):
                a = x[order[j - 1] * width + c]
                d = x[position * width + c]
                if not (a == d or (a != a and d != d)):
                    new = True
                    break
        if new:
            first[found] = position
            counts[found] = 0
            found = found + 1
        counts[found - 1] = counts[found - 1] + 1
        inverse[position] = found - 1
    count[0] = found
    if in_order == 0:
        # Groups in the order of their first row: other[p] becomes the new number of the group that starts at p.
        for j in range(n):
            other[j] = -1
        for group in range(found):
            other[first[group]] = group
        at = 0
        for j in range(n):
            if other[j] >= 0:
                order[at] = counts[other[j]]
                other[j] = at
                at = at + 1
        for j in range(n):
            inverse[j] = other[first[inverse[j]]]
        at = 0
        for j in range(n):
            if other[j] >= 0:
                first[at] = j
                counts[at] = order[at]
                at = at + 1
    for group in range(found):
        for c in range(width):
            values[group * width + c] = x[first[group] * width + c]
    return 0


_COUNT = Attr("count", "symbol", doc="the size found at run time")


def _f(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def _unique_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    require_rank(call, 0, 1)
    count = new_dim(call)
    per_value = TensorType(i64, (count,))
    return [TensorType(x.dtype, (count,)), per_value, TensorType(i64, x.shape), per_value]


def _unique_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    # NumPy knows of its own floats alone that NaN is equal to itself and larger than all numbers.
    wide, first, inverse, counts = np.unique(wide_array(x), return_index=True, return_inverse=True, return_counts=True)
    values, inverse = wide.astype(x.dtype), inverse.reshape(x.shape)
    if not call.attrs.sorted:
        order = np.argsort(first)
        values, first, counts = values[order], first[order], counts[order]
        inverse = np.argsort(order)[inverse] if order.size else inverse
    return values, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


register(
    OpDef(
        name="unique",
        doc="Distinct values of a vector, where each is first, which one each element is, and how often each occurs.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(_COUNT, Attr("sorted", "bool", True, "ascending, else in the order of their first element")),
        infer=_unique_type,
        reference=_unique_reference,
        kind=Opaque(
            unique_kernel,
            args=lambda call: [call.types[0].shape[0], 1, int(call.attrs.sorted)],
            scratch=lambda call: [(i64, call.types[0].shape), (i64, call.types[0].shape)],
            role="sort",
            bounds=lambda call: [call.types[0].shape] * 4,
            count=True,
            flat=True,
        ),
        grad=NotDifferentiable("which values are equal changes in jumps"),
        examples=lambda: [
            ([_f([2, 1, 1, 3, 2, 2])], {}),
            ([_f([2, 1, 1, 3, 0, 2])], {"sorted": False}),
            ([_f([])], {}),
            ([_f([np.nan, 1, -0.0, np.nan, 0])], {"sorted": False}),
            ([np.array([5, -1, 5], np.int64)], {"sorted": True}),
        ],
        source="ONNX Unique",
    )
)


def _rows_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    require_rank(call, 0, 2)
    count = new_dim(call)
    per_row = TensorType(i64, (count,))
    return [TensorType(x.dtype, (count, x.shape[1])), per_row, TensorType(i64, (x.shape[0],)), per_row]


def _rows_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    # Elements become their ranks, so that NaN equals NaN and signed zeros are equal.
    ranks = np.unique(wide_array(x), return_inverse=True)[1].reshape(x.shape)
    keys = [ranks[:, c] for c in reversed(range(x.shape[1]))]
    order = np.lexsort(keys) if keys else np.arange(len(x))
    different = np.any(ranks[order][1:] != ranks[order][:-1], axis=1)
    starts = np.concatenate([[True], different]) if len(x) else np.zeros(0, np.bool_)
    group = np.cumsum(starts) - 1
    inverse = np.zeros(len(x), np.int64)
    inverse[order] = group
    first, counts = order[starts], np.bincount(group, minlength=int(starts.sum()))
    if not call.attrs.sorted:
        arranged = np.argsort(first)
        inverse = np.argsort(arranged)[inverse] if len(x) else inverse
        first, counts = first[arranged], counts[arranged]
    return x[first], first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


register(
    OpDef(
        name="unique_rows",
        doc="Distinct rows of a matrix, where each is first, which one each row is, and how often each occurs.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(
            _COUNT,
            Attr("sorted", "bool", True, "in lexicographic order, else in the order of their first row"),
        ),
        infer=_rows_type,
        reference=_rows_reference,
        kind=Opaque(
            unique_kernel,
            args=lambda call: [*call.types[0].shape, int(call.attrs.sorted)],
            scratch=lambda call: [(i64, call.types[0].shape[:1]), (i64, call.types[0].shape[:1])],
            role="sort",
            bounds=lambda call: [call.types[0].shape, *[call.types[0].shape[:1]] * 3],
            count=True,
            flat=True,
        ),
        grad=NotDifferentiable("which rows are equal changes in jumps"),
        examples=lambda: [
            ([_f([[1, 0, 0], [1, 0, 0], [2, 3, 4], [1, 0, -1]])], {}),
            ([_f([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 5]])], {"sorted": False}),
            ([_f([[np.nan, 1], [2, np.nan], [np.nan, 1], [-0.0, 0], [0, 0]])], {}),
            ([np.zeros((0, 3), np.float32)], {}),
        ],
        source="ONNX Unique",
    )
)
