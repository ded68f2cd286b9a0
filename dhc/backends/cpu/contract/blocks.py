"""How kernels divide outputs into blocks of copied rows, tiles and runs, and blocks among threads."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dhc.backends.cpu.contract.tile import TileShape
from dhc.backends.cpu.llvm.builder import Function, Int, Value, Variable

# With so many tiles for each thread, copying the rows once more is little beside what is computed with them.
_TILES_TO_COPY_TWICE = 4


def digits(index: Value, *sizes: Value) -> list[Value]:
    """The coordinates of a flat index, fastest axis first; what is left of it comes last."""
    found = []
    for size in sizes:
        found.append(index % size)
        index = index // size
    return [*found, index]


def split_count(f: Function, blocks: Value, nthreads: Value, most: Value) -> Value:
    """Into how many units (at most ``most``) each block is split so that all threads have about as much to do."""
    even = (blocks % nthreads).equals(0) | (blocks >= nthreads * 8)
    return f.select(even, 1, f.minimum(nthreads, f.maximum(most, 1)))


def clearly_less(cost: Value, other: Value) -> Value:
    """Whether a way to divide work leaves the slowest thread so much less to do that it is worth its own copies."""
    return cost * 17 < other * 16


def divided(unit: Value, units: Value, splits: Value, by_splits: Value, f: Function) -> tuple[Value, Value]:
    """Which block and which split of it a work unit is.

    Args:
        unit: its number.
        units: number of blocks.
        splits: number of splits of each.
        by_splits: whether the splits of all blocks stand together, so that a thread has the same one of each; else the
            blocks do, so that a thread has few of them.
        f: the kernel.
    """
    block = f.select(by_splits, unit % units, unit // splits)
    return f.value(block), f.value(f.select(by_splits, unit // units, unit % splits))


def odd_lines(elements: int, item: int) -> int:
    """Rounds up to an odd number of cache lines: even strides of copied rows would collide in the caches' sets."""
    per_line = 64 // item
    return (-(-elements // per_line) | 1) * per_line


def _odd_lines_value(elements: Value, item: int) -> Value:
    per_line = 64 // item
    return (((elements + (per_line - 1)) // per_line) | 1) * per_line


@dataclass(frozen=True)
class RowBlocks:
    """Blocks of rows and columns whose copies fit the scratch memory.

    Attributes:
        x_size: columns of a block.
        x_blocks: blocks in a row.
        r_size: rows of a block.
        r_blocks: blocks in a plane's rows.
        pitch_row: columns from one row of the block to the next.
        pitch: elements between the copies of one channel and tap and the next.
    """

    x_size: Value
    x_blocks: Value
    r_size: Value
    r_blocks: Value
    pitch_row: Value
    pitch: Value


def row_blocks(
    f: Function, shape: TileShape, item: int, halo: int, span: int, *, room: Value, cap: Value, width: Value,
    rows: Sequence[Value], plane_rows: Value, planes: Value, nthreads: Value, tiles: Value,
) -> RowBlocks:  # fmt: skip
    """Chooses blocks and evens them out over the threads.

    Args:
        f: the kernel.
        shape: of the register tiles.
        item: bytes of an element.
        halo: rows that a block reads beyond its own.
        span: columns that a row reads beyond its own.
        room: elements of a copy that the scratch memory has room for.
        cap: columns from which on copies would not stay near.
        width: columns of a row.
        rows: sizes of the axes that all rows are counted over.
        plane_rows: rows of a plane, which blocks do not cross.
        planes: number of planes.
        nthreads: number of threads.
        tiles: register tiles of all output channels.
    """
    columns, lanes = shape.columns, shape.lanes
    widest = f.value(f.minimum(room // (halo + 1), cap)) - span
    x_most = f.value(f.maximum(columns, widest // columns * columns))
    x_blocks = f.value(f.ceildiv(width, x_most))
    few_rows = functools.reduce(operator.mul, rows) < nthreads
    x_blocks = f.select(few_rows, f.ceildiv(x_blocks, nthreads) * nthreads, x_blocks)
    x_size = f.value(f.maximum(f.ceildiv(f.value(f.ceildiv(width, f.maximum(x_blocks, 1))), columns), 1)) * columns
    x_size = f.value(f.maximum(f.minimum(x_size, width), 1))
    x_blocks = f.value(f.ceildiv(width, x_size))
    pitch_row = x_size + span
    r_fitting = f.minimum(room // pitch_row - halo, f.value(f.maximum(1, cap // pitch_row)))
    r_blocks = f.value(f.ceildiv(plane_rows, f.maximum(1, r_fitting)))
    uneven = (plane_rows >= nthreads) & (planes < nthreads)
    # Some rows of a small map may take as many vectors as all of them: then threads divide the output channels.
    all_rows = f.value(f.ceildiv(plane_rows * pitch_row, lanes)) * f.value(f.ceildiv(tiles, nthreads))
    some_rows = f.value(f.ceildiv(f.value(f.ceildiv(plane_rows, nthreads)) * pitch_row, lanes)) * tiles
    small = r_blocks.equals(1) & (tiles >= nthreads * _TILES_TO_COPY_TWICE) & clearly_less(all_rows, some_rows)
    uneven = uneven & f.value(small).equals(0)
    r_blocks = f.select(uneven, f.ceildiv(r_blocks, nthreads) * nthreads, r_blocks)
    r_size = f.value(f.maximum(1, f.ceildiv(plane_rows, f.maximum(r_blocks, 1))))
    r_blocks = f.value(f.ceildiv(plane_rows, r_size))
    filled = (r_size + (halo - 1)) * pitch_row + f.ceildiv(pitch_row, lanes) * lanes
    return RowBlocks(x_size, x_blocks, r_size, r_blocks, pitch_row, _odd_lines_value(filled, item))


def over_row_tiles(
    f: Function, names: Mapping[str, Value], row_counts: Sequence[int], begin: Value, end: Value,
    body: Callable[[int, Value, Value], None],
) -> None:  # fmt: skip
    """Calls ``body(rows, first row, tile)`` for the tiles of ``[begin, end)``: the larger ones, then the smaller."""
    first_tile: Int = 0
    first_row: Int = 0
    for rows, name in zip(row_counts, ("larger_tiles", "smaller_tiles"), strict=False):
        low, high = f.maximum(begin, first_tile), f.minimum(end, first_tile + names[name])
        with f.loop(low, high) as index:
            body(rows, f.value((index - first_tile) * rows + first_row), index)
        first_tile, first_row = first_tile + names[name], first_row + names[name] * rows


def over_columns(f: Function, shape: TileShape, total: Value, body: Callable[[Value, int], None]) -> None:
    """Calls ``body(first column, vectors)`` for whole tiles of columns, then for single vectors."""
    q = f.variable("i64", 0)
    if shape.vectors > 1:
        with f.while_(lambda: q.get() + (shape.vectors - 1) * shape.lanes < total):
            body(q.get(), shape.vectors)
            q.set(q.get() + shape.columns)
    with f.while_(lambda: q.get() < total):
        body(q.get(), 1)
        q.set(q.get() + shape.lanes)


def over_runs(
    f: Function, first: Value, width: Int, total: Value, row: Value, pitch: Value,
    body: Callable[[Variable, Variable, Variable, Value], None],
) -> None:  # fmt: skip
    """Calls ``body(column, row, position in row, count)`` for the runs of real outputs among computed columns.

    The columns are ``width`` ones from ``first`` on, below ``total``; of each ``pitch`` of them the first ``row`` are
    real.
    """
    at = f.variable("i64", first)
    stop = f.value(f.minimum(first + width, total))
    r, x = f.variable("i64", first // pitch), f.variable("i64", first % pitch)
    with f.while_(lambda: at.get() < stop):
        left = row - x.get()

        def write() -> None:
            count = f.value(f.minimum(left, stop - at.get()))
            body(at, r, x, count)
            at.set(at.get() + count)
            x.set(x.get() + count)

        def skip() -> None:
            at.set(at.get() + (pitch - x.get()))
            x.set(0)
            r.set(r.get() + 1)

        f.if_else(left > 0, write, skip)
