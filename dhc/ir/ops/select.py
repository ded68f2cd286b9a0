"""Selections whose number of results depends on the data: non-zero positions, distinct values, chosen slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import BOOL, FIXED, REALS, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.precision import wide_array
from dhc.ir.registry import register
from dhc.ir.symbols import Dim, sym
from dhc.ir.types import TensorType

_COUNT = Attr("count", "symbol", doc="the size found at run time")


def new_dim(call: Call) -> Dim:
    """The size that this call defines."""
    name: str = call.attrs.count
    return sym(name)


def nonzero_kernel(x, out, count, total, rank, *shape):  # type: ignore[no-untyped-def]
    """Counts first, because the row of the next axis begins where this one ends."""
    found = 0
    for p in range(total):
        if x[p] != 0:
            found = found + 1
    count[0] = found
    at = 0
    for p in range(total):
        if x[p] != 0:
            rest = p
            for back in range(rank):
                axis = rank - 1 - back
                out[axis * found + at] = rest % shape[axis]
                rest = rest // shape[axis]
            at = at + 1
    return 0


def _nonzero_reference(call: Call, x: np.ndarray) -> np.ndarray:
    if x.ndim == 0:
        return np.zeros((0, int(x != 0)), np.int64)
    return np.stack(np.nonzero(x)).astype(np.int64)


def _f(values: object) -> np.ndarray:
    return np.array(values, np.float32)


register(
    OpDef(
        name="nonzero",
        doc="Positions of the elements that are not zero, in row-major order; one row for each axis.",
        operands=(Operand("x", REALS | BOOL),),
        attrs=(_COUNT,),
        infer=lambda call: [TensorType(i64, (call.types[0].rank, new_dim(call)))],
        reference=_nonzero_reference,
        kind=Opaque(
            nonzero_kernel,
            # a scalar has one (unused) size, so that the sizes are never empty
            args=lambda call: [call.types[0].numel, call.types[0].rank, *(call.types[0].shape or (1,))],
            bounds=lambda call: [(call.types[0].rank, call.types[0].numel)],
            count=True,
            flat=True,
        ),
        grad=NotDifferentiable("the result is positions"),
        examples=lambda: [
            ([_f([[0, 1, 2], [3, 0, 0]])], {}),
            ([_f([0, 0])], {}),
            ([_f([])], {}),
            ([np.array([[True], [False]])], {}),
        ],
        source="ONNX NonZero",
    )
)


def unique_kernel(x, values, first, inverse, counts, count, order, other, n, in_order):  # type: ignore[no-untyped-def]
    """Merge sort of the positions, then one pass over groups of equal values (NaN equals NaN)."""
    for j in range(n):
        order[j] = j
    width = 1
    flipped = False
    while width < n:
        low = 0
        while low < n:
            middle = min(low + width, n)
            high = min(low + 2 * width, n)
            left = low
            right = middle
            for target in range(low, high):
                if left >= middle:
                    take_right = True
                elif right >= high:
                    take_right = False
                else:
                    a = x[other[left]] if flipped else x[order[left]]
                    c = x[other[right]] if flipped else x[order[right]]
                    take_right = c < a or (a != a and c == c)
                if take_right:
                    chosen = right
                    right = right + 1
                else:
                    chosen = left
                    left = left + 1
                if flipped:
                    order[target] = other[chosen]
                else:
                    other[target] = order[chosen]
            low = high
        flipped = not flipped
        width = 2 * width
    if flipped:
        for j in range(n):
            order[j] = other[j]
    found = 0
    for j in range(n):
        position = order[j]
        new = True
        if j > 0:
            a = x[order[j - 1]]
            c = x[position]
            new = not (a == c or (a != a and c != c))
        if new:
            first[found] = position
            counts[found] = 0
            found = found + 1
        counts[found - 1] = counts[found - 1] + 1
        inverse[position] = found - 1
    count[0] = found
    if in_order == 0:
        # Groups in the order of their first element: other[p] becomes the new number of the group that starts at p.
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
        values[group] = x[first[group]]
    return 0


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
            args=lambda call: [call.types[0].shape[0], int(call.attrs.sorted)],
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


def compress_kernel(x, condition, out, count, outer, length, inner, given):  # type: ignore[no-untyped-def]
    """Copies the chosen slices of each outer block."""
    for j in range(length, given):
        if condition[j]:
            return 1
    found = 0
    for j in range(min(length, given)):
        if condition[j]:
            found = found + 1
    count[0] = found
    at = 0
    for block in range(outer):
        for j in range(min(length, given)):
            if condition[j]:
                source = (block * length + j) * inner
                for c in range(inner):
                    out[at + c] = x[source + c]
                at = at + inner
    return 0


def _compress_type(call: Call) -> list[TensorType]:
    x, condition = call.types
    require_rank(call, 1, 1)
    axis = call.axis(call.attrs.axis)
    given, length = condition.shape[0], x.shape[axis]
    if isinstance(given, int) and isinstance(length, int) and given > length:
        call.fail(f"{given} conditions for size {length}")
    return [TensorType(x.dtype, (*x.shape[:axis], new_dim(call), *x.shape[axis + 1 :]))]


def _compress_reference(call: Call, x: np.ndarray, condition: np.ndarray) -> np.ndarray:
    axis = call.axis(call.attrs.axis)
    return np.take(x, np.flatnonzero(condition), axis=axis)


def _compress_args(call: Call) -> Sequence[Any]:
    x, condition = call.types
    axis = call.axis(call.attrs.axis)
    return [symbols.product(x.shape[:axis]), x.shape[axis], symbols.product(x.shape[axis + 1 :]), condition.shape[0]]


def _grad_compress(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    """Each slice reads the cotangent at its rank among the chosen ones, the others read a slice of zeros."""
    x, condition = node.operands
    axis = Call.of(node).axis(node.attrs["axis"])
    length, rank = x.type.shape[axis], x.type.rank
    chosen = b.cast(condition, dtype=i64)
    missing = length - condition.type.shape[0]
    if missing != 0:
        chosen = b.pad(chosen, b.constant(0, i64), low=[0], high=[missing], mode="constant")
    place = b.sub(b.cumsum(chosen, axis=0), b.constant(1, i64))
    found = b.reshape(b.dims(values=(g.type.shape[axis],)), shape=())
    place = b.where(b.eq(chosen, b.constant(1, i64)), place, found)
    extended = b.pad(g, b.like(0, g), low=[0] * rank, high=[int(a == axis) for a in range(rank)], mode="constant")
    return b.gather(extended, place, axis=axis), None


register(
    OpDef(
        name="compress",
        doc="The slices along an axis for which the condition holds; conditions that are missing at the end are false.",
        operands=(Operand("x", FIXED), Operand("condition", BOOL)),
        attrs=(_COUNT, Attr("axis", "int", 0, "axis to choose along")),
        infer=_compress_type,
        reference=_compress_reference,
        kind=Opaque(
            compress_kernel, args=_compress_args, bounds=lambda call: [call.types[0].shape], count=True, flat=True
        ),
        grad=_grad_compress,
        examples=lambda: [
            ([_f([[1, 2], [3, 4], [5, 6]]), np.array([False, True, True])], {"axis": 0}),
            ([_f([[1, 2, 3], [4, 5, 6]]), np.array([True])], {"axis": -1}),
            ([_f([1, 2]), np.array([False, False])], {"axis": 0}),
        ],
        source="ONNX Compress",
    )
)
