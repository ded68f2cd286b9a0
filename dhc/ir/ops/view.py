"""Ops that only move elements: each result element is one operand element at a computed position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import ANY, i64
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
    position: s.ScalarExpr = s.const(0, i64)
    for i, stride in zip(index, symbols.contiguous_strides(shape)):
        position = position + i * s.size(stride)
    return position


def unravel(position: s.ScalarExpr, shape: symbols.Shape) -> list[s.ScalarExpr]:
    """Index of a row-major position (which is within the shape)."""
    index: list[s.ScalarExpr] = []
    for axis, (dim, stride) in enumerate(zip(shape, symbols.contiguous_strides(shape))):
        if dim == 1:
            index.append(s.const(0, i64))
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
        examples=lambda: [
            ([np.arange(6, dtype=np.float32).reshape(2, 3)], {"shape": (3, 1, 2)}),
            ([np.array(7, np.float32)], {"shape": (1, 1)}),
            ([np.zeros((0, 3), np.float32)], {"shape": (3, 2, 0)}),
        ],
        source="ONNX Reshape",
    )
)


def _transpose_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if sorted(call.attrs.perm) != list(range(x.rank)):
        call.fail(f"perm {list(call.attrs.perm)} is not a permutation of {x.rank} axes")
    return [TensorType(x.dtype, tuple(x.shape[p] for p in call.attrs.perm))]


def _transpose_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    source: list[s.ScalarExpr] = [s.const(0, i64)] * len(index)
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
        examples=lambda: [
            ([np.arange(24, dtype=np.float32).reshape(2, 3, 4)], {"perm": (2, 0, 1)}),
            ([np.zeros((0, 3), np.float32)], {"perm": (1, 0)}),
            ([np.array(7, np.float32)], {"perm": ()}),
        ],
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
            source.append(s.const(0, i64))
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
        examples=lambda: [
            ([np.arange(3, dtype=np.float32).reshape(3, 1)], {"shape": (2, 3, 4)}),
            ([np.array(7, np.float32)], {"shape": (2, 0)}),
        ],
        source="ONNX Expand (towards a given shape)",
    )
)


def _slice_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    a = call.attrs
    if not len(a.starts) == len(a.sizes) == len(a.steps) == x.rank:
        call.fail(f"starts, sizes and steps need {x.rank} entries each")
    for axis, (dim, start, size, step) in enumerate(zip(x.shape, a.starts, a.sizes, a.steps)):
        if step == 0:
            call.fail("a step of 0")
        if isinstance(size, int) and size < 0:
            call.fail(f"axis {axis}: negative size {size}")
        last = start + (size - 1) * step
        if all(isinstance(n, int) for n in (dim, start, size)):
            if size and not (0 <= start < dim and 0 <= last < dim):
                call.fail(f"axis {axis}: elements {start} to {last} are not all within size {dim}")
            continue
        first, end = (start, last) if step > 0 else (last, start)
        within = f"axis {axis}: the elements taken are within the operand"
        call.require(symbols.select(size, symbols.minimum(first, 0), 0), 0, within)
        call.require(symbols.select(size, symbols.maximum(end + 1 - dim, 0), 0), 0, within)
    return [TensorType(x.dtype, a.sizes)]


def _slice_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    starts, steps = call.attrs.starts, call.attrs.steps
    return load(0, [s.size(start) + i * step for i, start, step in zip(index, starts, steps)])


def _slice_reference(call: Call, x: np.ndarray) -> np.ndarray:
    for axis, (start, size, step) in enumerate(zip(call.attrs.starts, call.attrs.sizes, call.attrs.steps)):
        positions = start + np.arange(size) * step
        if size and not (positions.min() >= 0 and positions.max() < x.shape[axis]):
            call.fail(f"axis {axis}: elements {positions[0]} to {positions[-1]} are not all within the operand")
        x = np.take(x, positions, axis=axis)
    return x


def _grad_slice(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    """The cotangent goes back to where the elements came from: flip, spread by the step, pad with zeros."""
    shape = node.operands[0].type.shape
    starts, sizes, steps = (list(node.attrs[n]) for n in ("starts", "sizes", "steps"))
    backwards = [axis for axis, step in enumerate(steps) if step < 0]
    if backwards:
        g = b.flip(g, axes=backwards)
        for axis in backwards:
            starts[axis] = starts[axis] + (sizes[axis] - 1) * steps[axis]
            steps[axis] = -steps[axis]
    zero = b.like(0, g)
    if any(step > 1 for step in steps):
        split = [d for size in sizes for d in (size, 1)]
        high = [n for step in steps for n in (0, step - 1)]
        spread = b.pad(b.reshape(g, shape=split), zero, low=[0] * len(split), high=high, mode="constant")
        g = b.reshape(spread, shape=[size * step for size, step in zip(sizes, steps)])
    high = [n - start - size * step for n, start, size, step in zip(shape, starts, sizes, steps)]
    return (b.pad(g, zero, low=starts, high=high, mode="constant"),)


register(
    OpDef(
        name="slice",
        doc="Elements start, start + step, ... of each axis; starts are not negative and steps may be.",
        operands=(Operand("x", ANY),),
        attrs=(
            Attr("starts", "dims", doc="first element of each axis"),
            Attr("sizes", "dims", doc="result shape"),
            Attr("steps", "ints", doc="distance between elements of each axis, not 0"),
        ),
        infer=_slice_type,
        reference=_slice_reference,
        kind=Map(_slice_element),
        grad=_grad_slice,
        examples=lambda: [
            ([_sample(5, 6)], {"starts": (1, 5), "sizes": (3, 3), "steps": (1, -2)}),
            ([_sample(4)], {"starts": (2,), "sizes": (0,), "steps": (1,)}),
            ([_sample(7)], {"starts": (0,), "sizes": (3,), "steps": (3,)}),
            ([_sample(1, 3)], {"starts": (0, 2), "sizes": (1, 3), "steps": (1, -1)}),
        ],
        source="ONNX Slice (with normalised bounds)",
    )
)


def _sample(*shape: int) -> np.ndarray:
    """Distinct numbers for examples."""
    count = int(np.prod(shape, dtype=np.int64))
    return ((np.arange(count, dtype=np.float32) * 7 + 3) % 11 - 5).reshape(shape)


def _flip_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if len({call.axis(a) for a in call.attrs.axes}) != len(call.attrs.axes):
        call.fail(f"axes {list(call.attrs.axes)} repeat")
    return [TensorType(x.dtype, x.shape)]


def _flip_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    source = list(index)
    for axis in (call.axis(a) for a in call.attrs.axes):
        source[axis] = s.size(call.types[0].shape[axis] - 1) - index[axis]
    return load(0, source)


register(
    OpDef(
        name="flip",
        doc="Reverses the order along axes; no axes leave the operand as it is.",
        operands=(Operand("x", ANY),),
        attrs=(Attr("axes", "ints", doc="axes to reverse"),),
        infer=_flip_type,
        reference=lambda call, x: np.flip(x, tuple(call.axis(a) for a in call.attrs.axes)).copy(),
        kind=Map(_flip_element),
        grad=lambda b, node, g: (b.flip(g, axes=node.attrs["axes"]),),
        examples=lambda: [
            ([_sample(3, 4)], {"axes": (-1,)}),
            ([_sample(2, 1, 3)], {"axes": (0, 2)}),
            ([_sample(0, 2)], {"axes": (0,)}),
            ([_sample(2)], {"axes": ()}),
        ],
        source="numpy.flip",
    )
)


def _tile_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if len(call.attrs.repeats) != x.rank:
        call.fail(f"repeats need {x.rank} entries, got {len(call.attrs.repeats)}")
    if any(isinstance(r, int) and r < 0 for r in call.attrs.repeats):
        call.fail(f"negative repeats {list(call.attrs.repeats)}")
    return [TensorType(x.dtype, tuple(d * r for d, r in zip(x.shape, call.attrs.repeats)))]


def _tile_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    repeats, shape = call.attrs.repeats, call.types[0].shape
    return load(0, [i if r == 1 else i % s.size(d) for i, r, d in zip(index, repeats, shape)])


def _grad_tile(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    shape = node.operands[0].type.shape
    if not shape:
        return (g,)
    split = [d for repeat, size in zip(node.attrs["repeats"], shape) for d in (repeat, size)]
    return (b.reduce_sum(b.reshape(g, shape=split), axes=range(0, len(split), 2), keepdims=False),)


register(
    OpDef(
        name="tile",
        doc="Repeats the whole tensor along each axis.",
        operands=(Operand("x", ANY),),
        attrs=(Attr("repeats", "dims", doc="copies along each axis"),),
        infer=_tile_type,
        reference=lambda call, x: np.tile(x, call.attrs.repeats),
        kind=Map(_tile_element),
        grad=_grad_tile,
        examples=lambda: [
            ([_sample(2, 3)], {"repeats": (2, 3)}),
            ([_sample(1, 2)], {"repeats": (3, 1)}),
            ([_sample(2)], {"repeats": (0,)}),
            ([_sample()], {"repeats": ()}),
        ],
        source="ONNX Tile",
    )
)
