"""Sizes as values, fused groups, nested graphs."""

from __future__ import annotations

import math
from typing import Any

from dhc.ir import Builder, Graph, Value
from tests.support.random_graphs import Maker
from tests.support.random_ops.reduction import precision, summed
from tests.support.random_ops.rule import least_grid, rule


@rule("dims")
def dims(m: Maker) -> None:
    values = m.shape(1, 3)
    m.add(m.b.dims(values=values), max(m.most(d) for d in values))


@rule("fused")
def fused(m: Maker) -> None:
    x = m.pick("fiu", rank=(0, 4))
    if x is None:
        return
    y = m.partner(x)
    body = Graph("group", parent=m.graph)
    p, q = body.add_input("p", x.value.type), body.add_input("q", y.value.type)
    b = Builder(body)
    total = b.add(p, q)
    body.output(b.neg(total) if x.dtype.kind != "u" else total, total)
    node = m.b.call("fused", x.value, y.value, regions=[body])
    for value in node:
        m.add(value, x.bound + y.bound, x.error + y.error, least_grid(x, y))


def _region(m: Maker, types: list[Any]) -> tuple[Graph, Builder, list[Value]]:
    body = Graph("body", parent=m.graph)
    return body, Builder(body), [body.add_input(f"v{i}", t) for i, t in enumerate(types)]


@rule("if")
def branch(m: Maker) -> None:
    x = m.pick("fi", rank=(0, 4))
    if x is None:
        return
    y = m.fresh(x.dtype.name, x.shape)
    regions = []
    for op in ("add", "sub"):
        body, b, (p, q) = _region(m, [x.value.type, y.value.type])
        body.output(getattr(b, op)(p, q), p)
        regions.append(body)
    condition = m.fresh("bool", ())
    first, second = m.b.if_(condition.value, x.value, y.value, regions=regions)
    m.add(first, x.bound + y.bound, x.error, least_grid(x, y))
    m.add(second, x.bound, x.error, x.grid)


@rule("loop", data_dependent=True)
def loop(m: Maker) -> None:
    x = m.pick("fi", rank=(0, 3))
    if x is None:
        return
    step = m.fresh(x.dtype.name, ())
    stop = m.flip()
    i64, boolean = m.b.constant(0).type, m.b.constant(True).type
    body, b, (iteration, condition, p, q) = _region(m, [i64, boolean, x.value.type, step.value.type])
    again = b.lt(iteration, b.constant(1)) if stop else condition
    body.output(again, b.add(p, q), p)
    trip = m.fresh("i64", (), 0, 3)
    symbols = [m.graph.fresh_symbol()]
    last, stacked = m.b.loop(trip.value, True, x.value, step.value, carried=1, symbols=symbols, regions=[body])
    grid = least_grid(x, step)
    item = m.add(last, x.bound + 3 * step.bound, x.error, grid)
    m.end(stacked, item.error if item is not None else math.inf)


@rule("scan")
def scan(m: Maker) -> None:
    x = m.pick("fi", rank=(1, 3))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    start = m.fresh(x.dtype.name, (*x.shape[:axis], *x.shape[axis + 1 :]))
    body, b, (p, q) = _region(m, [start.value.type, start.value.type])
    total = b.add(p, q)
    body.output(total, p)
    attrs = {"in_axes": [axis], "out_axes": [axis], "in_reverse": [m.integer(0, 1)], "out_reverse": [m.integer(0, 1)]}
    last, stacked = m.b.scan(start.value, x.value, carried=1, scanned=1, regions=[body], **attrs)
    n = m.most(x.shape[axis])
    rounding = n * n * (x.bound + start.bound) * 2.0 ** (1 - precision(x))
    found = summed(m, x, n * x.bound + start.bound, n * x.error, least_grid(x, start), rounding)
    m.add(last, *found)
    m.add(stacked, *found)
