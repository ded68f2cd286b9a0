"""Reading at positions that another tensor gives. Negative positions count from the end, others out of range fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, INDEX, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_at_most, require_equal
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType


def checked_indices(call: Call, indices: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Indices into an axis as non-negative i64.

    Raises:
        DhcError: one is out of range.
    """
    wide: np.ndarray = indices.astype(np.int64)
    outside = (wide < -size) | (wide >= size)
    if outside.any():
        raise DhcError(
            f"{call.op.name}: index {wide[outside][0]} is out of range for axis {axis} of size {size}",
            where=str(call.location),
        )
    return np.where(wide < 0, wide + size, wide)


def _checked(load: LoadFn, operand: int, index: Index, size: Dim) -> s.ScalarExpr:
    return s.Checked(s.cast(load(operand, index), i64), s.size(size))


def _gather_type(call: Call) -> list[TensorType]:
    x, indices = call.types
    axis = call.axis(call.attrs.axis)
    return [TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _gather_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    x, indices = call.types
    axis = call.axis(call.attrs.axis)
    end = axis + indices.rank
    position = _checked(load, 1, index[axis:end], x.shape[axis])
    return load(0, [*index[:axis], position, *index[end:]])


def _gather_reference(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = call.axis(call.attrs.axis)
    positions = checked_indices(call, indices, x.shape[axis], axis)
    result: np.ndarray = x[(slice(None),) * axis + (positions,)]
    return np.ascontiguousarray(result).reshape(call.results[0].shape)


def _grad_gather(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    """Every cotangent is added to the row it was read from: a scatter along the axis moved to the front."""
    x, indices = node.operands
    axis = Call.of(node).axis(node.attrs["axis"])
    rank, width = x.type.rank, indices.type.rank
    front = [*range(axis, axis + width), *range(axis), *range(axis + width, rank - 1 + width)]
    rows = b.transpose(g, perm=front) if axis else g
    shape = (x.type.shape[axis], *x.type.shape[:axis], *x.type.shape[axis + 1 :])
    positions = b.reshape(indices, shape=(*indices.type.shape, 1))
    total = b.scatter_nd(b.full(shape, 0, g.dtype), positions, rows, reduction="add")
    back = [*range(1, axis + 1), 0, *range(axis + 1, rank)]
    return b.transpose(total, perm=back) if axis else total, None


def _x(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape) + 1


def _i(values: object) -> np.ndarray:
    return np.array(values, np.int64)


register(
    OpDef(
        name="gather",
        doc="Rows of the operand: its slices along an axis, in the order that the indices give.",
        operands=(Operand("x", FIXED), Operand("indices", INDEX)),
        attrs=(Attr("axis", "int", 0, "axis that the indices count along"),),
        infer=_gather_type,
        reference=_gather_reference,
        kind=Map(_gather_element, role="gather"),
        grad=_grad_gather,
        examples=lambda: [
            ([_x(4, 3), _i([[0, -1], [2, 2]])], {"axis": 0}),
            ([_x(2, 4, 3), _i([3, 0, -4])], {"axis": 1}),
            ([_x(3, 5), _i(-2)], {"axis": -1}),
            ([_x(3, 2), np.zeros((0,), np.int32)], {"axis": 0}),
        ],
        source="ONNX Gather",
    )
)


def _gather_elements_type(call: Call) -> list[TensorType]:
    x, indices = call.types
    check_fits(call, indices, x, call.axis(call.attrs.axis))
    return [TensorType(x.dtype, indices.shape)]


def check_fits(call: Call, indices: TensorType, x: TensorType, axis: int) -> None:
    """Indices of the elements ops have the operand's rank and, except along the axis, are not larger."""
    if indices.rank != x.rank:
        call.fail(f"the indices have rank {indices.rank}, the operand {x.rank}")
    for i, (count, dim) in enumerate(zip(indices.shape, x.shape)):
        if i != axis:
            require_at_most(call, count, dim, f"axis {i}: no more indices than elements")


def _gather_elements_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    axis = call.axis(call.attrs.axis)
    source = list(index)
    source[axis] = _checked(load, 1, index, call.types[0].shape[axis])
    return load(0, source)


def _gather_elements_reference(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    axis = call.axis(call.attrs.axis)
    positions = checked_indices(call, indices, x.shape[axis], axis)
    part = x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))]
    return np.take_along_axis(part, positions, axis)


def _grad_gather_elements(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, indices = node.operands
    zeros = b.full(x.type.shape, 0, g.dtype)
    return b.scatter_elements(zeros, indices, g, axis=node.attrs["axis"], reduction="add"), None


register(
    OpDef(
        name="gather_elements",
        doc="One element for each index: the position along the axis is read, the others are the index's own.",
        operands=(Operand("x", FIXED), Operand("indices", INDEX)),
        attrs=(Attr("axis", "int", 0, "axis that the indices count along"),),
        infer=_gather_elements_type,
        reference=_gather_elements_reference,
        kind=Map(_gather_elements_element, role="gather"),
        grad=_grad_gather_elements,
        examples=lambda: [
            ([_x(3, 3), _i([[1, 2, 0], [-1, 0, 0]])], {"axis": 0}),
            ([_x(2, 4), _i([[3, 3, 0, -4, 1], [0, 1, 2, 3, -1]])], {"axis": -1}),
            ([_x(3), np.zeros((0,), np.int64)], {"axis": 0}),
        ],
        source="ONNX GatherElements",
    )
)


def check_tuples(call: Call, indices: TensorType, rank: int, batch: int) -> int:
    """Number of positions in each index tuple of the nd ops."""
    if indices.rank < 1 or not isinstance(indices.shape[-1], int):
        call.fail("the last axis of the indices has a known size: the length of an index tuple")
    width: int = indices.shape[-1]
    if not 0 <= batch + width <= rank:
        call.fail(f"index tuples of length {width} do not fit rank {rank} with {batch} batch axes")
    return width


def _gather_nd_type(call: Call) -> list[TensorType]:
    x, indices = call.types
    batch = call.attrs.batch_dims
    if batch < 0 or batch >= indices.rank:
        call.fail(f"batch_dims {batch} does not fit indices of rank {indices.rank}")
    width = check_tuples(call, indices, x.rank, batch)
    shared = [
        require_equal(call, a, c, f"batch axis {i}")
        for i, (a, c) in enumerate(zip(x.shape[:batch], indices.shape[:batch]))
    ]
    return [TensorType(x.dtype, (*shared, *indices.shape[batch:-1], *x.shape[batch + width :]))]


def _gather_nd_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    x, indices = call.types
    batch, width, outer = call.attrs.batch_dims, indices.shape[-1], indices.rank - 1
    source = list(index[:batch])
    for k in range(width):
        source.append(_checked(load, 1, [*index[:outer], s.const(k, i64)], x.shape[batch + k]))
    return load(0, [*source, *index[outer:]])


def _gather_nd_reference(call: Call, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    batch, width = call.attrs.batch_dims, indices.shape[-1]
    grid = np.indices(indices.shape[:-1])
    key = [grid[axis] for axis in range(batch)]
    key += [checked_indices(call, indices[..., k], x.shape[batch + k], batch + k) for k in range(width)]
    if not key:
        return np.broadcast_to(x, call.results[0].shape).copy()
    result: np.ndarray = x[tuple(key)]
    return result


def _grad_gather_nd(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, indices = node.operands
    batch = node.attrs["batch_dims"]
    if batch:
        shape = (*indices.type.shape[:-1], 1)
        own = [b.iota(shape=shape, axis=axis, dtype=indices.dtype) for axis in range(batch)]
        indices = b.concat(*own, indices, axis=-1)
    zeros = b.full(x.type.shape, 0, g.dtype)
    return b.scatter_nd(zeros, indices, g, reduction="add"), None


register(
    OpDef(
        name="gather_nd",
        doc="Slices of the operand at positions given as tuples of indices along the last axis.",
        operands=(Operand("x", FIXED), Operand("indices", INDEX)),
        attrs=(Attr("batch_dims", "int", 0, "leading axes that operand and indices share"),),
        infer=_gather_nd_type,
        reference=_gather_nd_reference,
        kind=Map(_gather_nd_element, role="gather"),
        grad=_grad_gather_nd,
        examples=lambda: [
            ([_x(2, 3), _i([[0, 0], [1, -1]])], {}),
            ([_x(2, 3, 2), _i([[[1]], [[0]]])], {"batch_dims": 1}),
            ([_x(2, 3, 2), _i([[-1], [0], [1]])], {}),
            ([_x(2, 3), np.zeros((0, 2), np.int64)], {}),
        ],
        source="ONNX GatherND",
    )
)
