"""Placing buffers with known lifetimes in one block of memory.

The compiler uses the same planner for its reports, so that a report shows what a run will take.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

__all__ = ["ALIGNMENT", "lower_bound", "plan_arena"]

ALIGNMENT = 64


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


_REPAIRS = 16
"""Further placements that are tried for each order while the block is larger than it must be."""
_TRIED = 20_000
"""Buffers that are placed at most, all tries together (after the first): a second for a program of any size."""


def plan_arena(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> Tuple[List[int], int]:
    """Assigns offsets to buffers so that buffers alive at the same time do not overlap.

    Greedy: one buffer after the other, each into the tightest gap between the buffers already placed that live at the
    same time, or behind them. Larger buffers go first; while that takes more than what is alive at once, those that
    stick out go first the next time, and then other orders are tried (size times lifetime, the busiest steps first,
    birth): the smallest block counts. Ties go to the earlier birth, then to the lower index: the result depends on the
    arguments alone.

    Args:
        sizes: bytes of each buffer; a buffer of 0 bytes is given a place of one alignment unit.
        first: the first step at which each buffer is alive.
        last: the last such step (inclusive).

    Returns:
        The offset of each buffer (multiples of 64) and the size of the whole block in bytes.
    """
    count = len(sizes)
    if not count == len(first) == len(last):
        raise ValueError("sizes, first and last must have the same length")
    rounded = [_aligned(max(int(size), 1)) for size in sizes]
    least = lower_bound(sizes, first, last)
    best: Optional[Tuple[List[int], int]] = None
    left = _TRIED
    for order in _orders(rounded, first, last):
        for _ in range(1 + _REPAIRS):
            if best is not None and (best[1] <= least or left < count):
                return best
            found = _place(rounded, first, last, order)
            best = found if best is None or found[1] < best[1] else best
            left -= count
            offsets, total = found
            highest = [i for i in order if offsets[i] + rounded[i] == total]
            order = highest + [i for i in order if offsets[i] + rounded[i] != total]
    assert best is not None
    return best


def _orders(rounded: Sequence[int], first: Sequence[int], last: Sequence[int]) -> Iterator[List[int]]:
    """Orders in which to place buffers, the best on average first; later ones are made when they are asked for."""
    everything = range(len(rounded))
    yield sorted(everything, key=lambda i: (-rounded[i], first[i], i))
    yield sorted(everything, key=lambda i: (-rounded[i] * (last[i] - first[i] + 1), first[i], i))
    steps = max(last, default=0) + 1
    change = np.zeros(steps + 1, dtype=np.int64)
    np.add.at(change, np.asarray(first, dtype=np.int64), rounded)
    np.add.at(change, np.asarray(last, dtype=np.int64) + 1, [-size for size in rounded])
    alive = np.cumsum(change)
    pressure = [int(alive[start : end + 1].max()) for start, end in zip(first, last)]
    yield sorted(everything, key=lambda i: (-pressure[i], first[i] - last[i], -rounded[i], first[i], i))
    yield sorted(everything, key=lambda i: (-pressure[i], -rounded[i], first[i], i))
    yield sorted(everything, key=lambda i: (first[i], first[i] - last[i], i))


def _place(
    rounded: Sequence[int], first: Sequence[int], last: Sequence[int], order: Sequence[int]
) -> Tuple[List[int], int]:
    count = len(rounded)
    offsets = np.zeros(count, dtype=np.int64)
    starts = np.asarray(first, dtype=np.int64)
    ends = np.asarray(last, dtype=np.int64)
    extents = np.asarray(rounded, dtype=np.int64)
    placed = np.empty(count, dtype=np.int64)
    total = 0
    for position, index in enumerate(order):
        others = placed[:position]
        others = others[(starts[others] <= last[index]) & (ends[others] >= first[index])]
        low = offsets[others]
        ranks = np.argsort(low, kind="stable")
        low = low[ranks]
        # `top[i]` is the end of everything that starts before the i-th neighbour: the gap before it is low[i] - top[i].
        high = np.maximum.accumulate(low + extents[others][ranks]) if len(low) else low
        top = np.concatenate((np.zeros(1, dtype=np.int64), high))
        gaps = low - top[:-1]
        fitting = np.flatnonzero(gaps >= rounded[index])
        if len(fitting):
            offset = int(top[fitting[np.argmin(gaps[fitting])]])
        else:
            offset = int(top[-1])
        offsets[index] = offset
        placed[position] = index
        total = max(total, offset + rounded[index])
    return [int(offset) for offset in offsets], total


def lower_bound(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> int:
    """The bytes alive at the busiest step: no placement can take less."""
    changes = {}  # type: dict[int, int]
    for size, start, end in zip(sizes, first, last):
        rounded = _aligned(max(int(size), 1))
        changes[start] = changes.get(start, 0) + rounded
        changes[end + 1] = changes.get(end + 1, 0) - rounded
    peak = alive = 0
    for step in sorted(changes):
        alive += changes[step]
        peak = max(peak, alive)
    return peak
