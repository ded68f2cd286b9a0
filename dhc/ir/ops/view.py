"""Ops that only move elements: each result element is one operand element at a computed position."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import ANY
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _reshape_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    wanted = symbols.product(call.attrs.shape)
    call.require(x.numel, wanted, f"number of elements for shape [{', '.join(map(str, call.attrs.shape))}]")
    return [TensorType(x.dtype, call.attrs.shape)]


def linear_index(index: Index, shape: symbols.Shape) -> s.ScalarExpr:
    """Row-major position of an index."""
    position: s.ScalarExpr = s.const(0, s.i64)
    for i, stride in zip(index, symbols.contiguous_strides(shape)):
        position = position + i * s.size(stride)
    return position


def unravel(position: s.ScalarExpr, shape: symbols.Shape) -> list[s.ScalarExpr]:
    """Index of a row-major position (which is within the shape)."""
    index: list[s.ScalarExpr] = []
    for axis, (dim, stride) in enumerate(zip(shape, symbols.contiguous_strides(shape))):
        if dim == 1:
            index.append(s.const(0, s.i64))
            continue
        quotient = position // s.size(stride)
        index.append(quotient if axis == 0 else quotient % s.size(dim))
    return index


def _reshape_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    return load(0, unravel(linear_index(index, call.results[0].shape), call.types[0].shape))


def _grad_reshape(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (b.reshape(g, shape=node.operands[0].type.shape),)


register(
    OpDef(
        name="reshape",
        doc="The same elements in row-major order under another shape.",
        operands=(Operand("x", ANY),),
        attrs=(Attr("shape", "dims", doc="result shape"),),
        infer=_reshape_type,
        reference=lambda call, x: np.reshape(x, call.attrs.shape),
        kind=Map(_reshape_element),
        grad=_grad_reshape,
        source="ONNX Reshape",
    )
)


def _transpose_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if sorted(call.attrs.perm) != list(range(x.rank)):
        call.fail(f"perm {list(call.attrs.perm)} is not a permutation of {x.rank} axes")
    return [TensorType(x.dtype, tuple(x.shape[p] for p in call.attrs.perm))]


def _transpose_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    source: list[s.ScalarExpr] = [s.const(0, s.i64)] * len(index)
    for position, axis in enumerate(call.attrs.perm):
        source[axis] = index[position]
    return load(0, source)


def _grad_transpose(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (b.transpose(g, perm=[int(p) for p in np.argsort(node.attrs["perm"])]),)


register(
    OpDef(
        name="transpose",
        doc="Permutes the axes: result axis i is operand axis perm[i].",
        operands=(Operand("x", ANY),),
        attrs=(Attr("perm", "ints", doc="operand axis for each result axis"),),
        infer=_transpose_type,
        reference=lambda call, x: np.transpose(x, call.attrs.perm),
        kind=Map(_transpose_element),
        grad=_grad_transpose,
        source="ONNX Transpose",
    )
)


def _broadcast_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    shape = call.attrs.shape
    if len(shape) < x.rank:
        call.fail(f"cannot broadcast rank {x.rank} to {list(shape)}")
    for dim, target in zip(x.shape, shape[len(shape) - x.rank :]):
        if isinstance(dim, int) and isinstance(target, int):
            if dim not in (1, target):
                call.fail(f"size {dim} does not broadcast to {target}")
        else:
            call.require((dim - 1) * (dim - target), 0, f"size {dim} broadcasts to {target}")
    return [TensorType(x.dtype, shape)]


def broadcast_index(index: Index, shape: symbols.Shape, result: symbols.Shape) -> list[s.ScalarExpr]:
    """Position in an operand of `shape` that is broadcast to `result` (aligned at the last axis).

    A size that may or may not be 1 is only known at run time: the index is then multiplied by (size > 1).
    """
    offset = len(index) - len(shape)
    source: list[s.ScalarExpr] = []
    for axis, dim in enumerate(shape):
        target = result[offset + axis]
        if dim == 1:
            source.append(s.const(0, s.i64))
        elif dim == target or isinstance(dim, int):
            source.append(index[offset + axis])
        else:
            source.append(index[offset + axis] * s.size(symbols.select(dim - 1, 1, 0)))
    return source


def _broadcast_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    return load(0, broadcast_index(index, call.types[0].shape, call.results[0].shape))


def _grad_broadcast(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return (unbroadcast(b, g, node.operands[0]),)


register(
    OpDef(
        name="broadcast_to",
        doc="Repeats along axes of size 1 and new leading axes, NumPy's rule.",
        operands=(Operand("x", ANY),),
        attrs=(Attr("shape", "dims", doc="result shape"),),
        infer=_broadcast_type,
        reference=lambda call, x: np.broadcast_to(x, call.attrs.shape).copy(),
        kind=Map(_broadcast_element),
        grad=_grad_broadcast,
        source="ONNX Expand (towards a given shape)",
    )
)
