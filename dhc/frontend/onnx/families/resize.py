"""Resize and Upsample in all versions and modes."""

from __future__ import annotations

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim, SymExpr


@onnx_op("Upsample")
def upsample_attributes(n: NodeContext) -> Value:
    """Opset 7: scales as an attribute."""
    return _old(n, [float(s) for s in n.require_attr("scales")])


@onnx_op("Upsample", since=9)
def upsample(n: NodeContext) -> Value:
    """Scales as an operand."""
    return _old(n, [float(s) for s in n.require_const(1, "the scales").reshape(-1)])


@onnx_op("Resize", since=10)
def resize_10(n: NodeContext) -> Value:
    """Opset 10: asymmetric coordinates only."""
    return _old(n, [float(s) for s in n.require_const(1, "the scales").reshape(-1)])


def _old(n: NodeContext, scales: list[float]) -> Value:
    x = n.value(0)
    mode = n.attr("mode", "nearest")
    return n.b.resize(
        x,
        shape=tuple(scaled(d, s) for d, s in zip(x.shape, scales)),
        scales=scales,
        mode="linear" if mode in ("linear", "bilinear") else mode,
        coordinate="asymmetric",
        nearest="floor",
    )


def scaled(size: Dim, scale: float) -> Dim:
    """floor(size * scale), in f32 as ONNX infers it: 10 * 0.7 is 7. Symbolic sizes need a rational scale."""
    if not isinstance(size, SymExpr):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    numerator, denominator = float(scale).as_integer_ratio()
    if denominator > 2**20:
        from fractions import Fraction

        fraction = Fraction(scale).limit_denominator(10_000)
        numerator, denominator = fraction.numerator, fraction.denominator
    return symbols.floordiv(size * numerator, denominator)


@onnx_op("Resize", since=11)
def resize(n: NodeContext) -> Value:
    """Scales or sizes as operands; coordinates, rounding and borders as attributes."""
    x = n.value(0)
    rank = x.type.rank
    axes = [n.axis(a, rank) for a in n.attr("axes") or range(rank)]
    shape: list[Dim] = list(x.shape)
    scales = [1.0] * rank
    given = n.require_const(2, "the scales") if n.has(2) else None
    if given is not None and given.size:
        for axis, scale in zip(axes, given.reshape(-1)):
            shape[axis], scales[axis] = scaled(x.shape[axis], float(scale)), float(scale)
    elif n.has(3):
        _take_sizes(n, x, axes, n.dims(3), shape, scales)
    else:
        n.invalid("neither scales nor sizes are given")
    coordinate = n.attr("coordinate_transformation_mode", "half_pixel")
    if coordinate == "tf_half_pixel_for_nn":
        n.unsupported("coordinate_transformation_mode tf_half_pixel_for_nn is not supported", "use half_pixel")
    roi: list[float] = []
    if coordinate == "tf_crop_and_resize":
        window = n.require_const(1, "the region of interest").reshape(-1)
        starts, ends = [0.0] * rank, [1.0] * rank
        for position, axis in enumerate(axes):
            starts[axis], ends[axis] = float(window[position]), float(window[position + len(axes)])
        roi = [*starts, *ends]
    return n.b.resize(
        x,
        shape=tuple(shape),
        scales=scales if all(s > 0 for s in scales) else (),
        mode=n.attr("mode", "nearest"),
        coordinate=coordinate,
        nearest=n.attr("nearest_mode", "round_prefer_floor"),
        cubic_a=n.attr("cubic_coeff_a", -0.75),
        exclude_outside=bool(n.attr("exclude_outside", 0)),
        extrapolation=n.attr("extrapolation_value", 0.0),
        roi=roi,
        antialias=bool(n.attr("antialias", 0)),
    )


def _take_sizes(
    n: NodeContext, x: Value, axes: list[int], sizes: tuple[Dim, ...], shape: list[Dim], scales: list[float]
) -> None:
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        known = [x.shape[a] for a in axes]
        if any(not isinstance(d, int) for d in (*known, *sizes)):
            n.needs_sizes((*known, *sizes), f"keep_aspect_ratio_policy {policy} needs known sizes")
        ratios = [int(s) / int(d) for s, d in zip(sizes, known)]  # type: ignore[arg-type]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        for axis in axes:
            scales[axis] = ratio
            shape[axis] = int(ratio * x.shape[axis] + 0.5)
        return
    for axis, size in zip(axes, sizes):
        shape[axis] = size
        before = x.shape[axis]
        scales[axis] = size / before if isinstance(size, int) and isinstance(before, int) and before else 0.0
