"""Pieces that gradient rules of several ops share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dhc.ir.graph import Value

if TYPE_CHECKING:
    from dhc.ir.builder import Builder


def unbroadcast(b: Builder, gradient: Value, to: Value) -> Value:
    """Sums a gradient over the axes along which `to` was broadcast."""
    if gradient.type.shape == to.type.shape:
        return gradient
    extra = gradient.type.rank - to.type.rank
    axes = list(range(extra))
    for i, (small, large) in enumerate(zip(to.type.shape, gradient.type.shape[extra:])):
        if small != large:
            axes.append(extra + i)
    summed = b.reduce_sum(gradient, axes=axes, keepdims=True)
    return b.reshape(summed, shape=to.type.shape)
