"""Placing buffers with known lifetimes in one block of memory.

The compiler uses the same planner for its reports, so that a report shows what a run will take.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

__all__ = ["ALIGNMENT", "lower_bound", "plan_arena"]

ALIGNMENT = 64


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


_REPAIRS = 16
"""Further placements that are tried while the block is larger than it must be."""


def plan_arena(sizes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> Tuple[List[int], int]:
    """Assigns offsets to buffers so that buffers alive at the same time do not overlap.

    Greedy: larger buffers first, each into the tightest gap between the buffers already placed that live at the same
    time, or behind them. While that takes more than what is alive at once, those that stick out go first the next time;
    the smallest block counts. Ties go to the earlier birth, then to the lower index: the result depends on the
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
    order = sorted(range(count), key=lambda i: (-rounded[i], first[i], i))
    best = found = _place(rounded, first, last, order)
    for _ in range(_REPAIRS):
        if best[1] <= least:
            break
        offsets, total = found
        highest = [i for i in order if offsets[i] + rounded[i] == total]
        order = highest + [i for i in order if offsets[i] + rounded[i] != total]
        found = _place(rounded, first, last, order)
        best = found if found[1] < best[1] else best
    return best


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
