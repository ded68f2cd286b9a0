"""Gather, scatter, order, and results whose size depends on the data."""

from __future__ import annotations

import numpy as np

from dhc.ir.symbols import Dim
from tests.support.random_graphs import Item, Maker
from tests.support.random_ops.rule import least_grid, rule
from tests.support.random_ops.view import any_item, like


def _indices(m: Maker, shape: tuple[Dim, ...], size: int, *, unique: bool = False) -> Item:
    """Positions within an axis; negative ones count from the end."""
    kind = m.choose(["i64", "i32"])
    if not unique:
        return m.fresh(kind, shape, -size, size - 1)
    count = int(np.prod([int(d) for d in shape])) if shape else 1  # type: ignore[arg-type]
    order = np.random.default_rng(m.integer(0, 99)).permutation(size)[:count]
    return Item(m.b.constant(order.reshape([int(d) for d in shape]), kind), size)  # type: ignore[arg-type]


def _fixed_axes(x: Item) -> list[int]:
    return [i for i, d in enumerate(x.shape) if isinstance(d, int) and d > 0]


@rule("gather")
def gather(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: bool(_fixed_axes(i)))
    if x is not None:
        axis = m.choose(_fixed_axes(x))
        indices = _indices(m, m.shape(0, 2), int(x.shape[axis]))
        if m.most(*x.shape, *indices.shape) < 3000:
            like(m, m.b.gather(x.value, indices.value, axis=axis), x)


@rule("gather_elements")
def gather_elements(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: bool(_fixed_axes(i)))
    if x is not None:
        axis = m.choose(_fixed_axes(x))
        shape = (*x.shape[:axis], m.integer(1, 3), *x.shape[axis + 1 :])
        like(m, m.b.gather_elements(x.value, _indices(m, shape, int(x.shape[axis])).value, axis=axis), x)


@rule("gather_nd")
def gather_nd(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: 0 in _fixed_axes(i))
    if x is not None:
        shape = (*m.shape(0, 2), 1)
        like(m, m.b.gather_nd(x.value, _indices(m, shape, int(x.shape[0])).value), x)


@rule("scatter_elements", "scatter_nd")
def scatter(m: Maker, op: str) -> None:
    x = m.pick("fiu", rank=(1, 3), where=lambda i: m.static(i) and len(_fixed_axes(i)) == i.rank)
    if x is None:
        return
    axis = m.integer(0, x.rank - 1) if op == "scatter_elements" else 0
    count = m.integer(1, int(x.shape[axis]))
    reduction = m.choose(["none", "none", "add", "max", "min"])
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    updates = m.fresh(x.dtype.name, shape)
    if op == "scatter_elements":
        # each line along the axis gets the same distinct positions, so the order of writing does not matter
        row = _indices(m, (count,), int(x.shape[axis]), unique=True)
        place = [1] * x.rank
        place[axis] = count
        indices = m.b.broadcast_to(m.b.reshape(row.value, shape=place), shape=shape)
        value = m.b.scatter_elements(x.value, indices, updates.value, axis=axis, reduction=reduction)
    else:
        row = _indices(m, (count, 1), int(x.shape[0]), unique=True)
        value = m.b.scatter_nd(x.value, row.value, updates.value, reduction=reduction)
    bound = x.bound + updates.bound
    m.add(value, bound, x.error, least_grid(x, updates))


@rule("dynamic_slice")
def dynamic_slice(m: Maker) -> None:
    x = any_item(m, (1, 3))
    if x is not None:
        sizes = [m.integer(0, d) if isinstance(d, int) else d for d in x.shape]
        starts = m.fresh("i64", (x.rank,), -1, 5)
        like(m, m.b.dynamic_slice(x.value, starts.value, sizes=sizes), x)


@rule("dynamic_update_slice")
def dynamic_update_slice(m: Maker) -> None:
    x = m.pick("fiu", rank=(1, 3))
    if x is not None:
        sizes = [m.integer(0, d) if isinstance(d, int) else d for d in x.shape]
        update = m.fresh(x.dtype.name, sizes)
        starts = m.fresh("i64", (x.rank,), -1, 5)
        value = m.b.dynamic_update_slice(x.value, update.value, starts.value)
        m.add(value, max(x.bound, update.bound), x.error, least_grid(x, update))


@rule("reverse_sequence")
def reverse_sequence(m: Maker) -> None:
    x = any_item(m, (2, 4), where=lambda i: isinstance(i.shape[1], int) and i.shape[1] > 0)
    if x is not None:
        lengths = m.fresh("i64", (x.shape[0],), 1, int(x.shape[1]))
        like(m, m.b.reverse_sequence(x.value, lengths.value, batch_axis=0, time_axis=1), x)


@rule("sort", "topk")
def order(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=True, rank=(1, 3))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    d = x.shape[axis]
    if op == "sort":
        values, indices = m.b.sort(x.value, axis=axis, descending=m.flip())
    else:
        k = m.integer(0, d) if isinstance(d, int) else d
        values, indices = m.b.topk(x.value, k=k, axis=axis, largest=m.flip())
    like(m, values, x)
    m.add(indices, m.most(d))


@rule("nonzero", data_dependent=True)
def nonzero(m: Maker) -> None:
    x = m.pick("fiub", exact=True)
    if x is not None:
        m.end(m.b.nonzero(x.value))


@rule("unique", data_dependent=True)
def unique(m: Maker) -> None:
    x = m.pick("iu", exact=True, rank=(1, 1))
    if x is not None:
        for value in m.b.unique(x.value, sorted=m.flip()):
            m.end(value)


@rule("compress", data_dependent=True)
def compress(m: Maker) -> None:
    x = any_item(m, (1, 3), kinds="fiu")
    if x is not None and not x.special:
        axis = m.integer(0, x.rank - 1)
        m.end(m.b.compress(x.value, m.fresh("bool", (x.shape[axis],)).value, axis=axis), x.error)
