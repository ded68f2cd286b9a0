"""Follows shape arithmetic symbolically: Shape, Gather, Concat and the like on small integer tensors.

What it folds never becomes a node. Everything else goes to the handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import KNOWN_LIMIT, Known, NodeContext
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir import dtypes, symbols
from dhc.ir.dtypes import DType
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import TensorType

Folder = Callable[[NodeContext, list[np.ndarray]], Any]


def fold_shapes(n: NodeContext) -> Known | None:
    """The result of a shape computation, or None when the node is not one."""
    if n.proto.domain not in ("", "ai.onnx") or len([o for o in n.proto.output if o]) != 1:
        return None
    if n.proto.op_type in ("Shape", "Size"):
        return _shape(n)
    folder = _FOLDERS.get(n.proto.op_type)
    if folder is None or not len(n):
        return None
    found = [n.scope.find(name) for name in n.proto.input if name]
    if not any(isinstance(f, Known) or isinstance(f, np.ndarray) and f.dtype.kind in "iu" for f in found):
        return None
    floats = any(isinstance(f, Known) and f.dtype.is_float for f in found)
    arrays: list[np.ndarray] = []
    for index in range(len(n)):
        array = _operand(n, index, floats)
        if array is None:
            return None
        arrays.append(array)
    if any(isinstance(x, Ratio) for a in arrays for x in a.flat) and n.proto.op_type not in _ON_RATIOS:
        return None
    try:
        result = folder(n, arrays)
    except _NotFoldableError:
        return None
    if result is None:
        return None
    array = np.empty(np.shape(result), object)
    array[...] = result
    dtype = _dtype(n)
    return Known(array, dtype) if array.size <= KNOWN_LIMIT and _fits(array, dtype) else None


def _fits(array: np.ndarray, dtype: DType) -> bool:
    """False when numbers would have to wrap around, which is left to the ops."""
    if not dtype.is_integer:
        return True
    return all(dtype.min <= x <= dtype.max for x in array.flat if isinstance(x, (int, np.integer)))


_ON_RATIOS = frozenset({"Cast", "Ceil", "Concat", "Floor", "Gather", "Identity", "Mul", "Squeeze", "Unsqueeze"})
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def _operand(n: NodeContext, index: int, floats: bool) -> np.ndarray | None:
    """An operand as an object array; None when it is not followed. Float constants count beside float sizes only."""
    if not n.has(index):
        return np.empty(0, object)
    array = n.known(index)
    if array is not None or not floats:
        return array
    constant = n.const(index)
    if constant is None or constant.dtype.kind != "f" or constant.size > KNOWN_LIMIT:
        return None
    if not np.isfinite(constant).all():
        return None
    return _each(lambda x: int(x) if float(x).is_integer() else float(x), constant)


def _dtype(n: NodeContext) -> DType:
    if n.proto.op_type == "Cast":
        return from_onnx_dtype(n.attr("to"), str(n.location))
    if n.proto.op_type in _COMPARISONS:
        return dtypes.boolean
    first = n.raw(1 if n.proto.op_type == "Where" else 0)
    if isinstance(first, Known):
        return first.dtype
    return dtypes.dtype(first.dtype) if not isinstance(first, Value) else first.dtype


def _shape(n: NodeContext) -> Known | None:
    found = n.raw(0)
    if isinstance(found, Value):
        if not isinstance(found.type, TensorType):
            return None
        shape = found.type.shape
    else:
        shape = found.array.shape if isinstance(found, Known) else found.shape
    if n.proto.op_type == "Size":
        total = np.empty((), object)
        total[()] = symbols.product(shape)
        return Known(total)
    rank = len(shape)
    start, end = n.attr("start", 0), n.attr("end", rank)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = min(max(end + rank if end < 0 else end, 0), rank)
    array = np.empty(max(end - start, 0), object)
    array[:] = list(shape[start:end])
    return Known(array)


def _gather(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if any(isinstance(i, SymExpr) for i in xs[1].flat):
        return None
    return np.take(xs[0], xs[1].astype(np.int64), axis=n.attr("axis", 0))


def _slice(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if n.opset < 10 or xs[0].ndim != 1:
        return None
    bounds = [a.reshape(-1) for a in xs[1:] if a.size]
    if any(isinstance(i, SymExpr) for a in bounds for i in a):
        return None
    step = int(xs[4].reshape(-1)[0]) if len(xs) > 4 and xs[4].size else 1
    start, end = int(xs[1].reshape(-1)[0]), int(xs[2].reshape(-1)[0])
    size = len(xs[0])
    if step < 0 and end < -size:
        return xs[0][start:None:step]
    return xs[0][start:end:step]


def _axes(n: NodeContext, xs: list[np.ndarray]) -> list[int] | None:
    axes = n.attr("axes")
    if axes is None and len(xs) > 1:
        axes = [int(a) for a in xs[1].reshape(-1)]
    return axes


def _unsqueeze(n: NodeContext, xs: list[np.ndarray]) -> Any:
    axes = _axes(n, xs)
    return None if axes is None else np.expand_dims(xs[0], tuple(axes))


def _squeeze(n: NodeContext, xs: list[np.ndarray]) -> Any:
    axes = _axes(n, xs)
    return np.squeeze(xs[0], None if axes is None else tuple(axes))


def _concat(n: NodeContext, xs: list[np.ndarray]) -> Any:
    return np.concatenate(xs, axis=n.attr("axis", 0))


def _reshape(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if any(isinstance(i, SymExpr) for i in xs[1].flat):
        return None
    shape = [int(d) for d in xs[1].reshape(-1)]
    shape = [xs[0].shape[i] if d == 0 and not n.attr("allowzero", 0) else d for i, d in enumerate(shape)]
    return xs[0].reshape(shape)


@dataclass(frozen=True)
class Ratio:
    """A size times a fraction: what exporters compute when they scale a size in floating point and round it."""

    dim: Dim
    factor: Fraction

    def floor(self) -> Dim:
        """Rounded down."""
        return symbols.floordiv(self.dim * self.factor.numerator, self.factor.denominator)

    def ceil(self) -> Dim:
        """Rounded up."""
        return symbols.ceildiv(self.dim * self.factor.numerator, self.factor.denominator)


def _fraction(number: float) -> Fraction:
    """The fraction that a float stands for; 1/3 in f32 is meant as a third."""
    simple = Fraction(number).limit_denominator(1024)
    return simple if float(simple) == number or abs(float(simple) - number) < 1e-6 * abs(number) else Fraction(number)


def _cast(n: NodeContext, xs: list[np.ndarray]) -> Any:
    dtype = from_onnx_dtype(n.attr("to"), str(n.location))
    if any(isinstance(x, Ratio) for x in xs[0].flat):
        return _each(lambda x: x.floor() if isinstance(x, Ratio) else x, xs[0]) if dtype.bits >= 32 else None
    if dtype.is_integer and dtype.bits >= 32 or dtype.kind == "b":
        return xs[0] if dtype.kind != "b" else _decided(lambda x: symbols_differ(x, 0), xs[:1])
    # Floats hold sizes exactly; only those that are symbolic are followed, numbers become ordinary tensors.
    return xs[0] if dtype.name in ("f32", "f64") and any(isinstance(x, SymExpr) for x in xs[0].flat) else None


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The function of every element, with broadcasting."""
    views = np.broadcast_arrays(*arrays)
    result = np.empty(views[0].shape, object)
    for index in np.ndindex(result.shape):
        result[index] = function(*(v[index] for v in views))
    return result


