"""Pieces that gradient rules of several ops share.

Gradients of complex values follow the holomorphic convention: cotangents multiply without conjugation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dhc_runtime.errors import DhcError

from dhc.ir import symbols
from dhc.ir.graph import Node, Value
from dhc.ir.symbols import Dim

if TYPE_CHECKING:
    from dhc.ir.builder import Builder


def unbroadcast(b: Builder, gradient: Value, to: Value) -> Value:
    """Sums a gradient over the axes along which `to` was broadcast.

    Where only run time knows whether `to` has size 1 or the full size, the axis is split into (full / size, size) and
    summed over the first part: that is right in both cases.
    """
    if gradient.type.shape == to.type.shape:
        return gradient
    extra = gradient.type.rank - to.type.rank
    axes = list(range(extra))
    split: list[Dim] = list(gradient.type.shape[:extra])
    for small, large in zip(to.type.shape, gradient.type.shape[extra:]):
        if small == large:
            split.append(large)
        elif small == 1:
            axes.append(len(split))
            split.append(large)
        else:
            axes.append(len(split))
            split += [symbols.floordiv(large, symbols.maximum(small, 1)), small]
    if len(split) != gradient.type.rank:
        gradient = b.reshape(gradient, shape=split)
    summed = b.reduce_sum(gradient, axes=axes, keepdims=True)
    result: Value = b.reshape(summed, shape=to.type.shape)
    return result


def refuse_complex(node: Node) -> None:
    """Raises when a node takes complex numbers: its rule is for real ones only.

    Raises:
        DhcError: an operand is complex.
    """
    if any(v.type.dtype.kind == "c" for v in node.operands):
        raise DhcError(
            f"{node.op.name} has no gradient for complex numbers: it is not holomorphic",
            where=str(node.location),
            hint="split the value with real and imag first",
        )
