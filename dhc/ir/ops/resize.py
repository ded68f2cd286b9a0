"""Resizing of any axes: the modes and coordinate rules of ONNX Resize.

Every result element is a weighted sum over taps of the operand along each resized axis: here as scalar expressions for
backends, in `resize_reference` as NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import REALS, DType, f32, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import require_elements
from dhc.ir.kinds import Index, LoadFn, Reduce, ReduceSpec
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.matmul import Accumulators, load_as, moved_bytes
from dhc.ir.ops.resize_axis import ResizedAxis, accumulator_dtype, coordinate_dtype, resized_axes
from dhc.ir.ops.resize_reference import resized, stored
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _type(call: Call) -> list[TensorType]:
    (x,) = call.types
    a = call.attrs
    if len(a.shape) != x.rank:
        call.fail(f"shape needs {x.rank} sizes, got {len(a.shape)}")
    if a.scales and (len(a.scales) != x.rank or not all(v > 0 and math.isfinite(v) for v in a.scales)):
        call.fail(f"scales needs {x.rank} positive numbers or none")
    if a.coordinate == "tf_crop_and_resize" and len(a.roi) != 2 * x.rank:
        call.fail(f"tf_crop_and_resize needs a roi of {2 * x.rank} numbers (starts, then ends)")
    for axis in resized_axes(call):
        require_elements(call, axis.before, symbols.product(a.shape), f"axis {axis.axis}")
    if a.antialias and a.mode == "nearest":
        call.fail("antialias needs the mode linear or cubic")
    return [TensorType(x.dtype, a.shape)]


# ---- definition for backends -----------------------------------------------------------------------------------------


def _coordinate(call: Call, axis: ResizedAxis, position: s.ScalarExpr) -> s.ScalarExpr:
    """Operand position of a result position along an axis, as an expression."""
    real = coordinate_dtype(call.types[0].dtype)

    def number(dim: Dim) -> s.ScalarExpr:
        return s.const(float(dim), real) if isinstance(dim, int) else s.cast(s.size(dim), real)

    before, after = number(axis.before), number(axis.after)
    scale = s.const(axis.scale, real) if axis.scale is not None else after / before
    at = s.cast(position, real)
    rule = call.attrs.coordinate
    zero = s.const(0.0, real)

    def many(expr: s.ScalarExpr, single: s.ScalarExpr) -> s.ScalarExpr:
        if isinstance(axis.after, int):
            return expr if axis.after > 1 else single
        return s.select(s.size(axis.after) > 1, expr, single)

    half_pixel = (at + 0.5) / scale - 0.5
    if rule == "half_pixel":
        return half_pixel
    if rule == "pytorch_half_pixel":
        return many(half_pixel, zero)
    if rule == "half_pixel_symmetric":
        return before / 2.0 * (1.0 - after / (scale * before)) + (at + 0.5) / scale - 0.5
    if rule == "asymmetric":
        return at / scale
    if rule == "align_corners":
        return many(at * (before - 1.0) / (after - 1.0), zero)
    last = before - 1.0
    begin, end = s.const(axis.start, real), s.const(axis.end, real)
    spread = begin * last + at * (end - begin) * last / (after - 1.0)
    return many(spread, s.const(0.5, real) * (begin + end) * last)


def _nearest_index(call: Call, axis: ResizedAxis, at: s.ScalarExpr) -> s.ScalarExpr:
    rule = call.attrs.nearest
    if rule == "ceil":
        chosen = s.unary("ceil", at)
    else:
        chosen = s.unary("floor", at)
        if rule == "round_prefer_floor":
            chosen = s.select(at - chosen > 0.5, chosen + 1.0, chosen)
        elif rule == "round_prefer_ceil":
            chosen = s.select(at - chosen >= 0.5, chosen + 1.0, chosen)
    return _clamped(s.cast(chosen, i64), axis.before)


def _clamped(position: s.ScalarExpr, extent: Dim) -> s.ScalarExpr:
    return s.minimum(s.maximum(position, 0), s.size(extent - 1))


def _tap_weight(call: Call, distance: s.ScalarExpr) -> s.ScalarExpr:
    d = s.unary("abs", distance)
    if call.attrs.mode == "linear":
        return s.maximum(1.0 - d, 0.0)
    a = call.attrs.cubic_a
    near = (d * (a + 2) - (a + 3)) * d * d + 1.0
    far = ((d * a - 5 * a) * d + 8 * a) * d - 4 * a
    return s.select(d <= 1.0, near, s.select(d < 2.0, far, 0.0))


def _as_stored(total: s.ScalarExpr, dtype: DType, nearest: bool) -> s.ScalarExpr:
    if dtype.is_integer and nearest:
        total = s.unary("rint", total)
    return s.cast(total, dtype, saturate=dtype.is_integer)


def _extrapolated(call: Call, axes: Sequence[ResizedAxis], index: Index, inside: s.ScalarExpr) -> s.ScalarExpr:
    """`inside`, or the extrapolation value where the coordinate of some axis leaves the operand."""
    if call.attrs.coordinate != "tf_crop_and_resize":
        return inside
    dtype = call.types[0].dtype
    value = stored(np.asarray(call.attrs.extrapolation), dtype, False).item()
    for axis in axes:
        at = _coordinate(call, axis, index[axis.axis])
        last = s.cast(s.size(axis.before - 1), at.dtype)
        inside = s.select(s.binary("or", at < 0.0, at > last), value, inside)
    return inside


Taps = tuple[int, list[tuple[s.ScalarExpr, s.ScalarExpr]]]


def _written_taps(call: Call, axis: ResizedAxis, index: Index, real: DType) -> Taps:
    """An axis with its few taps written out: their positions and weights."""
    at = _coordinate(call, axis, index[axis.axis])
    last = s.size(axis.before - 1)
    if call.attrs.mode == "linear":
        at = s.minimum(s.maximum(at, 0.0), s.cast(last, at.dtype))
        below = s.unary("floor", at)
        first = s.cast(below, i64)
        share = s.cast(at - below, real)
        return axis.axis, [(first, 1.0 - share), (s.minimum(first + 1, last), share)]
    below = s.unary("floor", at)
    taps = []
    for offset in (-1, 0, 1, 2):
        position = s.cast(below, i64) + offset
        weight = s.cast(_tap_weight(call, below + float(offset) - at), real)
        taps.append((_clamped(position, axis.before), weight))
    return axis.axis, taps


def _blended(axes: Sequence[Taps], source: list[s.ScalarExpr], load: LoadFn, real: DType) -> s.ScalarExpr:
    """Weighted sum over the taps of all axes, innermost axis first."""
    if not axes:
        return load_as(load, 0, source, real)
    (axis, taps), *rest = axes
    total: s.ScalarExpr | None = None
    for position, weight in taps:
        part = weight * _blended(rest, [position if i == axis else e for i, e in enumerate(source)], load, real)
        total = part if total is None else total + part
    assert total is not None
    return total


def _single_step(call: Call, axes: Sequence[ResizedAxis], dtype: DType, step: Any) -> ReduceSpec:
    """A window of one element, whose value `step` gives at once."""
    return ReduceSpec(
        domain=(1,),
        init=lambda index, load: (s.const(0, dtype),),
        step=step,
        finish=lambda index, accs: (_extrapolated(call, axes, index, accs[0]),),
        associative=False,
    )


def _spec(call: Call) -> ReduceSpec:
    (x,), a = call.types, call.attrs
    axes = resized_axes(call)
    real = accumulator_dtype(x.dtype)
    if a.mode == "nearest" or not axes:
        # One tap: the running value is the element itself, in the operand's dtype.
        def pick(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
            source = list(index)
            for axis in axes:
                source[axis.axis] = _nearest_index(call, axis, _coordinate(call, axis, index[axis.axis]))
            return (load(0, source),)

        return _single_step(call, axes, x.dtype, pick)
    few = a.mode == "linear" or (len(axes) <= 2 and not a.exclude_outside)
    if few and not a.antialias:
        # Two or four taps along each axis, written out: what belongs to one axis is computed once.
        def blend(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
            value = _blended([_written_taps(call, axis, index, real) for axis in axes], list(index), load, real)
            return (_as_stored(value, x.dtype, False),)

        return _single_step(call, axes, x.dtype, blend)

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        source = list(index)
        weight: s.ScalarExpr = s.const(1.0, real)
        for tap, axis in zip(red, axes):
            at = _coordinate(call, axis, index[axis.axis])
            below = s.unary("floor", at)
            offset = tap + s.size(axis.taps(a.mode, a.antialias)[0])
            distance = below + s.cast(offset, at.dtype) - at
            if a.antialias and axis.scale is None:
                ratio = s.cast(s.size(axis.after), at.dtype) / s.cast(s.size(axis.before), at.dtype)
                distance = distance * s.minimum(ratio, 1.0)
            elif a.antialias and axis.scale is not None and axis.scale < 1:
                distance = distance * axis.scale
            position = s.cast(below, i64) + offset
            part = s.cast(_tap_weight(call, distance), real)
            if a.exclude_outside:
                within = s.logical_and(position >= 0, position < s.size(axis.before))
                part = s.select(within, part, 0.0)
            source[axis.axis] = _clamped(position, axis.before)
            weight = weight * part
        total, sum_of_weights = accs
        return total + weight * load_as(load, 0, source, real), sum_of_weights + weight

    def finish(index: Index, accs: Accumulators) -> Accumulators:
        value = _as_stored(accs[0] / accs[1], x.dtype, a.antialias)
        return (_extrapolated(call, axes, index, value),)

    return ReduceSpec(
        domain=tuple(axis.taps(a.mode, a.antialias)[1] for axis in axes),
        init=lambda index, load: (s.const(0.0, real), s.const(0.0, real)),
        step=step,
        finish=finish,
    )


# ---- gradient and cost -----------------------------------------------------------------------------------------------


def _grad(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    call = Call.of(node)
    a = dict(node.attrs)
    wide = f32 if g.dtype.bits == 16 else g.dtype
    result = g if g.dtype == wide else b.cast(g, dtype=wide)
    for axis in resized_axes(call):
        # Resizing the unit matrix along its first axis gives the matrix [after, before] of this axis.
        unit = b.eye(shape=(axis.before, axis.before), dtype=wide, k=0)
        weights = b.call(
            "resize", unit,
            attrs={**a, "shape": (axis.after, axis.before), "extrapolation": 0.0,
                   "scales": () if axis.scale is None else (axis.scale, 1.0),
                   "roi": (axis.start, 0.0, axis.end, 1.0) if a["roi"] else ()},
        )  # fmt: skip
        rank = g.type.rank
        perm = [i for i in range(rank) if i != axis.axis] + [axis.axis]
        turned = b.transpose(result, perm=perm) if rank > 1 else b.reshape(result, shape=(1, axis.after))
        product = b.matmul(turned, weights)
        if rank > 1:
            result = b.transpose(product, perm=[int(i) for i in np.argsort(perm)])
        else:
            result = b.reshape(product, shape=(axis.before,))
    return (result if g.dtype == wide else b.cast(result, dtype=g.dtype),)


def _cost(call: Call) -> Cost:
    taps: Dim = 1
    if call.attrs.mode != "nearest":
        for axis in resized_axes(call):
            taps = taps * axis.taps(call.attrs.mode, call.attrs.antialias)[1]
    return Cost(call.results[0].numel * taps * 2, moved_bytes(call))


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(6)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def call(x: np.ndarray, shape: Sequence[int], **attrs: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        return [x], {"shape": tuple(shape), **attrs}

    double = (1.0, 1.0, 2.0, 2.0)
    return [
        call(f(1, 2, 3, 4), (1, 2, 6, 8), scales=double, mode="nearest", coordinate="asymmetric", nearest="floor"),
        call(f(1, 1, 5, 7), (1, 1, 3, 9), mode="nearest"),
        call(f(1, 2, 3, 4), (1, 2, 6, 8), scales=double, mode="linear"),
        call(f(1, 1, 4, 4), (1, 1, 7, 3), mode="linear", coordinate="align_corners"),
        call(f(1, 1, 2, 3, 3), (1, 1, 4, 5, 6), mode="linear", coordinate="half_pixel_symmetric"),
        call(f(1, 1, 4, 5), (1, 1, 9, 3), mode="cubic"),
        call(f(1, 1, 4, 5), (1, 1, 3, 8), mode="cubic", exclude_outside=True, cubic_a=-0.5),
        call(f(1, 1, 9, 8), (1, 1, 4, 3), mode="linear", antialias=True),
        call(f(1, 1, 9, 8), (1, 1, 4, 11), mode="cubic", antialias=True, exclude_outside=True),
        call(f(1, 1, 4, 4), (1, 1, 3, 3), mode="linear", coordinate="tf_crop_and_resize",
             roi=(0.0, 0.0, 0.4, 0.6, 1.0, 1.0, 1.2, 0.9), extrapolation=10.0),
        call(f(5), (8,), mode="linear", coordinate="pytorch_half_pixel"),
        call(f(0, 1, 3, 3), (0, 1, 6, 6), mode="linear"),
        call(rng.integers(0, 256, (1, 1, 4, 4)).astype(np.uint8), (1, 1, 7, 7), mode="linear"),
    ]  # fmt: skip


register(
    OpDef(
        name="resize",
        doc="Samples the operand on another grid: nearest, linear or cubic along every axis whose size changes.",
        operands=(Operand("x", REALS),),
        attrs=(
            Attr("shape", "dims", doc="result sizes"),
            Attr("scales", "floats", (), "factor per axis for the coordinate rule; none: ratio of the sizes"),
            Attr("mode", "str", "nearest", "interpolation", ("nearest", "linear", "cubic")),
            Attr("coordinate", "str", "half_pixel", "where a result element lies in the operand", COORDINATES),
            Attr("nearest", "str", "round_prefer_floor", "rounding of coordinates (mode nearest)", ROUNDINGS),
            Attr("cubic_a", "float", -0.75, "parameter of the cubic filter"),
            Attr("exclude_outside", "bool", False, "taps outside weigh nothing; else they repeat the edge"),
            Attr("extrapolation", "float", 0.0, "value outside (tf_crop_and_resize)"),
            Attr("roi", "floats", (), "region of interest: starts, then ends, per axis (tf_crop_and_resize)"),
            Attr("antialias", "bool", False, "stretch the filter when the result is smaller"),
        ),
        infer=_type,
        reference=resized,
        kind=Reduce(_spec, role="window"),
        grad=_grad,
        cost=_cost,
        examples=_examples,
        source="ONNX Resize (opset 19)",
    )
)