def _mul(a: Any, b: Any) -> Any:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, (float, Fraction, Ratio)):
            if isinstance(y, Ratio) or isinstance(x, Ratio) and not isinstance(y, (int, float)):
                raise _NotFoldableError
            if isinstance(x, Ratio):
                return _mul(x.dim, float(x.factor) * y) if isinstance(y, float) else Ratio(x.dim, x.factor * y)
            factor = _fraction(float(x))
            return y * factor.numerator if factor.denominator == 1 else Ratio(y, factor)
    return a * b


class _NotFoldableError(Exception):
    """The computation leaves what is followed symbolically."""


def _rounded(method: str) -> Folder:
    def fold(n: NodeContext, xs: list[np.ndarray]) -> Any:
        return _each(lambda x: getattr(x, method)() if isinstance(x, Ratio) else x, xs[0])

    return fold


def symbols_differ(a: Any, b: Any) -> bool | None:
    """Whether two sizes differ; None when that depends on the symbols."""
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return None
    difference = a - b
    if isinstance(difference, int):
        return difference != 0
    if symbols.is_nonnegative(difference - 1) or symbols.is_nonnegative(-difference - 1):
        return True
    return None


def _greater(a: Any, b: Any) -> bool | None:
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        return None
    difference = a - b
    if isinstance(difference, int):
        return difference > 0
    if symbols.is_nonnegative(difference - 1):
        return True
    return False if symbols.is_nonnegative(-difference) else None


