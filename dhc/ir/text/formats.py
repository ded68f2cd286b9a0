"""Text of numbers, strings, names, types, locations and attribute values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from dhc.ir import symbols
from dhc.ir.location import Location
from dhc.ir.op import Attr
from dhc.ir.types import ImageType, LooseTensorType, OptionalType, QuantType, SequenceType, TensorType

PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def format_string(text: str) -> str:
    """A quoted string with JSON's escapes: pure ASCII on one line."""
    return json.dumps(str(text))


def format_float(number: float) -> str:
    """The shortest decimal that reads back as the same double; `inf`, `-inf`, `nan`."""
    number = float(number)
    if math.isnan(number):
        return "nan"
    return repr(number)


def format_name(name: str) -> str:
    """A value's or graph's name, quoted unless it is plain."""
    return name if PLAIN_NAME.fullmatch(name) else format_string(name)


def _floats(numbers: Any) -> str:
    return f"[{', '.join(format_float(n) for n in numbers)}]"


def _quant(quant: QuantType) -> str:
    zeros = ", ".join(str(int(z)) for z in quant.zero_point)
    axis = "" if quant.axis is None else f", axis = {quant.axis}"
    return f"quant(scale = {_floats(quant.scale)}, zero_point = [{zeros}]{axis}, bits = {quant.bits})"


def _image(type_: ImageType) -> str:
    parts = [f"color = {type_.color}", f"unit = {type_.unit}"]
    if type_.layout:
        parts.append(f"layout = {type_.layout}")
    for name in ("spacing", "origin", "orientation"):
        numbers = getattr(type_, name)
        if numbers:
            parts.append(f"{name} = {_floats(numbers)}")
    return f"image({', '.join(parts)})"


def format_type(type_: Any) -> str:
    """A type as the parser reads it."""
    if isinstance(type_, SequenceType):
        return f"seq<{format_type(type_.element)}>"
    if isinstance(type_, OptionalType):
        return f"opt<{format_type(type_.element)}>"
    if isinstance(type_, LooseTensorType):
        return str(type_)
    assert isinstance(type_, TensorType), type_
    text = f"{type_.dtype}[{', '.join(symbols.format_dim(d) for d in type_.shape)}]"
    if type_.quant is not None:
        text += " " + _quant(type_.quant)
    if isinstance(type_, ImageType):
        text += " " + _image(type_)
    return text


def format_location(location: Location) -> str:
    """``loc("m.onnx", line = 3, node = "c1", op = "Conv")``; empty for an unknown place."""
    parts = [format_string(location.source)] if location.source else []
    if location.line:
        parts.append(f"line = {location.line}")
    if location.node:
        parts.append(f"node = {format_string(location.node)}")
    if location.op:
        parts.append(f"op = {format_string(location.op)}")
    return f"loc({', '.join(parts)})" if parts else ""


def _symbol(name: str) -> str:
    return name if SYMBOL.fullmatch(name) else format_string(name)


_SCALARS: dict[str, Callable[[Any], str]] = {
    "int": lambda v: str(int(v)),
    "float": format_float,
    "bool": lambda v: "true" if v else "false",
    "str": format_string,
    "symbol": _symbol,
    "dim": symbols.format_dim,
    "dtype": str,
    "type": format_type,
}
ELEMENT_KINDS = {
    "ints": "int", "floats": "float", "strs": "str", "dims": "dim", "types": "type",
}  # fmt: skip


def format_attr(spec: Attr, value: Any) -> str:
    """Text of an attribute value (tensors are written by the printer, which may elide them)."""
    element = ELEMENT_KINDS.get(spec.kind)
    if element is None:
        return _SCALARS[spec.kind](value)
    return f"[{', '.join(_SCALARS[element](v) for v in value)}]"
