"""Strings: joined, cut, normalised, matched, looked up, and converted from and to numbers. Interpreter only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc.ir.dtypes import ANY, BOOL, FLOATS, INTS, boolean, i64, string
from dhc.ir.inference import broadcast_shapes
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.pattern import full_matches
from dhc.ir.registry import register
from dhc.ir.symbols import sym
from dhc.ir.types import TensorType

_TEXT = frozenset({string})
_NUMBERS = FLOATS | INTS | BOOL


def _op(
    name: str,
    doc: str,
    operands: tuple[Operand, ...],
    infer: Callable[[Call], Sequence[TensorType]],
    reference: Callable[..., Any],
    examples: Callable[[], Any],
    source: str,
    attrs: tuple[Attr, ...] = (),
) -> OpDef:
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=operands,
            attrs=attrs,
            infer=infer,
            reference=reference,
            kind=Structural("host"),
            grad=NotDifferentiable("text has no derivative"),
            examples=examples,
            source=source,
        )
    )


def text_array(values: Any, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Strings as an array of a shape."""
    array = np.empty(math.prod(shape), object)
    array[:] = list(values)
    return array.reshape(tuple(shape))


def _words(*words: str) -> np.ndarray[Any, Any]:
    return text_array(words, (len(words),))


def _concat(call: Call, a: Any, b: Any) -> Any:
    left, right = np.broadcast_arrays(a, b)
    return text_array((x + y for x, y in zip(left.flat, right.flat)), left.shape)


_op(
    "string_concat",
    "Joins strings, element by element.",
    (Operand("a", _TEXT), Operand("b", _TEXT)),
    lambda call: [TensorType(string, broadcast_shapes(call, *(t.shape for t in call.types)))],
    _concat,
    lambda: [([_words("ab", "c"), _words("d")], {})],
    "ONNX StringConcat",
)


def _split_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    return [TensorType(string, (*x.shape, sym(call.attrs.count))), TensorType(i64, x.shape)]


def _split(call: Call, x: Any) -> tuple[Any, Any]:
    delimiter, limit = call.attrs.delimiter or None, call.attrs.limit
    parts = [text.split(delimiter, limit) for text in x.flat]
    most = max(map(len, parts), default=0)
    filled = [word for p in parts for word in (*p, *[""] * (most - len(p)))]
    lengths = np.array([len(p) for p in parts], np.int64).reshape(x.shape)
    return text_array(filled, (*x.shape, most)), lengths


_op(
    "string_split",
    "Cuts strings at a delimiter; the parts, filled up with empty strings, and how many there are.",
    (Operand("x", _TEXT),),
    _split_type,
    _split,
    lambda: [([_words("a.b.c", "d")], {"delimiter": "."}), ([_words(" a  b ")], {})],
    "ONNX StringSplit",
    (
        Attr("delimiter", "str", "", "where to cut; empty: at runs of white space"),
        Attr("limit", "int", -1, "at most so many cuts; -1: no limit"),
        Attr("count", "symbol", doc="the largest number of parts"),
    ),
)


def _normalize_type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if x.rank not in (1, 2) or (x.rank == 2 and x.shape[0] != 1):
        call.fail("needs a vector, or a matrix of one row")
    return [TensorType(string, (*x.shape[:-1], sym(call.attrs.count)))]


def _normalize(call: Call, x: Any) -> Any:
    sensitive = call.attrs.case_sensitive

    def folded(text: str) -> str:
        return text if sensitive else text.lower()

    stop = {folded(word) for word in call.attrs.stopwords}
    changes: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper, "none": str}
    change = changes[call.attrs.case]
    kept = [change(text) for text in x.flat if folded(text) not in stop] or [""]
    return text_array(kept, (*x.shape[:-1], len(kept)))


_op(
    "string_normalize",
    "Leaves out stop words and changes case; one empty string when nothing is left.",
    (Operand("x", _TEXT),),
    _normalize_type,
    _normalize,
    lambda: [([_words("Monday", "Tuesday")], {"case": "upper", "stopwords": ("monday",)})],
    "ONNX StringNormalizer",
    (
        Attr("case", "str", "none", "what becomes of letters", ("lower", "upper", "none")),
        Attr("case_sensitive", "bool", False, "stop words must be equal in case too"),
        Attr("stopwords", "strs", (), "strings to leave out"),
        Attr("count", "symbol", doc="how many strings are left"),
    ),
)

