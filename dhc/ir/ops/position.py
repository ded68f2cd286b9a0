"""Positions of the largest and smallest elements along an axis. NaN wins over every number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir import scalar as s
from dhc.ir.dtypes import REALS, i64
from dhc.ir.inference import reduced_shape, require_at_most
from dhc.ir.kinds import Index, Reduce, ReduceSpec
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.reduce import highest, lowest, reduction_cost
from dhc.ir.precision import compute_dtype, wide_array, widened_load
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _position_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    axis = call.axis(call.attrs.axis)
    if x.shape[axis] == 0:
        call.fail(f"axis {axis} is empty, it has no largest or smallest element")
    require_at_most(call, 1, x.shape[axis], f"axis {axis} has a largest or smallest element")
    return [TensorType(i64, reduced_shape(x.shape, (axis,), call.attrs.keepdims))]


def _position(call: Call, x: np.ndarray[Any, Any], largest: bool) -> np.ndarray[Any, Any]:
    axis, n = call.axis(call.attrs.axis), x.shape[call.axis(call.attrs.axis)]
    if n == 0:
        raise DhcError(f"{call.op.name}: axis {axis} is empty", where=str(call.location))
    function = np.argmax if largest else np.argmin
    wide = wide_array(x)
    if call.attrs.last:
        found = n - 1 - function(np.flip(wide, axis), axis=axis)
    else:
        found = function(wide, axis=axis)
    result = np.asarray(found, dtype=np.int64)
    return np.expand_dims(result, axis) if call.attrs.keepdims else result


def _position_spec(call: Call, largest: bool) -> ReduceSpec:
    x = call.types[0]
    axis = call.axis(call.attrs.axis)
    compute = compute_dtype(x.dtype)

    def step(
        index: Index, red: Index, load: Callable[..., s.ScalarExpr], accs: tuple[s.ScalarExpr, ...]
    ) -> tuple[s.ScalarExpr, ...]:
        kept = iter([e for i, e in enumerate(index) if i != axis] if call.attrs.keepdims else index)
        position = [red[0] if i == axis else next(kept) for i in range(x.rank)]
        value, best = widened_load(load)(0, position), accs[0]
        if call.attrs.last:
            better = value >= best if largest else value <= best
        else:
            better = value > best if largest else value < best
        if x.dtype.is_float:
            # NaN beats every number; among NaNs the first wins unless the last is asked for.
            is_nan = s.unary("isnan", value)
            fresh = is_nan if call.attrs.last else is_nan & s.unary("not", s.unary("isnan", best))
            better = better | fresh
        return s.select(better, value, best), s.select(better, red[0], accs[1])

    return ReduceSpec(
        domain=(x.shape[axis],),
        init=lambda index, load: (
            s.const(lowest(compute) if largest else highest(compute), compute),
            s.const(0, i64),
        ),
        step=step,
        finish=lambda index, accs: (accs[1],),
        associative=False,
    )


def _register_position(name: str, largest: bool, doc: str, source: str) -> None:
    register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", REALS),),
            attrs=(
                Attr("axis", "int", doc="axis to search"),
                Attr("keepdims", "bool", False, "keep the axis with size 1"),
                Attr("last", "bool", False, "the last of equal elements instead of the first"),
            ),
            infer=_position_type,
            reference=lambda call, x: _position(call, x, largest),
            kind=Reduce(lambda call: _position_spec(call, largest)),
            grad=NotDifferentiable("integer result"),
            cost=reduction_cost,
            source=source,
        )
    )


_register_position("argmax", True, "Position of the largest element; NaN counts as larger than all.", "ONNX ArgMax")
_register_position("argmin", False, "Position of the smallest element; NaN counts as smaller than all.", "ONNX ArgMin")
