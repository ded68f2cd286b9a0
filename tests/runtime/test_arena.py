"""The arena planner never overlaps what lives together, stays near the lower bound, and always answers the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhc_runtime.arena import ALIGNMENT, lower_bound, plan_arena

buffers = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 12)), max_size=40)


def columns(items: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    return [i[0] for i in items], [i[1] for i in items], [i[1] + i[2] for i in items]


@given(buffers)
def test_no_overlap_and_aligned(items: list[tuple[int, int, int]]) -> None:
    sizes, first, last = columns(items)
    offsets, total = plan_arena(sizes, first, last)
    for i in range(len(sizes)):
        assert offsets[i] % ALIGNMENT == 0
        assert 0 <= offsets[i] <= offsets[i] + sizes[i] <= total
        for j in range(i):
            if first[i] <= last[j] and first[j] <= last[i]:
                assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
    assert lower_bound(sizes, first, last) <= total <= sum(-(-max(s, 1) // 64) * 64 for s in sizes)
    assert plan_arena(sizes, first, last) == (offsets, total)


def test_a_chain_needs_two_places() -> None:
    sizes = [640] * 10
    offsets, total = plan_arena(sizes, list(range(10)), list(range(1, 11)))
    assert total == 1280 == lower_bound(sizes, list(range(10)), list(range(1, 11)))
    assert len(set(offsets)) == 2


def test_the_tightest_gap_is_taken() -> None:
    # The second and fourth die early: behind them stay gaps of 960 at 1024 and of 512 at 2880.
    sizes = [1024, 960, 896, 512, 448, 256]
    first = [0, 0, 0, 0, 0, 5]
    last = [9, 1, 9, 1, 9, 9]
    offsets, total = plan_arena(sizes, first, last)
    assert offsets == [0, 1024, 1984, 2880, 3392, 2880]
    assert total == 3840


def test_nothing_and_wrong_arguments() -> None:
    assert plan_arena([], [], []) == ([], 0)
    assert lower_bound([], [], []) == 0
    with pytest.raises(ValueError, match="same length"):
        plan_arena([1], [0], [])


def test_offsets_stay_what_they_are() -> None:
    # Golden: a change here changes the memory of every artifact.
    sizes = [100, 4000, 64, 64, 1500, 800, 4000]
    first = [0, 0, 1, 2, 2, 3, 5]
    last = [2, 3, 2, 6, 4, 5, 6]
    assert plan_arena(sizes, first, last) == ([5568, 0, 5696, 6400, 4032, 5568, 0], 6464)


# Bytes in KiB, first and last item of the arenas of networks on which larger buffers first are not enough.
SIGNAL_NETWORK = [
    (1024, 0, 2), (1024, 0, 0), (512, 1, 3), (1189, 1, 1), (512, 2, 3), (1024, 2, 2), (512, 3, 5), (1024, 3, 3),
    (512, 4, 6), (1354, 4, 4), (512, 5, 6), (1024, 5, 5), (512, 6, 8), (1024, 6, 6), (256, 7, 9), (1354, 7, 7),
    (256, 8, 9), (1024, 8, 8), (256, 9, 11), (1024, 9, 9), (256, 10, 12), (1684, 10, 10), (256, 11, 12), (1024, 11, 11),
    (256, 12, 14), (1024, 12, 12), (128, 13, 15), (1780, 13, 13), (128, 14, 15), (1024, 14, 14), (128, 15, 16),
]  # fmt: skip


def test_other_orders_are_tried_until_the_bound_is_reached() -> None:
    sizes, first, last = [s * 1024 for s, _, _ in SIGNAL_NETWORK], *zip(*[(f, e) for _, f, e in SIGNAL_NETWORK])
    _, total = plan_arena(sizes, first, last)
    assert total == lower_bound(sizes, first, last)


@given(st.integers(0, 2**32 - 1))
def test_stays_near_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 60))
    sizes = (rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32], count) * 4096).tolist()
    first = rng.integers(0, count // 2 + 1, count).tolist()
    last = [f + int(length) for f, length in zip(first, rng.integers(0, 4, count) * rng.integers(0, 4, count))]
    _, total = plan_arena(sizes, first, last)
    assert total <= 1.2 * lower_bound(sizes, first, last)
