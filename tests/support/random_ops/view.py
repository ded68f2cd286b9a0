"""Views, joins, and values made from nothing: iota, one-hot, random numbers."""

from __future__ import annotations

import math
from typing import Any

from dhc.ir import Value, dtype
from dhc.ir.symbols import Dim, SymExpr
from tests.support.random_graphs import Item, Maker
from tests.support.random_ops.rule import least_grid, rule


def like(m: Maker, value: Value, x: Item) -> Item | None:
    """Enters a result with the elements of x."""
    return m.add(value, x.bound, x.error, x.grid, x.special)


def any_item(m: Maker, rank: tuple[int, int] = (0, 5), kinds: str = "fiubc", **more: Any) -> Item | None:
    return m.pick(kinds, special=True, rank=rank, **more)


@rule("reshape")
def reshape(m: Maker) -> None:
    x = any_item(m)
    if x is None:
        return
    shape = list(x.shape)
    form = m.integer(0, 3)
    if form == 0 and len(shape) >= 2:
        at = m.integer(0, len(shape) - 2)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif form == 1 and len(shape) < 5:
        shape.insert(m.integer(0, len(shape)), 1)
    elif form == 2 and 1 in shape:
        shape.remove(1)
    elif form == 3 and len(shape) < 5:
        splits = [i for i, d in enumerate(shape) if isinstance(d, int) and d in (4, 6)]
        if splits:
            at = m.choose(splits)
            shape[at : at + 1] = [shape[at] // 2, 2]
    like(m, m.b.reshape(x.value, shape=shape), x)


@rule("transpose")
def transpose(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is not None:
        perm = list(range(x.rank))
        for i in range(x.rank - 1, 0, -1):
            j = m.integer(0, i)
            perm[i], perm[j] = perm[j], perm[i]
        like(m, m.b.transpose(x.value, perm=perm), x)


@rule("broadcast_to")
def broadcast_to(m: Maker) -> None:
    x = any_item(m, (0, 3))
    if x is not None:
        shape = tuple(m.choose(m.palette) if d == 1 else d for d in x.shape)
        if m.flip():
            shape = (m.choose(m.palette), *shape)
        like(m, m.b.broadcast_to(x.value, shape=shape), x)


@rule("slice")
def slice_(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is None:
        return
    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    for d in x.shape:
        if isinstance(d, SymExpr):  # all of it, forwards or backwards
            backwards = m.flip() and m.not_empty(d)
            starts.append(d - 1 if backwards else 0)
            sizes.append(d)
            steps.append(-1 if backwards else 1)
            continue
        step = m.choose([1, 1, 2, -1, -2])
        size = m.integer(0, -(-d // abs(step)))
        reach = (size - 1) * abs(step)
        low = m.integer(0, d - 1 - reach) if size else 0
        starts.append(low if step > 0 else low + reach)
        sizes.append(size)
        steps.append(step)
    like(m, m.b.slice(x.value, starts=starts, sizes=sizes, steps=steps), x)


@rule("flip")
def flip(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is not None:
        like(m, m.b.flip(x.value, axes=m.subset(range(x.rank), 1)), x)


@rule("pad")
def pad(m: Maker) -> None:
    x = any_item(m, (1, 4))
    if x is None:
        return
    mode = m.choose(["constant", "constant", "reflect", "edge", "wrap"])
    low, high = [], []
    for d in x.shape:
        n = d if isinstance(d, int) else 0
        most = {"constant": 2, "reflect": max(n - 1, 0), "edge": 2 if n else 0, "wrap": n}[mode]
        crop = -1 if mode == "constant" and n >= 3 else 0
        low.append(m.integer(crop, min(most, 2)))
        high.append(m.integer(crop, min(most, 2)))
    fill = m.b.constant(False if x.dtype.kind == "b" else 1, x.dtype)
    grid = least_grid(x, Item(x.value, 1, grid=1.0))
    m.add(m.b.pad(x.value, fill, low=low, high=high, mode=mode), max(x.bound, 1), x.error, grid, x.special)


@rule("concat")
def concat(m: Maker) -> None:
    x = any_item(m, (1, 4))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    parts = [x]
    for _ in range(m.integer(1, 2)):
        other = any_item(
            m, (x.rank, x.rank), dtype=x.dtype.name,
            where=lambda o: all(a == b for i, (a, b) in enumerate(zip(o.shape, x.shape)) if i != axis),
        )  # fmt: skip
        parts.append(x if other is None else other)
    value = m.b.concat(*(p.value for p in parts), axis=axis - x.rank if m.flip() else axis)
    bound, error = max(p.bound for p in parts), max(p.error for p in parts)
    m.add(value, bound, error, least_grid(*parts), any(p.special for p in parts))


@rule("split")
def split(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: any(isinstance(d, int) for d in i.shape))
    if x is None:
        return
    axis = m.choose([i for i, d in enumerate(x.shape) if isinstance(d, int)])
    first = m.integer(0, x.shape[axis])
    sizes = [first, x.shape[axis] - first] if m.flip() else [first, 0, x.shape[axis] - first]
    for value in m.b.split(x.value, axis=axis, sizes=sizes):
        like(m, value, x)


@rule("tile")
def tile(m: Maker) -> None:
    x = any_item(m, (1, 3))
    if x is not None:
        repeats = [m.choose([1, 2, m.choose(m.palette)]) for _ in x.shape]
        if m.most(*x.shape, *repeats) < 3000:
            like(m, m.b.tile(x.value, repeats=repeats), x)


@rule("depth_to_space", "space_to_depth")
def blocks(m: Maker, op: str) -> None:
    kind = m.choose([d for d in m.dtypes if d != "bool"])
    n: Dim = m.choose(m.palette)
    if op == "depth_to_space":
        x = m.fresh(kind, (n, 4, m.integer(1, 3), m.integer(1, 2)))
        like(m, m.b.depth_to_space(x.value, block=2, mode=m.choose(["DCR", "CRD"])), x)
    else:
        x = m.fresh(kind, (n, m.integer(1, 2), 4, 2))
        like(m, m.b.space_to_depth(x.value, block=2), x)


@rule("iota", "eye")
def generated(m: Maker, op: str) -> None:
    kind = m.choose([d for d in m.dtypes if dtype(d).kind in "fiu"] or ["f32"])
    if op == "eye":
        shape = tuple(m.choose(m.palette) for _ in range(2))
        m.add(m.b.eye(shape=shape, dtype=kind, k=m.integer(-1, 1)), 1, 0.0, 1.0)
        return
    shape = m.shape(1, 3)
    axis = m.integer(0, len(shape) - 1)
    m.add(m.b.iota(shape=shape, axis=axis, dtype=kind), m.most(shape[axis]), 0.0, 1.0)


@rule("triangle")
def triangle(m: Maker) -> None:
    x = any_item(m, (2, 4))
    if x is not None:
        k = m.fresh("i64", (), -2, 2)
        like(m, m.b.triangle(x.value, k.value, upper=m.flip()), x)


@rule("one_hot")
def one_hot(m: Maker) -> None:
    kind = m.choose([d for d in m.dtypes if dtype(d).kind in "fiu"] or ["f32"])
    indices = m.fresh(m.choose(["i64", "i32"]), m.shape(0, 2), -3, 5)
    on, off = m.b.constant(2, kind), m.b.constant(1, kind)
    m.add(m.b.one_hot(indices.value, on, off, depth=m.integer(1, 4), axis=m.choose([-1, 0])), 2, 0.0, 1.0)


@rule("random_uniform", "random_normal", "random_bits")
def random_numbers(m: Maker, op: str) -> None:
    attrs: dict[str, Any] = {"shape": m.shape(0, 3), "seed": m.integer(0, 99), "stream": m.integer(0, 2)}
    if op == "random_bits":
        m.add(m.b.random_bits(**attrs), math.inf)
        return
    kind = m.some_dtype("f")
    if kind in ("f32", "f64"):
        bound = 1.0 if op == "random_uniform" else 9.0
        m.add(getattr(m.b, op)(dtype=kind, **attrs), bound, 1e-6 if op == "random_normal" else 0.0)
