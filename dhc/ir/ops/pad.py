"""Padding with a value or with the tensor's own elements; negative widths crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_elements, require_rank
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

MODES = ("constant", "reflect", "edge", "wrap")


def _pad_type(call: Call) -> list[TensorType]:
    x = call.types[0]
    require_rank(call, 1, 0)
    low, high = call.attrs.low, call.attrs.high
    if len(low) != x.rank or len(high) != x.rank:
        call.fail(f"low and high need {x.rank} entries each")
    shape = tuple(before + d + after for before, d, after in zip(low, x.shape, high))
    for axis, (dim, padded) in enumerate(zip(x.shape, shape)):
        if isinstance(padded, int) and padded < 0:
            call.fail(f"axis {axis}: cropped to a negative size {padded}")
        if call.attrs.mode != "constant" and (low[axis] != 0 or high[axis] != 0):
            require_elements(call, dim, padded, f"axis {axis}, which mode {call.attrs.mode} repeats,")
    return [TensorType(x.dtype, shape)]


def _source(position: s.ScalarExpr, size: Dim, mode: str) -> s.ScalarExpr:
    """Where the element at `position`, which may be outside of 0..size-1, comes from."""
    last = s.size(size - 1)
    if mode == "edge":
        return s.minimum(s.maximum(position, 0), last)
    if mode == "wrap":
        return position % s.size(size)
    turned = position % s.size(symbols.maximum(2 * (size - 1), 1))
    return s.select(turned < s.size(size), turned, last * 2 - turned)


def _pad_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    low, high, mode = call.attrs.low, call.attrs.high, call.attrs.mode
    inside: list[s.ScalarExpr] = []
    source: list[s.ScalarExpr] = []
    for i, dim, before, after in zip(index, call.types[0].shape, low, high):
        position = i - s.size(before)
        padded_low = not (isinstance(before, int) and before <= 0)
        padded_high = not (isinstance(after, int) and after <= 0)
        if mode == "constant":
            if padded_low:
                inside.append(position >= 0)
            if padded_high:
                inside.append(position < s.size(dim))
        elif padded_low or padded_high:
            position = _source(position, dim, mode)
        source.append(position)
    if not inside:
        return load(0, source)
    return s.select(s.logical_and(*inside), load(0, source), load(1, []))


def _pad_reference(call: Call, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    mode = call.attrs.mode
    for axis, (before, after) in enumerate(zip(call.attrs.low, call.attrs.high)):
        size = x.shape[axis]
        position = np.arange(-before, size + after)
        outside = (position < 0) | (position >= size)
        if mode == "edge":
            position = np.clip(position, 0, size - 1)
        elif mode == "wrap":
            position = position % max(size, 1)
        elif mode == "reflect":
            position = position % max(2 * (size - 1), 1)
            position = np.where(position < size, position, 2 * (size - 1) - position)
        else:
            x = np.concatenate([x, np.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), value)], axis=axis)
            position = np.where(outside, size, position)
        x = np.take(x, position, axis=axis)
    return x


def _fold_back(b: Builder, g: Value, axis: int, size: Dim, low: Dim, mode: str) -> Value:
    """Adds every element of the padded axis to the element it was copied from."""
    length = g.type.shape[axis]

    def number(n: Dim) -> Value:
        result: Value = b.reshape(b.dims(values=(n,)), shape=())
        return result

    position = b.sub(b.iota(shape=(length,), axis=0, dtype=i64), number(low))
    if mode == "edge":
        position = b.minimum(b.maximum(position, 0), number(size - 1))
    elif mode == "wrap":
        position = b.mod(position, number(size))
    else:
        turned = b.mod(position, number(symbols.maximum(2 * (size - 1), 1)))
        position = b.where(b.lt(turned, number(size)), turned, b.sub(number(2 * (size - 1)), turned))
    shape = g.type.shape
    spread = [length if i == axis else 1 for i in range(len(shape))]
    indices = b.broadcast_to(b.reshape(position, shape=spread), shape=shape)
    zeros = b.full((*shape[:axis], size, *shape[axis + 1 :]), 0, g.dtype)
    result: Value = b.scatter_elements(zeros, indices, g, axis=axis, reduction="add")
    return result


def _grad_pad(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x = node.operands[0]
    low, high, mode = (node.attrs[n] for n in ("low", "high", "mode"))
    if mode == "constant":
        gx = b.pad(g, b.like(0, g), low=[-n for n in low], high=[-n for n in high], mode="constant")
        # What did not come from x came from the value.
        ones = b.full(x.type.shape, 1, g.dtype)
        kept = b.pad(ones, b.like(0, g), low=low, high=high, mode="constant")
        from_value = b.mul(g, b.sub(b.like(1, g), kept))
        return gx, b.reduce_sum(from_value, axes=(), keepdims=False) if x.type.rank else None
    for axis, (size, before, after) in enumerate(zip(x.type.shape, low, high)):
        if before != 0 or after != 0:
            g = _fold_back(b, g, axis, size, before, mode)
    return g, None


def _example(
    shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], mode: str
) -> tuple[list[np.ndarray], dict[str, object]]:
    x = np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape) + 1
    return [x, np.array(-7.5, np.float32)], {"low": low, "high": high, "mode": mode}


register(
    OpDef(
        name="pad",
        doc="Adds elements before and after each axis (negative widths remove them).",
        operands=(Operand("x", FIXED), Operand("value", FIXED, same="x")),
        attrs=(
            Attr("low", "dims", doc="elements before each axis"),
            Attr("high", "dims", doc="elements after each axis"),
            Attr("mode", "str", "constant", "what is added: the value or the tensor's own elements", MODES),
        ),
        infer=_pad_type,
        reference=_pad_reference,
        kind=Map(_pad_element),
        grad=_grad_pad,
        examples=lambda: [
            _example((2, 3), (1, 0), (0, 2), "constant"),
            _example((3, 4), (-1, 2), (1, -1), "constant"),
            _example((0, 2), (1, 0), (1, 0), "constant"),
            _example((), (), (), "constant"),
            _example((3, 4), (2, 1), (1, 3), "reflect"),
            _example((3,), (5,), (4,), "reflect"),
            _example((1, 2), (2, 0), (1, 0), "reflect"),
            _example((2, 3), (1, 2), (-1, 2), "edge"),
            _example((2, 3), (0, 4), (3, 1), "wrap"),
        ],
        source="ONNX Pad",
    )
)
