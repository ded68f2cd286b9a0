"""The rule of one axis that Resize changes, which the reference and the definition for backends share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dhc.ir import symbols
from dhc.ir.dtypes import DType, f32, f64
from dhc.ir.op import Call
from dhc.ir.symbols import Dim


def coordinate_dtype(dtype: DType) -> DType:
    """Positions are computed in f32, as ONNX Runtime does, or in f64 for f64 operands."""
    return f64 if dtype == f64 else f32


def accumulator_dtype(dtype: DType) -> DType:
    """Weighted sums are in f32, those of f64 and of wide integers in f64."""
    return f64 if dtype == f64 or (dtype.is_integer and dtype.bits > 16) else f32


@dataclass(frozen=True)
class ResizedAxis:
    """One axis that is resized.

    Attributes:
        axis: its number.
        before: operand size.
        after: result size.
        scale: after / before as the caller gave it; None: the exact ratio of the sizes.
        start: where the region of interest begins, 0 to 1 (tf_crop_and_resize).
        end: where it ends.
    """

    axis: int
    before: Dim
    after: Dim
    scale: float | None
    start: float
    end: float

    def taps(self, mode: str, antialias: bool) -> tuple[Dim, Dim]:
        """Offset of the first tap from the floor of the coordinate, and the number of taps."""
        radius = 1 if mode == "linear" else 2
        if not antialias:
            return 1 - radius, 2 * radius
        if self.scale is not None:
            reach = max(radius, math.ceil(radius / min(self.scale, 1.0)))
            return 1 - reach, 2 * reach
        wide = symbols.maximum(symbols.ceildiv(self.before * radius, self.after), radius)
        return 1 - wide, 2 * wide


def resized_axes(call: Call) -> list[ResizedAxis]:
    """The axes along which something changes."""
    (x,), a = call.types, call.attrs
    found = []
    for axis, (before, after) in enumerate(zip(x.shape, a.shape)):
        scale = a.scales[axis] if a.scales else None
        start, end = (a.roi[axis], a.roi[axis + x.rank]) if a.coordinate == "tf_crop_and_resize" else (0.0, 1.0)
        if before == after and scale in (None, 1.0) and (start, end) == (0.0, 1.0):
            continue
        found.append(ResizedAxis(axis, before, after, scale, start, end))
    return found