_op(
    "regex_full_match",
    "True where a regular expression matches the whole string; patterns that backtrack too much are refused.",
    (Operand("x", _TEXT),),
    lambda call: [TensorType(boolean, call.types[0].shape)],
    lambda call, x: np.array(full_matches(call.attrs.pattern, list(x.flat)), np.bool_).reshape(x.shape),
    lambda: [([_words("ab1", "ab")], {"pattern": "[a-z]+[0-9]"})],
    "ONNX RegexFullMatch",
    (Attr("pattern", "str", doc="the regular expression"),),
)


# ---- look-up ---------------------------------------------------------------------------------------------------------


def _encode_type(call: Call) -> list[TensorType]:
    x, keys, values, default = call.types
    if keys.rank != 1 or values.rank != 1:
        call.fail("keys and values are vectors")
    if default.rank:
        call.fail("the default is one element")
    call.require(keys.shape[0], values.shape[0], "keys and values")
    return [TensorType(values.dtype, x.shape)]


def _same(key: Any) -> Any:
    """Any NaN is the same key as any other."""
    return "nan" if isinstance(key, (float, np.floating)) and math.isnan(key) else key


def _encode(call: Call, x: Any, keys: Any, values: Any, default: Any) -> Any:
    table = dict(zip(map(_same, keys.tolist()), values.tolist()))
    found = [table.get(_same(key), default.item()) for key in x.reshape(-1).tolist()]
    target = call.types[2].dtype
    return text_array(found, x.shape) if target == string else np.array(found, target.numpy).reshape(x.shape)


_op(
    "label_encode",
    "Looks every element up among keys and gives the value that belongs to it, or a default.",
    (
        Operand("x", ANY),
        Operand("keys", ANY, same="x"),
        Operand("values", ANY),
        Operand("default", ANY, same="values"),
    ),
    _encode_type,
    _encode,
    lambda: [([np.array([2, 9]), np.array([1, 2]), np.array([0.5, 1.5], np.float32), np.array(-1, np.float32)], {})],
    "ONNX LabelEncoder",
)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _number_text(number: Any) -> str:
    if isinstance(number, (bool, np.bool_)):
        return str(int(number))
    if isinstance(number, (int, np.integer)):
        return str(int(number))
    value = float(number)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return str(number)


_op(
    "to_string",
    "Numbers as text: the shortest decimal that reads back the same; NaN, INF and -INF.",
    (Operand("x", _NUMBERS),),
    lambda call: [TensorType(string, call.types[0].shape)],
    lambda call, x: text_array(map(_number_text, x.reshape(-1)), x.shape),
    lambda: [([np.array([1.5, np.nan], np.float32)], {}), ([np.array([[1], [-2]])], {})],
    "ONNX Cast",
)


def _parse_type(call: Call) -> list[TensorType]:
    if call.attrs.dtype not in _NUMBERS:
        call.fail_type(f"text has no value in {call.attrs.dtype}")
    return [TensorType(call.attrs.dtype, call.types[0].shape)]


def _parse(call: Call, x: Any) -> Any:
    from dhc.ir.ops.cast import convert

    target = call.attrs.dtype
    if target.is_integer:
        numbers = [_whole(text) for text in x.flat]
        outside = [n for n in numbers if not target.min <= n <= target.max]
        if outside:
            raise ValueError(f"{outside[0]} does not fit {target}")
        return np.array(numbers, target.numpy).reshape(x.shape)
    reals = np.array([float(text) for text in x.flat], np.float64).reshape(x.shape)
    return convert(reals, target)


def _whole(text: str) -> int:
    if len(text) > 100:
        raise ValueError(f"a number of {len(text)} characters")
    try:
        return int(text)
    except ValueError:
        return int(float(text))


_op(
    "from_string",
    "Text as numbers: decimals, with an exponent or not, NaN and INF; an error when it is none.",
    (Operand("x", _TEXT),),
    _parse_type,
    _parse,
    lambda: [([_words("1.5", "-INF", "2e3")], {"dtype": "f32"}), ([_words("7")], {"dtype": "i64"})],
    "ONNX Cast",
    (Attr("dtype", "dtype", doc="the element type"),),
)
