"""Regions of interest: each box of an image pooled to one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir.dtypes import f32, f64, i64
from dhc.ir.inference import require_elements, require_equal, require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType

MODES = ("avg", "max")
MOST_SAMPLES = 1024
"""Samples per bin and axis at most, so that boxes far larger than the image cannot stall a run."""


def roi_align_kernel(  # type: ignore[no-untyped-def]
    x, rois, batches, scale, out, images, channels, height, width, high, wide, ratio, half, largest, first, end
):
    """Work item: one region. Bilinear samples on a grid in each bin, averaged, or the largest weighted corner.

    All of it in f64: ``float(x) * 1.0`` is that in Python and in Numba, which leaves an f32 an f32 in ``float``.
    """
    offset = 0.5 if half != 0 else 0.0
    for roi in range(first, end):
        batch = batches[roi]
        if batch < 0 or batch >= images:
            return 1
        factor = float(scale[0]) * 1.0
        left = float(rois[roi * 4]) * 1.0 * factor - offset
        top = float(rois[roi * 4 + 1]) * 1.0 * factor - offset
        roi_width = float(rois[roi * 4 + 2]) * 1.0 * factor - offset - left
        roi_height = float(rois[roi * 4 + 3]) * 1.0 * factor - offset - top
        if half == 0:
            roi_width = max(roi_width, 1.0)
            roi_height = max(roi_height, 1.0)
        bin_height = roi_height / high
        bin_width = roi_width / wide
        rows = ratio
        columns = ratio
        if ratio <= 0:
            rows = 0
            columns = 0
            while rows < bin_height and rows < 1024:
                rows = rows + 1
            while columns < bin_width and columns < 1024:
                columns = columns + 1
        count = max(rows * columns, 1)
        for channel in range(channels):
            base = (batch * channels + channel) * height * width
            for py in range(high):
                for px in range(wide):
                    total = 0.0
                    for sy in range(rows):
                        for sx in range(columns):
                            y = top + py * bin_height + (sy + 0.5) * bin_height / rows
                            x_at = left + px * bin_width + (sx + 0.5) * bin_width / columns
                            value = 0.0
                            if y >= -1.0 and y <= height and x_at >= -1.0 and x_at <= width:
                                y = max(y, 0.0)
                                x_at = max(x_at, 0.0)
                                y_low = min(int(y), height - 1)
                                x_low = min(int(x_at), width - 1)
                                y_high = min(y_low + 1, height - 1)
                                x_high = min(x_low + 1, width - 1)
                                if y_low == height - 1:
                                    y = y_low
                                if x_low == width - 1:
                                    x_at = x_low
                                ly = y - y_low
                                lx = x_at - x_low
                                a = (1.0 - ly) * (1.0 - lx) * (float(x[base + y_low * width + x_low]) * 1.0)
                                b = (1.0 - ly) * lx * (float(x[base + y_low * width + x_high]) * 1.0)
                                c = ly * (1.0 - lx) * (float(x[base + y_high * width + x_low]) * 1.0)
                                d = ly * lx * (float(x[base + y_high * width + x_high]) * 1.0)
                                if largest != 0:
                                    value = max(max(a, b), max(c, d))
                                else:
                                    value = a + b + c + d
                            if largest == 0:
                                total = total + value
                            elif (sy == 0 and sx == 0) or value > total:
                                total = value
                    if largest == 0:
                        total = total / count
                    out[((roi * channels + channel) * high + py) * wide + px] = total
    return 0


def _type(call: Call) -> list[TensorType]:
    x, rois, batches = call.types[:3]
    a = call.attrs
    require_rank(call, 0, 4)
    require_rank(call, 1, 2)
    require_rank(call, 2, 1)
    require_rank(call, 3, 0)
    call.require(rois.shape[1], 4, "coordinates of a region")
    count = require_equal(call, rois.shape[0], batches.shape[0], "regions")
    if a.height < 1 or a.width < 1 or a.sampling < 0 or a.sampling > MOST_SAMPLES:
        call.fail(f"height {a.height} and width {a.width} are positive, sampling {a.sampling} is 0 to {MOST_SAMPLES}")
    for axis in (2, 3):
        require_elements(call, x.shape[axis], 1, f"axis {axis} of the image")
    return [TensorType(x.dtype, (count, x.shape[1], a.height, a.width))]


def _samples(start: float, extent: float, bins: int, sampling: int) -> np.ndarray:
    """Positions [bins, samples] along an axis."""
    size = extent / bins
    each = sampling or (int(min(np.ceil(size), MOST_SAMPLES)) if size > 0 else 0)
    return start + np.arange(bins)[:, None] * size + (np.arange(each) + 0.5) * size / max(each, 1)


def _axis(at: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper element, share of the upper one, and whether the position is near the image at all."""
    inside = (at >= -1.0) & (at <= extent)
    at = np.maximum(np.where(inside, at, 0.0), 0.0)
    low = np.minimum(at.astype(np.int64), extent - 1)
    share = np.where(low == extent - 1, 0.0, at - low)
    return low, np.minimum(low + 1, extent - 1), share, inside


