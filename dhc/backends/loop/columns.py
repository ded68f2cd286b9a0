"""Reductions whose results, not whose terms, lie side by side in memory: sums over leading axes, products of matrices.

One result after the other would walk through memory in large steps. Here a block of results is accumulated together in
the result buffer itself: the inner loop runs along the results and vectorises, each result still gets its terms in the
same order, and blocks are shared among threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from dhc.backends.loop.expand import Fold
from dhc.backends.loop.functions import HALF
from dhc.backends.loop.index import variables
from dhc.backends.loop.nest import Nest
from dhc.backends.loop.schedule import Scheduler
from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.dtypes import DType, i64
from dhc.ir.symbols import Dim

BLOCK = 512
"""Results of one block: with 8-byte elements and one operand, half of a 16 KiB cache share."""


def column_fold(nest: Nest, dtypes: Sequence[DType]) -> Fold | None:
    """The reduction of a nest, when it should run along blocks of results."""
    if len(nest.stores) != 1 or len(nest.folds) != 1 or not nest.loops:
        return None
    (fold,) = nest.folds
    _, offset, _ = nest.stores[0]
    dtype = dtypes[0]
    if len(fold.names) != 1 or not fold.loops or fold.init[0].dtype != dtype or dtype in HALF or dtype.kind == "c":
        return None
    along, across = nest.loops[-1][0], fold.loops[-1][0]
    if _weight(nest, offset, along) != 1:
        return None
    strided = False
    for load in nest.loads():
        form = nest.expansion.ranges.linear(load.index[0])
        if any(not isinstance(t, s.Var) and {along, across} & variables(t) for t, _ in form.terms):
            return None
        own, step = _weight(nest, load.index[0], along), _weight(nest, load.index[0], across)
        if own not in (0, 1):
            return None
        strided = strided or (own == 1 and step not in (0, 1))
    return fold if strided else None


def _weight(nest: Nest, offset: s.ScalarExpr, name: str) -> Dim:
    form = nest.expansion.ranges.linear(offset)
    return next((c for t, c in form.terms if isinstance(t, s.Var) and t.name == name), 0)


def emit_columns(scheduler: Scheduler, nest: Nest, fold: Fold) -> None:
    """Writes the loops: blocks, shared among threads; in each the first values, all terms, then what follows."""
    ranges = nest.expansion.ranges
    *outer, (along, extent) = nest.loops
    ((buffer, offset, value),) = nest.stores
    blocks = symbols.ceildiv(extent, BLOCK)
    total = symbols.product([*(d for _, d in outer), blocks])
    ranges.extents["block"] = total
    with scheduler.loop("block", total, parallel=True):
        rest: s.ScalarExpr = s.Var("block")
        if outer:
            scheduler.bind("part", s.Binary(i64, "fmod", rest, s.size(blocks)))
            rest = s.Binary(i64, "div", rest, s.size(blocks))
            part: s.ScalarExpr = s.Var("part")
        else:
            part = rest
        for name, size in reversed(outer[1:]):
            scheduler.bind(name, s.Binary(i64, "fmod", rest, s.size(size)))
            rest = s.Binary(i64, "div", rest, s.size(size))
        if outer:
            scheduler.bind(outer[0][0], rest)
        start = scheduler.let(scheduler.index(part * BLOCK))
        count = scheduler.let(s.minimum(scheduler.index(s.size(extent)) - start, BLOCK))
        name, dtype = fold.names[0], fold.init[0].dtype

        def along_block(stack: ExitStack) -> s.ScalarExpr:
            stack.enter_context(scheduler.loop("lane", count))
            scheduler.bind(along, start + s.Var("lane"))
            return scheduler.index(offset)

        with ExitStack() as stack:
            scheduler.write(buffer, along_block(stack), fold.init[0])
        with ExitStack() as stack:
            for var, size in fold.loops:
                stack.enter_context(scheduler.loop(var, size, independent=False))
            place = along_block(stack)
            scheduler.hold(name, s.Load(dtype, buffer, (place,)))
            scheduler.write(buffer, place, fold.step[0])
        with ExitStack() as stack:
            place = along_block(stack)
            scheduler.hold(name, s.Load(dtype, buffer, (place,)))
            scheduler.mark(fold)
            scheduler.write(buffer, place, value)
