"""Which resizes and pads have kernels of their own, with the tables that they read; others run as loop kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.spec import KernelCode
from dhc.backends.cpu.contraction import PlannedContraction
from dhc.backends.cpu.epilogue import plan_epilogue
from dhc.backends.cpu.sampling.pad import emit_pad
from dhc.backends.cpu.sampling.resize import PADDING, TABLE_ALIGN, Pattern, ResizeSpec, emit_resize
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import symbols
from dhc.ir.dtypes import f32
from dhc.ir.graph import Node, Value
from dhc.ir.op import Call
from dhc.ir.ops.resize_axis import ResizedAxis, resized_axes
from dhc.ir.ops.resize_reference import axis_taps
from dhc.ir.symbols import Dim

_MOST_TAPS = 4
_LARGEST_FACTOR = 4
_LARGEST_PROOF = 1 << 24  # elements of the matrices that are compared to find a pattern

Tables = tuple[np.ndarray, np.ndarray]


def plan_resize(node: Node, tail: Sequence[Node], target: CpuTarget) -> PlannedContraction | None:
    """Plans a `resize` and the element-wise nodes after it; None when it has no kernel of its own.

    Args:
        node: the resize.
        tail: element-wise nodes after it.
        target: the CPU.
    """
    (x,), a = node.operands, node.attrs
    rank = x.type.rank - 2
    if x.dtype != f32 or not 1 <= rank <= 3 or a["antialias"] or a["coordinate"] == "tf_crop_and_resize":
        return None
    before, after = x.shape[2:], node.result.shape[2:]
    sizes = [d for d in (*before, *after) if isinstance(d, int) and d > 0]
    axes = {axis.axis - x.type.rank + 3: axis for axis in resized_axes(Call.of(node))}
    if len(sizes) != 2 * rank or not axes or min(axes) < 3 - rank:
        return None
    tables = {i: axis_taps(Call.of(node), axis) for i, axis in axes.items()}
    taps = [tables[i][0].shape[1] if i in tables else 0 for i in range(3)]
    if max(taps) > _MOST_TAPS:
        return None
    pattern = _pattern(axes[2], *tables[2]) if 2 in axes else None
    planned = plan_epilogue(node, tail, row_axis=1)
    spec = ResizeSpec((taps[0], taps[1], taps[2]), pattern, planned.epilogue or Epilogue())
    (in_w, *_), (out_w, *_) = before[::-1], after[::-1]
    assert isinstance(in_w, int) and isinstance(out_w, int), "sizes are known"
    code = emit_resize(spec, target, in_w, out_w)
    weights, places, columns = _laid_out(tables, pattern, out_w)
    ones = (1,) * (3 - rank)
    planes = symbols.product(x.shape[:2])
    operands: tuple[Value | np.ndarray, ...] = (x, weights, places, columns, *planned.operands)
    return PlannedContraction(code, operands, (planes, x.shape[1], *ones, *before, *ones, *after), planned)


def plan_pad(node: Node, target: CpuTarget) -> tuple[KernelCode, tuple[Dim, ...]] | None:
    """The kernel of a `pad` of f32 maps around space, and its parameters; None for others."""
    x, low, high = node.operands[0], node.attrs["low"], node.attrs["high"]
    rank = x.type.rank - 2
    if x.dtype != f32 or not 1 <= rank <= 3 or any(d != 0 for d in (*low[:2], *high[:2])):
        return None
    if not all(symbols.is_nonnegative(d) for d in (*low, *high)):
        return None
    before, after = ((1,) * (3 - rank) + tuple(v.shape[2:]) for v in (x, node.result))
    widths = (0,) * (3 - rank) + tuple(low[2:])
    return emit_pad(node.attrs["mode"], target), (symbols.product(x.shape[:2]), *before, *after, *widths)


def _pattern(axis: ResizedAxis, places: np.ndarray, weights: np.ndarray) -> Pattern | None:
    """The pattern of an axis that grows by a whole factor, when every row of its matrix follows it."""
    before, after = axis.before, axis.after
    assert isinstance(before, int) and isinstance(after, int), "sizes are known"
    factor = after // before
    if factor * before != after or not 2 <= factor <= _LARGEST_FACTOR or after * before > _LARGEST_PROOF:
        return None
    middle = before // 2
    offsets = places[factor * middle : factor * (middle + 1)] - middle
    if np.abs(offsets).max() > PADDING:
        return None
    repeated = np.tile(offsets, (before, 1)) + np.repeat(np.arange(before), factor)[:, None]
    own = np.tile(weights[factor * middle : factor * (middle + 1)], (before, 1))
    wanted, found = np.zeros((2, after, before), np.float32)
    for matrix, columns, values in (
        (wanted, places, weights),
        (found, np.clip(repeated, 0, before - 1), own),
    ):
        for tap in range(columns.shape[1]):
            np.add.at(matrix, (np.arange(after), columns[:, tap]), values[:, tap])
    if np.abs(wanted - found).max() > 5e-7:
        return None
    return Pattern(factor, tuple(tuple(int(o) for o in row) for row in offsets))


def _laid_out(
    tables: dict[int, Tables], pattern: Pattern | None, out_w: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, positions in z and y, positions in x, as `emit_resize` says."""
    weights: list[np.ndarray] = []
    places: list[np.ndarray] = []
    columns: np.ndarray[Any, Any] = np.zeros((1, TABLE_ALIGN), np.int32)
    for axis, (where, shares) in sorted(tables.items()):
        if axis < 2:
            weights.append(shares.reshape(-1))
            places.append(where.reshape(-1))
        elif pattern is not None:
            middle = len(where) // pattern.factor // 2
            weights.append(shares[pattern.factor * middle : pattern.factor * (middle + 1)].reshape(-1))
        else:
            padded = -(-out_w // TABLE_ALIGN) * TABLE_ALIGN
            columns = np.zeros((where.shape[1], padded), np.int32)
            columns[:, :out_w] = where.T
            table = np.zeros(columns.shape, np.float32)
            table[:, :out_w] = shares.T
            weights.append(table.reshape(-1))
    flat = np.concatenate(weights).astype(np.float32)
    return flat, np.concatenate([*places, np.zeros(1, np.int64)]).astype(np.int64), columns.reshape(-1)
