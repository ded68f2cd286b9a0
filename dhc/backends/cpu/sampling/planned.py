"""Which resizes and pads have kernels of their own, with the tables that they read; others run as loop kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
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
_LARGEST_FACTOR = 8
_LARGEST_PROOF = 1 << 24  # elements of the matrices that are compared to find a pattern
_SAME = 5e-7  # difference of weights that rounding of coordinates in f32 explains
_EXACT_FACTORS = (2, 4, 8)
_UNIFORM = ("half_pixel", "pytorch_half_pixel", "asymmetric")
_SAMPLE = 16


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
    call = Call.of(node)
    axes = {axis.axis - x.type.rank + 3: axis for axis in resized_axes(call)}
    before, after = ((1,) * (3 - rank) + tuple(v.shape[2:]) for v in (x, node.result))
    if not axes or min(axes) < 3 - rank:
        return None
    tables: dict[int, _AxisTables] = {}
    for i, axis in axes.items():
        found = _tables(call, axis)
        if found is None or found.places.shape[1] > _MOST_TAPS:
            return None
        tables[i] = found
    taps = [tables[i].places.shape[1] if i in tables else 0 for i in range(3)]
    factors = [tables[i].factor if i in tables else 0 for i in range(2)]
    pattern = _as_pattern(tables[2]) if 2 in tables else None
    planned = plan_epilogue(node, tail, row_axis=1)
    spec = ResizeSpec((taps[0], taps[1], taps[2]), (factors[0], factors[1]), pattern, planned.epilogue or Epilogue())
    row = max(d for d in (before[2], after[2]) if isinstance(d, int)) if spec.gathers else 0
    weights, places, columns = _laid_out(tables)
    operands: tuple[Value | np.ndarray, ...] = (x, weights, places, columns, *planned.operands)
    params = (symbols.product(x.shape[:2]), x.shape[1], *before, *after)
    return PlannedContraction(emit_resize(spec, target, row), operands, params, planned)


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


@dataclass(frozen=True)
class _AxisTables:
    """Positions and weights of an axis.

    Attributes:
        places: ``[out][tap]``; with a factor ``[residue][tap]``, relative to the output's own position.
        weights: for each of them.
        factor: by which the axis grows, repeating one pattern; 0: it does not.
    """

    places: np.ndarray
    weights: np.ndarray
    factor: int = 0


def _tables(call: Call, axis: ResizedAxis) -> _AxisTables | None:
    """The tables of an axis; None where they would depend on sizes that are not known."""
    before, after = axis.before, axis.after
    if isinstance(before, int) and isinstance(after, int):
        if before < 1 or after < 1:
            return None
        places, weights = axis_taps(call, axis)
        return _repeated(before, after, places, weights) or _AxisTables(places, weights)
    for factor in _EXACT_FACTORS:
        if after != before * factor or axis.scale not in (None, factor):
            continue
        if call.attrs.coordinate not in _UNIFORM or call.attrs.exclude_outside:
            return None
        # What holds for one size holds for all: positions of whole factors of two are exact.
        sample = dataclasses.replace(axis, before=_SAMPLE, after=_SAMPLE * factor)
        return _repeated(_SAMPLE, _SAMPLE * factor, *axis_taps(call, sample))
    return None


def _repeated(before: int, after: int, places: np.ndarray, weights: np.ndarray) -> _AxisTables | None:
    """The pattern of an axis that grows by a whole factor, when every row of its matrix follows it."""
    factor = after // before
    if factor * before != after or not 2 <= factor <= _LARGEST_FACTOR or after * before > _LARGEST_PROOF:
        return None
    middle = before // 2
    rows = slice(factor * middle, factor * (middle + 1))
    offsets = places[rows] - middle
    if np.abs(offsets).max() > PADDING:
        return None
    repeated = np.tile(offsets, (before, 1)) + np.repeat(np.arange(before), factor)[:, None]
    own = np.tile(weights[rows], (before, 1))
    wanted, found = np.zeros((2, after, before), np.float32)
    for matrix, columns, values in (
        (wanted, places, weights),
        (found, np.clip(repeated, 0, before - 1), own),
    ):
        for tap in range(columns.shape[1]):
            np.add.at(matrix, (np.arange(after), columns[:, tap]), values[:, tap])
    if np.abs(wanted - found).max() > _SAME:
        return None
    return _AxisTables(offsets, weights[rows], factor)


def _as_pattern(tables: _AxisTables) -> Pattern | None:
    if not tables.factor:
        return None
    return Pattern(tables.factor, tuple(tuple(int(o) for o in row) for row in tables.places))


def _laid_out(tables: dict[int, _AxisTables]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, positions in z and y, positions in x, as `emit_resize` says."""
    weights: list[np.ndarray] = []
    places: list[np.ndarray] = []
    columns: np.ndarray[Any, Any] = np.zeros((1, TABLE_ALIGN), np.int32)
    for axis, table in sorted(tables.items()):
        if axis == 2 and not table.factor:
            count, taps = table.places.shape
            padded = -(-count // TABLE_ALIGN) * TABLE_ALIGN
            columns = np.zeros((taps, padded), np.int32)
            columns[:, :count] = table.places.T
            shares = np.zeros(columns.shape, np.float32)
            shares[:, :count] = table.weights.T
            weights.append(shares.reshape(-1))
            continue
        weights.append(table.weights.reshape(-1))
        if axis < 2:
            places.append(table.places.reshape(-1))
    flat = np.concatenate(weights).astype(np.float32)
    return flat, np.concatenate([*places, np.zeros(1, np.int64)]).astype(np.int64), columns.reshape(-1)
