"""Writing at positions that another tensor gives. Updates are applied in row-major order of the indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import BOOL, INDEX, REALS
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_equal
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.ops.gather import check_fits, check_tuples, checked_indices
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

REDUCTIONS = ("none", "add", "mul", "max", "min")
_REDUCTION = Attr("reduction", "str", "none", "what happens to the element that is there already", REDUCTIONS)
_SCATTERED = REALS | BOOL


def _check_reduction(call: Call) -> None:
    if call.attrs.reduction != "none" and call.types[0].dtype in BOOL:
        call.fail_type(f"no reduction {call.attrs.reduction!r} of truth values")


def _combine(old: Any, new: Any, reduction: str) -> Any:
    """One update. NaN wins in max and min."""
    if reduction == "add":
        return old + new
    if reduction == "mul":
        return old * new
    if reduction == "max":
        return np.maximum(old, new)
    if reduction == "min":
        return np.minimum(old, new)
    return new


# ---- scatter_elements ------------------------------------------------------------------------------------------------


def _scatter_elements_type(call: Call) -> list[TensorType]:
    x, indices, updates = call.types
    check_fits(call, indices, x, call.axis(call.attrs.axis))
    if updates.rank != indices.rank:
        call.fail(f"the updates have rank {updates.rank}, the indices {indices.rank}")
    for i, (a, c) in enumerate(zip(updates.shape, indices.shape)):
        call.require(a, c, f"axis {i} of updates and indices")
    _check_reduction(call)
    return [TensorType(x.dtype, x.shape)]


def _scatter_elements_reference(call: Call, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    axis = call.axis(call.attrs.axis)
    positions = checked_indices(call, indices, x.shape[axis], axis)
    result = x.copy()
    for at in np.ndindex(*indices.shape):
        target = (*at[:axis], positions[at], *at[axis + 1 :])
        result[target] = _combine(result[target], updates[at], call.attrs.reduction)
    return result


def scatter_elements_kernel(x, indices, updates, out, code, axis, rank, *rest):  # type: ignore[no-untyped-def]
    """Work item: one line of the operand along the axis. `rest`: shapes of x and indices, first item, end item."""
    first = rest[2 * rank]
    end = rest[2 * rank + 1]
    length = rest[axis]
    count = rest[rank + axis]
    stride = 1
    index_stride = 1
    for a in range(axis + 1, rank):
        stride = stride * rest[a]
        index_stride = index_stride * rest[rank + a]
    for item in range(first, end):
        inner = item % stride
        base = (item // stride) * stride * length + inner
        for j in range(length):
            out[base + j * stride] = x[base + j * stride]
        # The line's position along the other axes; lines beyond the indices are only copied.
        remaining = item
        covered = True
        start = 0
        place = 1
        for back in range(rank):
            a = rank - 1 - back
            if a == axis:
                place = place * count
            else:
                at = remaining % rest[a]
                remaining = remaining // rest[a]
                if at >= rest[rank + a]:
                    covered = False
                start = start + at * place
                place = place * rest[rank + a]
        if covered:
            for j in range(count):
                source = start + j * index_stride
                position = indices[source]
                if position < 0:
                    position = position + length
                if position < 0 or position >= length:
                    return 1
                target = base + position * stride
                if code == 1:
                    out[target] = out[target] + updates[source]
                elif code == 2:
                    out[target] = out[target] * updates[source]
                elif code == 3:
                    if updates[source] > out[target] or updates[source] != updates[source]:
                        out[target] = updates[source]
                elif code == 4:
                    if updates[source] < out[target] or updates[source] != updates[source]:
                        out[target] = updates[source]
                else:
                    out[target] = updates[source]
    return 0


def _lines(call: Call) -> Dim:
    axis = call.axis(call.attrs.axis)
    return symbols.product(d for i, d in enumerate(call.types[0].shape) if i != axis)


def _scatter_elements_args(call: Call) -> Sequence[Any]:
    x, indices, _ = call.types
    return [REDUCTIONS.index(call.attrs.reduction), call.axis(call.attrs.axis), x.rank, *x.shape, *indices.shape]


def _grad_scatter_elements(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    axis = node.attrs["axis"]

    def read(x: Value) -> Value:
        result: Value = b.gather_elements(x, node.operands[1], axis=axis)
        return result

    def write(x: Value, updates: Value, reduction: str) -> Value:
        result: Value = b.scatter_elements(x, node.operands[1], updates, axis=axis, reduction=reduction)
        return result

    return _scatter_gradient(b, node, g, read, write)


def _scatter_gradient(b: Builder, node: Node, g: Value, read: Any, write: Any) -> Sequence[Value | None]:
    """Cotangents of operand and updates, given how to read and write at the indices.

    Without a reduction, an element written twice passes the cotangent to every update of it (which one stays is not
    part of the op's mathematical meaning). Equal candidates of max and min share the cotangent.
    """
    x, _, updates = node.operands
    reduction = node.attrs["reduction"]
    if reduction == "add":
        return g, None, read(g)
    if reduction == "none":
        return write(g, b.zeros_like(updates), "none"), None, read(g)
    if reduction == "mul":
        return _product_gradient(b, x, updates, g, read, write)
    result = b.call(node.op, *node.operands, attrs=dict(node.attrs))
    mine = b.cast(b.eq(x, result), dtype=g.dtype)
    theirs = b.cast(b.eq(updates, read(result)), dtype=g.dtype)
    share = b.div(g, write(mine, theirs, "add"))
    return b.mul(share, mine), None, b.mul(read(share), theirs)


def _product_gradient(b: Builder, x: Value, updates: Value, g: Value, read: Any, write: Any) -> Sequence[Value | None]:
    """Each factor gets the product of the others: zeros are counted, not divided by."""
    zero, one = b.like(0, g), b.like(1, g)

    def nonzero_part(factor: Value) -> Value:
        part: Value = b.where(b.eq(factor, zero), one, factor)
        return part

    def is_zero(factor: Value) -> Value:
        flag: Value = b.cast(b.eq(factor, zero), dtype=g.dtype)
        return flag

    product = write(nonzero_part(x), nonzero_part(updates), "mul")
    zeros = write(is_zero(x), is_zero(updates), "add")

    def others(factor: Value, product: Value, zeros: Value) -> Value:
        without = b.div(product, nonzero_part(factor))
        rest: Value = b.where(b.eq(zeros, is_zero(factor)), without, zero)
        return rest

    gx = b.mul(g, others(x, product, zeros))
    return gx, None, b.mul(read(g), others(updates, read(product), read(zeros)))


def _f(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def _i(values: object) -> np.ndarray:
    return np.array(values, np.int64)


register(
    OpDef(
        name="scatter_elements",
        doc="A copy of the operand with one element replaced, or combined, for each index along an axis.",
        operands=(Operand("x", _SCATTERED), Operand("indices", INDEX), Operand("updates", _SCATTERED, same="x")),
        attrs=(Attr("axis", "int", 0, "axis that the indices count along"), _REDUCTION),
        infer=_scatter_elements_type,
        reference=_scatter_elements_reference,
        kind=Opaque(scatter_elements_kernel, args=_scatter_elements_args, role="scatter", parallel=_lines, flat=True),
        grad=_grad_scatter_elements,
        examples=lambda: [
            ([_f([[1, 2, 3], [4, 5, 6]]), _i([[1, 0]]), _f([[7, 8]])], {"axis": 0}),
            ([_f([1, 2, 3, 4, 5]), _i([1, -1]), _f([1.5, 2.5])], {"axis": 0}),
            (
                [_f([[1, 2, 3], [4, 5, 6]]), _i([[1, 1], [0, -1]]), _f([[7, 8], [9, 3]])],
                {"axis": -1, "reduction": "add"},
            ),
            ([_f([1, 2, 3]), _i([0, 2, 2]), _f([4, 1, 9])], {"axis": 0, "reduction": "max"}),
            ([_f([1, 2, 3]), _i([0, 2, 2]), _f([4, 1, 9])], {"axis": 0, "reduction": "min"}),
            ([_f([1, np.nan, 3]), _i([0, 1, 2]), _f([np.nan, 4, 9])], {"axis": 0, "reduction": "max"}),
            ([_f([1, 2, 3]), _i([0, 2, 2]), _f([4, 0.5, 9])], {"axis": 0, "reduction": "mul"}),
            ([_f([1, 2]), np.zeros((0,), np.int64), _f([])], {"axis": 0}),
        ],
        source="ONNX ScatterElements",
    )
)


# ---- scatter_nd ------------------------------------------------------------------------------------------------------


def _scatter_nd_type(call: Call) -> list[TensorType]:
    x, indices, updates = call.types
    width = check_tuples(call, indices, x.rank, 0)
    wanted = (*indices.shape[:-1], *x.shape[width:])
    if updates.rank != len(wanted):
        call.fail(f"the updates have rank {updates.rank}, needs {len(wanted)}")
    for i, (a, c) in enumerate(zip(updates.shape, wanted)):
        require_equal(call, a, c, f"axis {i} of the updates")
    _check_reduction(call)
    return [TensorType(x.dtype, x.shape)]


def _scatter_nd_reference(call: Call, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> np.ndarray:
    width = indices.shape[-1]
    positions = [checked_indices(call, indices[..., k], x.shape[k], k) for k in range(width)]
    result = x.copy()
    for at in np.ndindex(*indices.shape[:-1]):
        target = tuple(p[at] for p in positions)
        result[target] = _combine(result[target], updates[at], call.attrs.reduction)
    return result


def scatter_nd_kernel(x, indices, updates, out, code, tuples, width, rows, columns, *rest):  # type: ignore[no-untyped-def]
    """Work item: one position within the slices. `rest`: sizes of the indexed axes, first item, end item."""
    first = rest[width]
    end = rest[width + 1]
    for row in range(rows):
        for c in range(row * columns + first, row * columns + end):
            out[c] = x[c]
    for t in range(tuples):
        row = 0
        for k in range(width):
            position = indices[t * width + k]
            if position < 0:
                position = position + rest[k]
            if position < 0 or position >= rest[k]:
                return 1
            row = row * rest[k] + position
        target = row * columns
        source = t * columns
        for c in range(first, end):
            if code == 1:
                out[target + c] = out[target + c] + updates[source + c]
            elif code == 2:
                out[target + c] = out[target + c] * updates[source + c]
            elif code == 3:
                if updates[source + c] > out[target + c] or updates[source + c] != updates[source + c]:
                    out[target + c] = updates[source + c]
            elif code == 4:
                if updates[source + c] < out[target + c] or updates[source + c] != updates[source + c]:
                    out[target + c] = updates[source + c]
            else:
                out[target + c] = updates[source + c]
    return 0


def _width(call: Call) -> int:
    """Length of an index tuple, from the ranks alone: kernels are made for sizes that stand for others."""
    x, indices, updates = call.types
    return int(x.rank + indices.rank - 1 - updates.rank)


def _columns(call: Call) -> Dim:
    return symbols.product(call.types[0].shape[_width(call) :])


def _scatter_nd_args(call: Call) -> Sequence[Any]:
    x, indices, _ = call.types
    width = _width(call)
    indexed = x.shape[:width]
    tuples = symbols.product(indices.shape[:-1])
    return [REDUCTIONS.index(call.attrs.reduction), tuples, width, symbols.product(indexed), _columns(call), *indexed]


def _grad_scatter_nd(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    def read(x: Value) -> Value:
        result: Value = b.gather_nd(x, node.operands[1])
        return result

    def write(x: Value, updates: Value, reduction: str) -> Value:
        result: Value = b.scatter_nd(x, node.operands[1], updates, reduction=reduction)
        return result

    return _scatter_gradient(b, node, g, read, write)


register(
    OpDef(
        name="scatter_nd",
        doc="A copy of the operand with one slice replaced, or combined, for each tuple of indices.",
        operands=(Operand("x", _SCATTERED), Operand("indices", INDEX), Operand("updates", _SCATTERED, same="x")),
        attrs=(_REDUCTION,),
        infer=_scatter_nd_type,
        reference=_scatter_nd_reference,
        kind=Opaque(scatter_nd_kernel, args=_scatter_nd_args, role="scatter", parallel=_columns, flat=True),
        grad=_grad_scatter_nd,
        examples=lambda: [
            ([_f([1, 2, 3, 4]), _i([[2], [-4]]), _f([9, 8])], {}),
            ([_f([[1, 2], [3, 4], [5, 6]]), _i([[2], [0], [2]]), _f([[9, 8], [7, 6], [1, 1]])], {"reduction": "add"}),
            ([_f([[1, 2], [3, 4]]), _i([[[0, 1]], [[-1, 0]]]), _f([[7], [1]])], {"reduction": "max"}),
            ([_f([[1, 2], [3, 4]]), _i([[1, 1], [0, 0]]), _f([7, 0])], {"reduction": "min"}),
            ([_f([1, 2]), np.zeros((0, 1), np.int64), _f([])], {}),
        ],
        source="ONNX ScatterND",
    )
)
