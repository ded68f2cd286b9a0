"""Shape rules that many ops share."""

from __future__ import annotations

from collections.abc import Sequence

from dhc.ir import symbols
from dhc.ir.op import Call
from dhc.ir.symbols import Dim, Shape, SymExpr
from dhc.ir.types import TensorType


def broadcast_dim(call: Call, a: Dim, b: Dim) -> Dim:
    """NumPy's rule for one axis; sizes that only run time knows must then be equal or 1.

    A symbolic size against a different one keeps both possibilities: the result is their maximum.
    """
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        call.fail(f"sizes {a} and {b} do not broadcast", hint="sizes must be equal or 1, aligned at the last axis")
    # Equal, or one of them 1: written as a product so that it is one equality for the run-time check.
    call.require((a - 1) * (b - 1) * (a - b), 0, f"sizes {symbols.format_dim(a)} and {symbols.format_dim(b)} broadcast")
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    return symbols.maximum(a, b)


def broadcast_shapes(call: Call, *shapes: Shape) -> Shape:
    """NumPy's broadcasting of shapes."""
    result: Shape = ()
    for shape in shapes:
        rank = max(len(result), len(shape))
        left = (1,) * (rank - len(result)) + tuple(result)
        right = (1,) * (rank - len(shape)) + tuple(shape)
        result = tuple(broadcast_dim(call, a, b) for a, b in zip(left, right))
    return result


def same_type(call: Call) -> list[TensorType]:
    """One result like the first operand, without quantization."""
    first = call.types[0]
    return [TensorType(first.dtype, first.shape)]


def broadcast_type(call: Call) -> list[TensorType]:
    """One result of the first operand's dtype and the broadcast shape."""
    return [TensorType(call.types[0].dtype, broadcast_shapes(call, *(t.shape for t in call.types)))]


def require_equal(call: Call, a: Dim, b: Dim, what: str) -> Dim:
    """Two sizes that must be equal; a known one wins over a symbolic one.

    Raises:
        ShapeError: both are known and differ.
    """
    call.require(a, b, what)
    return b if isinstance(a, SymExpr) else a


def require_at_most(call: Call, a: Dim, b: Dim, what: str) -> None:
    """Demands ``a <= b``: at once when both are known, else when they get their values.

    Args:
        call: the call that needs it.
        a: a size.
        b: the bound.
        what: what then holds, for the message.

    Raises:
        ShapeError: both are known and ``a > b``.
    """
    if isinstance(a, int) and isinstance(b, int) and a > b:
        call.fail(f"{what}: {a} is more than {b}")
    call.require(symbols.maximum(a, b), b, what)


def require_elements(call: Call, size: Dim, readers: Dim, what: str) -> None:
    """Demands that an axis is not empty when something reads from it: at once, or when the sizes get their values.

    Args:
        call: the call that needs it.
        size: elements of the axis.
        readers: number of results that read them; 0: nothing does.
        what: the axis, for the message.

    Raises:
        ShapeError: it is empty and something reads from it.
    """
    if size == 0 and isinstance(readers, int) and readers != 0:
        call.fail(f"{what} is empty: there is nothing to read")
    call.require(symbols.select(size, 0, readers), 0, f"{what} is not empty")


def require_rank(call: Call, index: int, rank: int) -> None:
    """Operand `index` must have this rank."""
    actual = call.types[index].rank
    if actual != rank:
        call.fail(f"operand {call.op.operands[index].name!r} has rank {actual}, needs {rank}")


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> Shape:
    """Shape after reducing `axes`."""
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)
