"""Running sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import NUMERIC, i64
from dhc.ir.graph import Node, Value
from dhc.ir.inference import same_type
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, Gradient, OpDef, Operand
from dhc.ir.precision import rounded
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

_ATTRS = (
    Attr("axis", "int", doc="axis to run along"),
    Attr("exclusive", "bool", False, "leave out the element at the position itself; the first result is neutral"),
    Attr("reverse", "bool", False, "run from the end"),
)


def _running_type(call: Call) -> list[TensorType]:
    call.axis(call.attrs.axis)
    return same_type(call)


def _running(function: Any, neutral: int) -> Callable[..., Any]:
    def reference(call: Call, x: Any) -> Any:
        axis = call.axis(call.attrs.axis)

        def compute(wide: Any) -> Any:
            source = np.flip(wide, axis) if call.attrs.reverse else wide
            total = function(source, axis=axis, dtype=source.dtype)
            if call.attrs.exclusive and total.shape[axis]:
                start = np.full_like(np.take(total, [0], axis), neutral)
                total = np.concatenate([start, np.delete(total, -1, axis)], axis)
            return np.flip(total, axis).copy() if call.attrs.reverse else total

        return rounded(compute)(x)

    return reference


def _run(
    x: Any, y: Any, length: int, inner: int, exclusive: int, reverse: int, product: int, begin: int, end: int
) -> int:
    """Fills y for the lines begin..end; line i starts at element i of the axis' hyperplane. Arrays are 1-D."""
    for line in range(begin, end):
        base = (line // inner) * length * inner + line % inner
        for step in range(length):
            position = length - 1 - step if reverse else step
            before = position + 1 if reverse else position - 1
            here = base + position * inner
            previous = base + before * inner
            if exclusive:
                if step == 0:
                    y[here] = product
                elif product:
                    y[here] = y[previous] * x[previous]
                else:
                    y[here] = y[previous] + x[previous]
            elif step == 0:
                y[here] = x[here]
            elif product:
                y[here] = y[previous] * x[here]
            else:
                y[here] = y[previous] + x[here]
    return 0


def _kind(product: int) -> Opaque:
    def sizes(call: Call) -> tuple[Dim, Dim, Dim]:
        (x,) = call.types
        axis = call.axis(call.attrs.axis)
        return symbols.product(x.shape[:axis]), x.shape[axis], symbols.product(x.shape[axis + 1 :])

    def args(call: Call) -> Sequence[Any]:
        _, length, inner = sizes(call)
        return length, inner, int(call.attrs.exclusive), int(call.attrs.reverse), product

    def lines(call: Call) -> Dim:
        outer, _, inner = sizes(call)
        return outer * inner

    return Opaque(_run, args=args, role="scan", parallel=lines, flat=True)


def _grad_cumsum(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    at = Call.of(node).attrs
    return (b.cumsum(g, axis=at.axis, exclusive=at.exclusive, reverse=not at.reverse),)


def _grad_cumprod(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    """Products without one factor, for every factor: n² memory along the axis, but right where elements are zero."""
    (x,) = node.operands
    call = Call.of(node)
    axis, at = call.axis(call.attrs.axis), call.attrs
    n, rank = x.shape[axis], x.type.rank
    last = [*(a for a in range(rank) if a != axis), axis]
    moved, slope = b.transpose(x, perm=last), b.transpose(g, perm=last)
    kept = moved.shape[:-1]
    # Axis -2 numbers the factor that is left out, axis -1 runs.
    square = (n, n)
    left_out, running = b.iota(shape=square, axis=0, dtype=i64), b.iota(shape=square, axis=1, dtype=i64)
    rows = b.broadcast_to(b.reshape(moved, shape=(*kept, 1, n)), shape=(*kept, n, n))
    rows = b.where(b.eq(left_out, running), b.like(1, x), rows)
    products = b.cumprod(rows, axis=-1, exclusive=at.exclusive, reverse=at.reverse)
    compare = ("lt" if at.reverse else "gt") if at.exclusive else ("le" if at.reverse else "ge")
    depends = b.call(compare, running, left_out)
    terms = b.where(depends, b.mul(products, b.reshape(slope, shape=(*kept, 1, n))), b.like(0, x))
    total = b.reduce_sum(terms, axes=(-1,))
    return (b.transpose(total, perm=[int(p) for p in np.argsort(last)]),)


def _register(name: str, doc: str, function: Any, product: int, grad: Gradient, source: str) -> None:
    register(
        OpDef(
            name=name,
            doc=doc,
            operands=(Operand("x", NUMERIC),),
            attrs=_ATTRS,
            infer=_running_type,
            reference=_running(function, product),
            kind=_kind(product),
            grad=grad,
            source=source,
        )
    )


_register("cumsum", "Running sum along an axis.", np.cumsum, 0, _grad_cumsum, "ONNX CumSum")
_register("cumprod", "Running product along an axis.", np.cumprod, 1, _grad_cumprod, "ONNX CumProd")