def _negated(found: bool | None) -> bool | None:
    return None if found is None else not found


def _decided(function: Callable[..., bool | None], xs: list[np.ndarray]) -> np.ndarray | None:
    """Comparisons that hold for all sizes; None when one is open."""
    result = _each(function, *xs)
    return None if any(x is None for x in result.flat) else result


def _comparison(function: Callable[..., bool | None]) -> Folder:
    return lambda n, xs: _decided(function, xs)


def _where(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if any(not isinstance(c, (bool, int, np.bool_)) for c in xs[0].flat):
        return None
    return _each(lambda c, a, b: a if c else b, *xs)


def _flags(function: Callable[..., bool]) -> Folder:
    def fold(n: NodeContext, xs: list[np.ndarray]) -> Any:
        return _each(function, *xs) if all(isinstance(x, (bool, np.bool_)) for a in xs for x in a.flat) else None

    return fold


def _elementwise(function: Callable[[Any, Any], Any]) -> Folder:
    def fold(n: NodeContext, xs: list[np.ndarray]) -> Any:
        if function is not _mul and any(isinstance(x, float) for a in xs for x in a.flat):
            return None
        result = xs[0]
        for x in xs[1:]:
            result = _each(function, result, x)
        return result

    return fold


def _divide(a: Any, b: Any) -> Any:
    """Truncating division; sizes are not negative, so a symbolic quotient is a floor."""
    if isinstance(a, SymExpr) or isinstance(b, SymExpr):
        return symbols.floordiv(a, b)
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _div(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if _dtype(n).is_float:
        if any(not isinstance(x, (int, float)) or x == 0 for x in xs[1].flat):
            return None
        return _each(lambda a, b: _mul(a, 1.0 / b), *xs)
    if any(x == 0 for x in xs[1].flat if not isinstance(x, SymExpr)):
        return None
    return np.frompyfunc(_divide, 2, 1)(xs[0], xs[1])


def _reduce_prod(n: NodeContext, xs: list[np.ndarray]) -> Any:
    if xs[0].ndim != 1:
        return None
    total = np.empty((), object)
    total[()] = symbols.product(xs[0])
    return total.reshape(1) if n.attr("keepdims", 1) else total


_FOLDERS: dict[str, Folder] = {
    "Add": _elementwise(lambda a, b: a + b),
    "And": _flags(lambda a, b: bool(a and b)),
    "Cast": _cast,
    "Ceil": _rounded("ceil"),
    "Concat": _concat,
    "Div": _div,
    "Equal": _comparison(lambda a, b: _negated(symbols_differ(a, b))),
    "Floor": _rounded("floor"),
    "Gather": _gather,
    "Greater": _comparison(_greater),
    "GreaterOrEqual": _comparison(lambda a, b: _negated(_greater(b, a))),
    "Identity": lambda n, xs: xs[0],
    "Less": _comparison(lambda a, b: _greater(b, a)),
    "LessOrEqual": _comparison(lambda a, b: _negated(_greater(a, b))),
    "Max": _elementwise(symbols.maximum),
    "Min": _elementwise(symbols.minimum),
    "Mul": _elementwise(_mul),
    "Not": _flags(lambda a: not a),
    "Or": _flags(lambda a, b: bool(a or b)),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
