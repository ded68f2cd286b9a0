"""Optionals: a value or nothing. The interpreter holds an absent one as None, a present one as its value."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.ir.dtypes import ANY, boolean
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.sequence import SYMBOLS, taken_type
from dhc.ir.registry import register
from dhc.ir.types import OptionalType, TensorType, Type, loosened

_HOST = Structural("host")
_NO_GRADIENT = NotDifferentiable("optionals are held by the interpreter only")
_OPTIONAL = Operand("x", ANY, sequence=True)


def _optional(call: Call) -> OptionalType:
    (type_,) = call.types
    if not isinstance(type_, OptionalType):
        call.fail_type(f"the operand is an optional, got {type_}")
    return type_


register(
    OpDef(
        name="optional",
        doc="An optional that holds a value.",
        operands=(_OPTIONAL,),
        infer=lambda call: [OptionalType(loosened(call.types[0]))],
        reference=lambda call, x: (x,),
        kind=_HOST,
        grad=_NO_GRADIENT,
        examples=lambda: [([np.array([1, 2], np.float32)], {})],
        source="ONNX Optional",
    )
)


def _empty_type(call: Call) -> list[Type]:
    return [OptionalType(loosened(call.attrs.type))]


register(
    OpDef(
        name="optional_empty",
        doc="An optional that holds nothing.",
        operands=(),
        attrs=(Attr("type", "type", doc="type of what it might hold"),),
        infer=_empty_type,
        reference=lambda call: (None,),
        kind=_HOST,
        grad=_NO_GRADIENT,
        examples=lambda: [([], {"type": TensorType(boolean, (2,))})],
        source="ONNX Optional",
    )
)


def _has_type(call: Call) -> list[Type]:
    _optional(call)
    return [TensorType(boolean, ())]


register(
    OpDef(
        name="optional_has_element",
        doc="True when an optional holds a value.",
        operands=(_OPTIONAL,),
        infer=_has_type,
        reference=lambda call, x: np.array(x is not None),
        kind=_HOST,
        grad=_NO_GRADIENT,
        source="ONNX OptionalHasElement",
    )
)


def _element(call: Call, x: Any) -> tuple[Any]:
    if x is None:
        raise ValueError("the optional holds nothing")
    return (x,)


register(
    OpDef(
        name="optional_get_element",
        doc="The value that an optional holds; an error when it holds none.",
        operands=(_OPTIONAL,),
        attrs=(SYMBOLS,),
        infer=lambda call: [taken_type(call, _optional(call).element)],
        reference=_element,
        kind=_HOST,
        grad=_NO_GRADIENT,
        source="ONNX OptionalGetElement",
    )
)