def _reference(call: Call, x: np.ndarray, rois: np.ndarray, batches: np.ndarray, scale: np.ndarray) -> Any:
    a = call.attrs
    images, channels, height, width = x.shape
    out = np.zeros((len(rois), channels, a.height, a.width), x.dtype)
    offset = 0.5 if a.half_pixel else 0.0
    for roi, (corners, batch) in enumerate(zip(rois.astype(np.float64), batches)):
        if not 0 <= batch < images:
            raise DhcError(f"roi_align: image {batch} of {images}", where=str(call.location))
        left, top, right, bottom = corners * float(scale) - offset
        extents = [bottom - top, right - left]
        if not a.half_pixel:
            extents = [max(e, 1.0) for e in extents]
        y0, y1, fy, y_in = _axis(_samples(top, extents[0], a.height, a.sampling), height)
        x0, x1, fx, x_in = _axis(_samples(left, extents[1], a.width, a.sampling), width)
        near = y_in[:, :, None, None] & x_in[None, None]
        fy, fx = fy[:, :, None, None], fx[None, None]
        image = x[batch].astype(np.float64)

        def corner(rows: np.ndarray, columns: np.ndarray, image: np.ndarray = image) -> np.ndarray:
            taken: np.ndarray = image[:, rows[:, :, None, None], columns[None, None]]
            return taken

        parts = [
            (1 - fy) * (1 - fx) * corner(y0, x0),
            (1 - fy) * fx * corner(y0, x1),
            fy * (1 - fx) * corner(y1, x0),
            fy * fx * corner(y1, x1),
        ]
        # [channels, rows, samples, columns, samples]; outside of the image there is nothing.
        values = parts[0] + parts[1] + parts[2] + parts[3] if a.mode == "avg" else np.max(np.stack(parts), axis=0)
        out[roi] = _joined(np.where(near, values, 0.0), a.mode).astype(x.dtype)
    return out


def _joined(values: np.ndarray, mode: str) -> np.ndarray:
    """The samples of each bin, row by row: their mean or the largest; 0 where a bin has none."""
    channels, height, rows, width, columns = values.shape
    total = np.zeros((channels, height, width))
    for number, (row, column) in enumerate(np.ndindex(rows, columns)):
        value = values[:, :, row, :, column]
        larger = number == 0 or value > total
        total = total + value if mode == "avg" else np.where(larger, value, total)
    mean: np.ndarray = total / max(rows * columns, 1) if mode == "avg" else total
    return mean


def _args(call: Call) -> Sequence[Any]:
    images, channels, height, width = call.types[0].shape
    a = call.attrs
    flags = [a.sampling, int(a.half_pixel), int(a.mode == "max")]
    return [images, channels, height, width, a.height, a.width, *flags]


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    rois = np.array([[0.3, 0.2, 4.1, 5.3], [1.7, 1.2, 2.9, 3.3], [-9.0, -8.0, -4.0, -3.5]], np.float32)
    batches = np.array([1, 0, 1], np.int64)
    operands: list[np.ndarray] = [x, rois, batches, np.array(0.9, np.float32)]
    none: list[np.ndarray] = [x, rois[:0], batches[:0], np.array(1.0, np.float32)]
    return [
        (operands, {"height": 2, "width": 3, "sampling": 2}),
        (operands, {"height": 2, "width": 2, "half_pixel": False}),
        (operands, {"height": 1, "width": 2, "mode": "max", "sampling": 2}),
        (none, {"height": 2, "width": 2}),
    ]


register(
    OpDef(
        name="roi_align",
        doc="Pools each region (x1, y1, x2, y2) of an image of x[N, C, H, W] to one size with bilinear samples.",
        operands=(
            Operand("x", frozenset({f32, f64})),
            Operand("rois", frozenset({f32, f64}), same="x"),
            Operand("batches", frozenset({i64})),
            Operand("scale", frozenset({f32, f64}), same="x"),
        ),
        attrs=(
            Attr("height", "int", doc="rows of the result"),
            Attr("width", "int", doc="columns of the result"),
            Attr("sampling", "int", 0, "samples per bin and axis; 0: as many as elements lie in a bin"),
            Attr("half_pixel", "bool", True, "elements lie at half coordinates, else at whole ones"),
            Attr("mode", "str", "avg", "mean of the samples, or the largest weighted element", MODES),
        ),
        infer=_type,
        reference=_reference,
        kind=Opaque(roi_align_kernel, args=_args, parallel=lambda call: call.types[1].shape[0], flat=True),
        grad=NotDifferentiable("the number of samples of a bin jumps with its size"),
        examples=_examples,
        source="ONNX RoiAlign; He et al., Mask R-CNN, ICCV 2017",
    )
)
