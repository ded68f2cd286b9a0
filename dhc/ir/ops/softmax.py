"""Softmax and its logarithm, written as the stable composition that backends fuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS
from dhc.ir.graph import Value
from dhc.ir.inference import same_type
from dhc.ir.kinds import Composite
from dhc.ir.op import Attr, Call, OpDef, Operand
from dhc.ir.ops.matmul import converted
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.types import TensorType

AXIS = Attr("axis", "int", -1, "axis whose elements compete")


def _type(call: Call) -> list[TensorType]:
    call.axis(call.attrs.axis)
    return same_type(call)


def _shifted(call: Call, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``x - max`` in the computing dtype and the sum of its exponentials, along the axis."""
    axis = call.axis(call.attrs.axis)
    wide = x.astype(compute_dtype(call.types[0].dtype).numpy, copy=False)
    if wide.shape[axis] == 0:
        return wide, wide
    shifted = wide - wide.max(axis=axis, keepdims=True)
    return shifted, np.exp(shifted).sum(axis=axis, keepdims=True)


def _softmax_reference(call: Call, x: np.ndarray) -> Any:
    shifted, total = _shifted(call, x)
    return (np.exp(shifted) / total).astype(x.dtype)


def _log_softmax_reference(call: Call, x: np.ndarray) -> Any:
    shifted, total = _shifted(call, x)
    return (shifted - np.log(total)).astype(x.dtype)


def _parts(b: Builder, x: Value, axis: int) -> tuple[Value, Value, Value]:
    """``x - max``, its exponentials and their sum along `axis`."""
    shifted = b.sub(x, b.reduce_max(x, axes=[axis], keepdims=True))
    exponentials = b.exp(shifted)
    return shifted, exponentials, b.reduce_sum(exponentials, axes=[axis], keepdims=True)


def softmax_parts(b: Builder, x: Value, axis: int) -> Value:
    """Softmax of `x` along `axis` in its own dtype, as primitive ops."""
    _, exponentials, total = _parts(b, x, axis)
    result: Value = b.div(exponentials, total)
    return result


def _build_softmax(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    wide = converted(b, x, compute_dtype(x.dtype))
    return (converted(b, softmax_parts(b, wide, call.axis(call.attrs.axis)), x.dtype),)


def _build_log_softmax(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    (x,) = operands
    wide = converted(b, x, compute_dtype(x.dtype))
    shifted, _, total = _parts(b, wide, call.axis(call.attrs.axis))
    return (converted(b, b.sub(shifted, b.log(total)), x.dtype),)


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(4)

    def f(*shape: int) -> np.ndarray:
        return (4 * rng.standard_normal(shape)).astype(np.float32)

    return [
        ([f(3, 5)], {}),
        ([f(2, 4, 3)], {"axis": 1}),
        ([f(2, 3)], {"axis": -2}),
        ([f(4, 1)], {}),
        ([f(0, 3)], {}),
        ([(f(2, 6) * 100).astype(np.float32)], {"axis": 1}),
    ]


register(
    OpDef(
        name="softmax",
        doc="exp(x - max) / sum of exp(x - max) along one axis.",
        operands=(Operand("x", FLOATS),),
        attrs=(AXIS,),
        infer=_type,
        reference=_softmax_reference,
        kind=Composite(_build_softmax),
        examples=_examples,
        source="ONNX Softmax (opset 13 and later)",
    )
)

register(
    OpDef(
        name="log_softmax",
        doc="Logarithm of the softmax along one axis, stable: x - max - log(sum of exp(x - max)).",
        operands=(Operand("x", FLOATS),),
        attrs=(AXIS,),
        infer=_type,
        reference=_log_softmax_reference,
        kind=Composite(_build_log_softmax),
        examples=_examples,
        source="ONNX LogSoftmax (opset 13 and later)",
    )
)
