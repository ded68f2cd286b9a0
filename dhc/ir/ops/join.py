"""Joining tensors along an axis and taking them apart again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import ANY
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Composite, Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType


def _concat_type(call: Call) -> list[TensorType]:
    if not call.types:
        call.fail("needs at least one operand")
    first = call.types[0]
    axis = call.axis(call.attrs.axis)
    shape = list(first.shape)
    for position, other in enumerate(call.types[1:], 1):
        if other.dtype != first.dtype:
            call.fail_type(f"operand {position} is {other.dtype}, the first is {first.dtype}", hint="insert a cast")
        if other.rank != first.rank:
            call.fail(f"operand {position} has rank {other.rank}, the first has {first.rank}")
        for i, dim in enumerate(other.shape):
            if i == axis:
                shape[i] = shape[i] + dim
                continue
            call.require(shape[i], dim, f"axis {i} of operand {position}")
            shape[i] = dim if isinstance(dim, int) else shape[i]
    return [TensorType(first.dtype, tuple(shape))]


def _concat_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    axis = call.axis(call.attrs.axis)
    offsets: list[Dim] = [0]
    for t in call.types:
        offsets.append(offsets[-1] + t.shape[axis])

    def choose(first: int, end: int) -> s.ScalarExpr:
        if end - first == 1:
            source = list(index)
            source[axis] = index[axis] - s.size(offsets[first])
            return load(first, source)
        middle = (first + end) // 2  # a balanced tree keeps the nesting small for many operands
        return s.select(index[axis] < s.size(offsets[middle]), choose(first, middle), choose(middle, end))

    return choose(0, len(call.types))


def _grad_concat(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    axis = Call.of(node).axis(node.attrs["axis"])
    parts: list[Value | None] = []
    offset: Dim = 0
    for x in node.operands:
        starts: list[Dim] = [0] * x.type.rank
        starts[axis] = offset
        offset = offset + x.type.shape[axis]
        parts.append(b.slice(g, starts=starts, sizes=x.type.shape, steps=[1] * x.type.rank))
    return parts


def _numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape)


register(
    OpDef(
        name="concat",
        doc="Joins tensors along an axis.",
        operands=(Operand("xs", ANY, variadic=True),),
        attrs=(Attr("axis", "int", doc="the axis along which sizes may differ"),),
        infer=_concat_type,
        reference=lambda call, *xs: np.concatenate(xs, axis=call.attrs.axis),
        kind=Map(_concat_element),
        grad=_grad_concat,
        examples=lambda: [
            ([_numbers(2, 3), -_numbers(2, 1), _numbers(2, 2)], {"axis": -1}),
            ([_numbers(1, 2), _numbers(0, 2)], {"axis": 0}),
            ([_numbers(3)], {"axis": 0}),
            ([_numbers(1), _numbers(2), _numbers(3), _numbers(1), _numbers(2)], {"axis": 0}),
        ],
        source="ONNX Concat",
    )
)


def _split_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    axis = call.axis(call.attrs.axis)
    if not call.attrs.sizes:
        call.fail("needs at least one size")
    total: Dim = 0
    for size in call.attrs.sizes:
        total = total + size
    call.require(total, x.shape[axis], "sum of the sizes")
    return [TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in call.attrs.sizes]


def _build_split(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    axis = call.axis(call.attrs.axis)
    parts: list[Value] = []
    offset: Dim = 0
    for size in call.attrs.sizes:
        starts: list[Dim] = [0] * x.type.rank
        sizes = list(x.type.shape)
        starts[axis], sizes[axis] = offset, size
        offset = offset + size
        parts.append(b.slice(x, starts=starts, sizes=sizes, steps=[1] * x.type.rank))
    if offset != x.type.shape[axis]:
        # Only the run can tell that the sizes add up: the last part takes what is there, and must then have its size.
        starts[axis], sizes[axis] = offset - size, x.type.shape[axis] - (offset - size)
        rest = b.slice(x, starts=starts, sizes=sizes, steps=[1] * x.type.rank)
        parts[-1] = b.reshape(rest, shape=parts[-1].type.shape)
    return parts


def _split_reference(call: Call, x: np.ndarray) -> tuple[np.ndarray, ...]:
    cuts = [int(n) for n in np.cumsum(call.attrs.sizes)[:-1]]
    return tuple(np.split(x, cuts, axis=call.axis(call.attrs.axis)))


register(
    OpDef(
        name="split",
        doc="Cuts a tensor along an axis into parts of the given sizes.",
        operands=(Operand("x", ANY),),
        attrs=(Attr("axis", "int", doc="axis to cut"), Attr("sizes", "dims", doc="size of each part along the axis")),
        infer=_split_type,
        reference=_split_reference,
        kind=Composite(_build_split),
        examples=lambda: [
            ([_numbers(5, 2)], {"axis": 0, "sizes": (2, 3)}),
            ([_numbers(2, 4)], {"axis": -1, "sizes": (1, 0, 3)}),
            ([_numbers(3)], {"axis": 0, "sizes": (3,)}),
        ],
        source="ONNX Split",
    )
)
