"""Selections whose number of results depends on the data: non-zero positions, chosen slices."""

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
