"""Rearrangements: blocks of pixels to channels and back, reversal of the valid part of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FIXED, INDEX, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_equal, require_rank
from dhc.ir.kinds import Composite, Index, LoadFn, Map
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _block(call: Call) -> int:
    block: int = call.attrs.block
    if block < 1:
        call.fail(f"block size {block}")
    require_rank(call, 0, 4)
    return block


def _depth_to_space_type(call: Call) -> list[TensorType]:
    block = _block(call)
    n, c, h, w = call.types[0].shape
    call.require(symbols.mod(c, block * block), 0, f"channels divisible by {block * block}")
    return [TensorType(call.types[0].dtype, (n, c // (block * block), h * block, w * block))]


def _build_depth_to_space(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    block = call.attrs.block
    n, c, h, w = x.type.shape
    depth = c // (block * block)
    if call.attrs.mode == "DCR":
        parts = b.transpose(b.reshape(x, shape=(n, block, block, depth, h, w)), perm=(0, 3, 4, 1, 5, 2))
    else:
        parts = b.transpose(b.reshape(x, shape=(n, depth, block, block, h, w)), perm=(0, 1, 4, 2, 5, 3))
    return [b.reshape(parts, shape=(n, depth, h * block, w * block))]


def _depth_to_space_reference(call: Call, x: np.ndarray) -> np.ndarray:
    block = call.attrs.block
    result = np.empty(call.results[0].shape, x.dtype)
    depth = result.shape[1]
    for row in range(block):
        for column in range(block):
            offset = row * block + column
            dcr = call.attrs.mode == "DCR"
            channels = [offset * depth + d if dcr else d * block * block + offset for d in range(depth)]
            result[:, :, row::block, column::block] = x[:, channels]
    return result


def _image(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape, dtype=np.int64), dtype=np.float32).reshape(shape)


register(
    OpDef(
        name="depth_to_space",
        doc="Moves groups of channels of [N, C, H, W] into blocks of pixels.",
        operands=(Operand("x", FIXED),),
        attrs=(
            Attr("block", "int", doc="side of a block"),
            Attr("mode", "str", "DCR", "channel parts: block first (DCR) or depth first (CRD)", ("DCR", "CRD")),
        ),
        infer=_depth_to_space_type,
        reference=_depth_to_space_reference,
        kind=Composite(_build_depth_to_space),
        examples=lambda: [
            ([_image(1, 8, 2, 3)], {"block": 2, "mode": "DCR"}),
            ([_image(2, 9, 1, 2)], {"block": 3, "mode": "CRD"}),
            ([_image(1, 2, 2, 2)], {"block": 1}),
        ],
        source="ONNX DepthToSpace",
    )
)


def _space_to_depth_type(call: Call) -> list[TensorType]:
    block = _block(call)
    n, c, h, w = call.types[0].shape
    call.require(symbols.mod(h, block), 0, f"height divisible by {block}")
    call.require(symbols.mod(w, block), 0, f"width divisible by {block}")
    return [TensorType(call.types[0].dtype, (n, c * (block * block), h // block, w // block))]


def _build_space_to_depth(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    block = call.attrs.block
    n, c, h, w = x.type.shape
    parts = b.reshape(x, shape=(n, c, h // block, block, w // block, block))
    moved = b.transpose(parts, perm=(0, 3, 5, 1, 2, 4))
    return [b.reshape(moved, shape=(n, c * (block * block), h // block, w // block))]


def _space_to_depth_reference(call: Call, x: np.ndarray) -> np.ndarray:
    block = call.attrs.block
    pieces = [x[:, :, row::block, column::block] for row in range(block) for column in range(block)]
    return np.concatenate(pieces, axis=1)


register(
    OpDef(
        name="space_to_depth",
        doc="Moves blocks of pixels of [N, C, H, W] into channels.",
        operands=(Operand("x", FIXED),),
        attrs=(Attr("block", "int", doc="side of a block"),),
        infer=_space_to_depth_type,
        reference=_space_to_depth_reference,
        kind=Composite(_build_space_to_depth),
        examples=lambda: [
            ([_image(1, 2, 4, 6)], {"block": 2}),
            ([_image(2, 1, 3, 3)], {"block": 3}),
        ],
        source="ONNX SpaceToDepth",
    )
)


def _reverse_axes(call: Call) -> tuple[int, int]:
    batch, time = call.axis(call.attrs.batch_axis), call.axis(call.attrs.time_axis)
    if batch == time:
        call.fail("batch_axis and time_axis are the same")
    return batch, time


def _reverse_sequence_type(call: Call) -> list[TensorType]:
    x, lengths = call.types
    batch, _ = _reverse_axes(call)
    require_rank(call, 1, 1)
    require_equal(call, lengths.shape[0], x.shape[batch], "one length for each sequence")
    return [TensorType(x.dtype, x.shape)]


def _reverse_sequence_element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    batch, time = _reverse_axes(call)
    length = s.cast(load(1, [index[batch]]), i64)
    step = index[time]
    source = list(index)
    # A length beyond the time axis makes the first steps read out of range: that is how it is noticed.
    mirrored = s.Checked(length - 1 - step, s.size(call.types[0].shape[time]))
    source[time] = s.select(step < length, mirrored, step)
    return load(0, source)


def _reverse_sequence_reference(call: Call, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    batch, time = _reverse_axes(call)
    result = x.copy()
    source, target = (np.moveaxis(array, (batch, time), (0, 1)) for array in (x, result))
    for i, length in enumerate(lengths):
        if x.size and length > x.shape[time]:
            raise DhcError(f"sequence length {length} exceeds {x.shape[time]}", where=str(call.location))
        if length > 0:
            target[i, :length] = source[i, :length][::-1]
    return result


def _grad_reverse_sequence(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    attrs: dict[str, Any] = dict(node.attrs)
    return b.reverse_sequence(g, node.operands[1], **attrs), None


register(
    OpDef(
        name="reverse_sequence",
        doc="Reverses the first `lengths[i]` steps of each sequence i; lengths of 1 or less change nothing.",
        operands=(Operand("x", FIXED), Operand("lengths", INDEX)),
        attrs=(
            Attr("batch_axis", "int", doc="axis of the sequences"),
            Attr("time_axis", "int", doc="axis of the steps"),
        ),
        infer=_reverse_sequence_type,
        reference=_reverse_sequence_reference,
        kind=Map(_reverse_sequence_element, role="gather"),
        grad=_grad_reverse_sequence,
        examples=lambda: [
            ([_image(4, 3, 2), np.array([4, 1, 2], np.int64)], {"batch_axis": 1, "time_axis": 0}),
            ([_image(2, 3), np.array([3, 0], np.int64)], {"batch_axis": 0, "time_axis": -1}),
        ],
        source="ONNX ReverseSequence",
    )
)
