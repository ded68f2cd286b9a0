"""Follows shape arithmetic symbolically: Shape, Gather, Concat and the like on small integer tensors.

What it folds never becomes a node. Everything else goes to the handlers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import KNOWN_LIMIT, Known, NodeContext
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir import dtypes, symbols
from dhc.ir.dtypes import DType
from dhc.ir.graph import Value
from dhc.ir.symbols import SymExpr
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
    arrays: list[np.ndarray] = []
    for index in range(len(n)):
        if not n.has(index):
            arrays.append(np.empty(0, object))
            continue
        array = n.known(index)
        if array is None:
            return None
        arrays.append(array)
    result = folder(n, arrays)
    if result is None:
        return None
    array = np.empty(np.shape(result), object)
    array[...] = result
    return Known(array, _dtype(n)) if array.size <= KNOWN_LIMIT else None


def _dtype(n: NodeContext) -> DType:
    if n.proto.op_type == "Cast":
        return from_onnx_dtype(n.attr("to"), str(n.location))
    first = n.raw(0)
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


def _cast(n: NodeContext, xs: list[np.ndarray]) -> Any:
    dtype = from_onnx_dtype(n.attr("to"), str(n.location))
    return xs[0] if dtype.is_integer and dtype.bits >= 32 else None


def _elementwise(function: Callable[[Any, Any], Any]) -> Folder:
    def fold(n: NodeContext, xs: list[np.ndarray]) -> Any:
        result = xs[0]
        for x in xs[1:]:
            result = np.frompyfunc(function, 2, 1)(result, x)
        return result

    return fold


def _divide(a: Any, b: Any) -> Any:
    """Truncating division; sizes are not negative, so a symbolic quotient is a floor."""
    if isinstance(a, SymExpr) or isinstance(b, SymExpr):
        return symbols.floordiv(a, b)
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _div(n: NodeContext, xs: list[np.ndarray]) -> Any:
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
    "Cast": _cast,
    "Concat": _concat,
    "Div": _div,
    "Gather": _gather,
    "Identity": lambda n, xs: xs[0],
    "Max": _elementwise(symbols.maximum),
    "Min": _elementwise(symbols.minimum),
    "Mul": _elementwise(lambda a, b: a * b),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
}
