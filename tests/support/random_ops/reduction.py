"""Reductions, positions of extremes, running sums."""

from __future__ import annotations

import math
from typing import Any

from dhc.ir.symbols import Dim
from tests.support.random_graphs import Item, Maker
from tests.support.random_ops.rule import rule


def _axes(m: Maker, x: Item) -> tuple[dict[str, Any], list[Dim]]:
    axes = m.subset(range(x.rank))
    named = [a - x.rank if m.integer(0, 4) == 0 else a for a in axes]
    reduced = [x.shape[a] for a in axes] if axes else list(x.shape)
    return {"axes": named, "keepdims": m.flip()}, reduced


@rule("reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min", "logsumexp")
def reduction(m: Maker, op: str) -> None:
    picky = op in ("reduce_max", "reduce_min")
    kinds = "f" if op in ("reduce_mean", "logsumexp") else "fiu"
    x = m.pick(kinds, special=picky)
    if x is None:
        return
    attrs, reduced = _axes(m, x)
    if op in ("reduce_mean", "reduce_max", "reduce_min", "logsumexp") and not m.not_empty(*reduced):
        return
    n = m.most(*reduced)
    if op == "reduce_prod":
        if n > 6:
            return
        bound = max(x.bound, 1.0) ** n
        grid = None if x.grid is None or x.grid > 1 else x.grid**n
        m.add(m.b.reduce_prod(x.value, **attrs), bound, n * x.error * max(x.bound, 1.0) ** max(n - 1, 0), grid)
    elif op == "reduce_sum":
        rounding = 0 if x.dtype.kind != "f" else n * n * x.bound * 2.0 ** (1 - precision(x))
        m.add(m.b.reduce_sum(x.value, **attrs), *summed(m, x, n * x.bound, n * x.error, x.grid, rounding))
    elif picky:
        m.add(getattr(m.b, op)(x.value, **attrs), x.bound, x.error, x.grid, x.special)
    else:
        bound = x.bound + (math.log(n + 1) if op == "logsumexp" else 0)
        m.add(getattr(m.b, op)(x.value, **attrs), bound, x.error + n * x.bound * 2.0 ** (1 - precision(x)))


def precision(x: Item) -> int:
    from tests.support.random_graphs import PRECISION

    return PRECISION.get(x.dtype.name, 53)


def summed(
    m: Maker, x: Item, bound: float, error: float, grid: float | None, rounding: float
) -> tuple[float, float, float | None]:
    """Bound, error and grid of a sum: exact on the grid, else with rounding of every partial sum."""
    if error == 0 and grid is not None and (x.dtype.kind != "f" or bound / grid <= 2.0 ** precision(x)):
        return bound, 0.0, grid
    return bound, error + rounding, None


@rule("reduce_any", "reduce_all")
def reduce_bool(m: Maker, op: str) -> None:
    x = m.pick("b")
    if x is not None:
        m.add(getattr(m.b, op)(x.value, **_axes(m, x)[0]), 1)


@rule("argmax", "argmin")
def position(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=True, rank=(1, 4))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    if m.not_empty(x.shape[axis]):
        value = getattr(m.b, op)(x.value, axis=axis, keepdims=m.flip(), last=m.flip())
        m.add(value, m.most(x.shape[axis]))


@rule("cumsum", "cumprod")
def cumulative(m: Maker, op: str) -> None:
    x = m.pick("fiu", rank=(1, 4), where=lambda i: i.dtype.name not in ("f16", "bf16"))
    if x is None:
        return
    axis = m.integer(-1, x.rank - 1)
    n = m.most(x.shape[axis])
    attrs = {"axis": axis, "exclusive": m.flip(), "reverse": m.flip()}
    if op == "cumprod":
        if n <= 6:
            error = n * x.error * max(x.bound, 1.0) ** max(n - 1, 0)
            grid = None if x.grid is None or x.grid > 1 else x.grid**n
            m.add(m.b.cumprod(x.value, **attrs), max(x.bound, 1.0) ** n, error, grid)
        return
    rounding = n * n * x.bound * 2.0 ** (1 - precision(x))
    m.add(m.b.cumsum(x.value, **attrs), *summed(m, x, n * x.bound, n * x.error, x.grid, rounding))
