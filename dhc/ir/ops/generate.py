"""Tensors made from nothing but sizes and scalars: ranges, identity matrices, one-hot codes, triangles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, INTS, MINIFLOATS, REALS, SUB_BYTE, f8e8m0, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _iota_type(call: Call) -> list[TensorType]:
    shape = call.attrs.shape
    call.axis(call.attrs.axis, len(shape))
    if call.attrs.dtype not in REALS | SUB_BYTE:
        call.fail_type(f"counts in numbers, not in {call.attrs.dtype}")
    return [TensorType(call.attrs.dtype, shape)]


def _iota_reference(call: Call) -> np.ndarray:
    shape = call.attrs.shape
    axis = call.axis(call.attrs.axis, len(shape))
    counted = np.arange(shape[axis]).astype(call.attrs.dtype.numpy)
    spread = [n if i == axis else 1 for i, n in enumerate(shape)]
    return np.broadcast_to(counted.reshape(spread), shape).copy()


register(
    OpDef(
        name="iota",
        doc="Counts 0, 1, 2, ... along one axis.",
        operands=(),
        attrs=(
            Attr("shape", "dims", doc="result shape"),
            Attr("axis", "int", 0, "axis to count along"),
            Attr("dtype", "dtype", i64, "element type"),
        ),
        infer=_iota_type,
        reference=_iota_reference,
        kind=Map(
            lambda call, index, load: s.cast(index[call.axis(call.attrs.axis, len(index))], call.attrs.dtype),
            role="generate",
        ),
        grad=lambda b, node, g: (),
        examples=lambda: [
            ([], {"shape": (5,), "axis": 0, "dtype": i64}),
            ([], {"shape": (2, 3), "axis": -1, "dtype": "f32"}),
            ([], {"shape": (0, 2), "axis": 0, "dtype": "i32"}),
        ],
        source="ONNX Range",
    )
)


def _eye_type(call: Call) -> list[TensorType]:
    if len(call.attrs.shape) != 2:
        call.fail(f"shape {list(call.attrs.shape)} is not a matrix")
    if call.attrs.dtype not in FIXED - MINIFLOATS:
        call.fail_type(f"no numbers of type {call.attrs.dtype}")
    return [TensorType(call.attrs.dtype, call.attrs.shape)]


def _eye_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    dtype = call.attrs.dtype
    on_diagonal = (index[1] - index[0]).eq(call.attrs.k)
    return s.select(on_diagonal, s.const(1, dtype), s.const(0, dtype))


def _eye_reference(call: Call) -> np.ndarray:
    rows, columns = call.attrs.shape
    return np.eye(rows, columns, call.attrs.k).astype(call.attrs.dtype.numpy)


register(
    OpDef(
        name="eye",
        doc="A matrix with ones on a diagonal.",
        operands=(),
        attrs=(
            Attr("shape", "dims", doc="rows and columns"),
            Attr("dtype", "dtype", doc="element type"),
            Attr("k", "int", 0, "diagonal: 0 the main one, positive above it"),
        ),
        infer=_eye_type,
        reference=_eye_reference,
        kind=Map(_eye_element, role="generate"),
        grad=lambda b, node, g: (),
        examples=lambda: [
            ([], {"shape": (3, 4), "dtype": "f32"}),
            ([], {"shape": (3, 2), "dtype": "i64", "k": -1}),
            ([], {"shape": (0, 2), "dtype": "bool", "k": 1}),
        ],
        source="ONNX EyeLike",
    )
)


def _one_hot_type(call: Call) -> list[TensorType]:
    indices, on, _ = call.types
    require_rank(call, 1, 0)
    require_rank(call, 2, 0)
    axis = call.axis(call.attrs.axis, indices.rank + 1)
    depth = call.attrs.depth
    if isinstance(depth, int) and depth < 0:
        call.fail(f"negative depth {depth}")
    return [TensorType(on.dtype, (*indices.shape[:axis], depth, *indices.shape[axis:]))]


def _one_hot_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    axis = call.axis(call.attrs.axis, len(index))
    wanted = s.cast(load(0, [i for a, i in enumerate(index) if a != axis]), i64)
    wanted = s.select(wanted < 0, wanted + s.size(call.attrs.depth), wanted)
    return s.select(wanted.eq(index[axis]), load(1, []), load(2, []))


def _one_hot_reference(call: Call, indices: np.ndarray, on: np.ndarray, off: np.ndarray) -> np.ndarray:
    depth = call.attrs.depth
    axis = call.axis(call.attrs.axis, indices.ndim + 1)
    wanted = indices.astype(np.int64)
    wanted = np.expand_dims(np.where(wanted < 0, wanted + depth, wanted), axis)
    count = np.arange(depth).reshape([depth if a == axis else 1 for a in range(wanted.ndim)])
    return np.where(wanted == count, on, off)


def _grad_one_hot(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    hot = b.one_hot(node.operands[0], b.like(1, g), b.like(0, g), depth=node.attrs["depth"], axis=node.attrs["axis"])
    on = b.reduce_sum(b.mul(g, hot), axes=(), keepdims=False)
    off = b.reduce_sum(b.mul(g, b.sub(b.like(1, g), hot)), axes=(), keepdims=False)
    return None, on, off


def _hot(indices: list[int], on: float = 1, off: float = 0) -> list[np.ndarray]:
    return [np.array(indices, np.int64), np.array(on, np.float32), np.array(off, np.float32)]


register(
    OpDef(
        name="one_hot",
        doc="One number at the position that an index names, another everywhere else; other indices name no position.",
        operands=(Operand("indices", INTS), Operand("on", FIXED), Operand("off", FIXED, same="on")),
        attrs=(
            Attr("depth", "dim", doc="size of the new axis"),
            Attr("axis", "int", -1, "where the new axis goes in the result"),
        ),
        infer=_one_hot_type,
        reference=_one_hot_reference,
        kind=Map(_one_hot_element, role="gather"),
        grad=_grad_one_hot,
        examples=lambda: [
            (_hot([0, -1, 2, 5, -4]), {"depth": 3}),
            (_hot([1, 0], 2.5, -1), {"depth": 2, "axis": 0}),
            (_hot([]), {"depth": 2}),
        ],
        source="ONNX OneHot",
    )
)


def _triangle_type(call: Call) -> list[TensorType]:
    x = call.types[0]
    require_rank(call, 1, 0)
    if x.rank < 2:
        call.fail("needs rank 2 or more")
    return [TensorType(x.dtype, x.shape)]


def _triangle_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    distance, k = index[-1] - index[-2], load(1, [])
    kept = distance >= k if call.attrs.upper else distance <= k
    return s.select(kept, load(0, index), s.const(0, call.types[0].dtype))


def _triangle_reference(call: Call, x: np.ndarray, k: np.ndarray) -> np.ndarray:
    distance = np.arange(x.shape[-1])[None, :] - np.arange(x.shape[-2])[:, None]
    kept = distance >= k if call.attrs.upper else distance <= k
    return np.where(kept, x, np.zeros((), x.dtype))


def _grad_triangle(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    return b.triangle(g, node.operands[1], upper=node.attrs["upper"]), None


def _matrix(rows: int, columns: int, k: int) -> list[np.ndarray]:
    return [np.arange(2.0 * rows * columns, dtype=np.float32).reshape(2, rows, columns) + 1, np.array(k, np.int64)]


register(
    OpDef(
        name="triangle",
        doc="Keeps the part of each matrix above (or below) a diagonal; the rest becomes zero.",
        operands=(Operand("x", FIXED - {f8e8m0}), Operand("k", frozenset({i64}))),  # f8e8m0 has no zero
        attrs=(Attr("upper", "bool", True, "keep column - row >= k, else column - row <= k"),),
        infer=_triangle_type,
        reference=_triangle_reference,
        kind=Map(_triangle_element),
        grad=_grad_triangle,
        examples=lambda: [
            (_matrix(3, 4, 1), {"upper": True}),
            (_matrix(4, 3, -1), {"upper": False}),
            (_matrix(1, 1, 5), {"upper": True}),
        ],
        source="ONNX Trilu",
    )
)
