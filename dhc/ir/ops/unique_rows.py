"""Distinct rows of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.ir.dtypes import BOOL, REALS, i64
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.select import new_dim
from dhc.ir.precision import wide_array
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def unique_rows_kernel(x, values, first, inverse, counts, count, order, other, n, width, in_order):  # type: ignore[no-untyped-def]
    """Merge sort of the rows by their first different element, then one pass over groups of equal rows."""
    for j in range(n):
        order[j] = j
    size = 1
    while size < n:
        low = 0
        while low < n:
            middle = min(low + size, n)
            high = min(low + 2 * size, n)
            left = low
            right = middle
            for target in range(low, high):
                if left >= middle:
                    take_right = True
                elif right >= high:
                    take_right = False
                else:
                    take_right = False
                    for c in range(width):
                        a = x[order[left] * width + c]
                        d = x[order[right] * width + c]
                        if not (a == d or (a != a and d != d)):
                            take_right = d < a or (a != a and d == d)
                            break
                if take_right:
                    other[target] = order[right]
                    right = right + 1
                else:
                    other[target] = order[left]
                    left = left + 1
            low = high
        for j in range(n):
            order[j] = other[j]
        size = 2 * size
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


def _type(call: Call) -> list[TensorType]:
    (x,) = call.types
    require_rank(call, 0, 2)
    count = new_dim(call)
    per_row = TensorType(i64, (count,))
    return [TensorType(x.dtype, (count, x.shape[1])), per_row, TensorType(i64, (x.shape[0],)), per_row]


def _reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
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


def _f(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


register(
    OpDef(
        name="unique_rows",
        doc="Distinct rows of a matrix, where each is first, which one each row is, and how often each occurs.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(
            Attr("count", "symbol", doc="the size found at run time"),
            Attr("sorted", "bool", True, "in lexicographic order, else in the order of their first row"),
        ),
        infer=_type,
        reference=_reference,
        kind=Opaque(
            unique_rows_kernel,
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
