"""How a local graph is cut into patches: where they start, and which part of each result is kept.

All patches have one size, so that one program serves them all. A patch at an edge of the whole starts or ends there;
the others overlap by what their results reach beyond them, and what depends on positions outside of the patch is
dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dhc.ir.graph import Graph
from dhc.passes.locality import Axis, Locality

_CHOICES = 64
"""Sizes that are looked at along each axis."""


@dataclass(frozen=True)
class Patches:
    """A way to cut.

    Attributes:
        size: of a patch along each axis of space.
        starts: for each axis of space, where the patches start.
        kept: for each output and axis of space, one entry for each start: first and last (excluded) element of the
            patch's result that is kept, and where it goes in the whole.
    """

    size: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[tuple[tuple[int, int, int], ...], ...], ...]

    @property
    def count(self) -> int:
        """Number of patches."""
        return math.prod(len(starts) for starts in self.starts)

    def work(self, space: Sequence[int]) -> float:
        """Positions computed, overlaps included, for each position of the whole."""
        return self.count * math.prod(self.size) / math.prod(space)


def cut(found: Locality, whole: Graph, size: Sequence[int]) -> Patches | None:
    """Patches of a size (the whole's, or smaller by a multiple of the alignment); None when it is too small."""
    starts: list[tuple[int, ...]] = []
    kept: list[list[tuple[tuple[int, int, int], ...]]] = [[] for _ in found.outputs]
    for i, (space, patch, unit) in enumerate(zip(found.space, size, found.alignment)):
        axes = [reach[i] for reach in found.outputs]
        places = _starts(space, patch, unit, axes)
        if places is None:
            return None
        starts.append(places)
        for number, axis in enumerate(axes):
            entries = _kept(places, space, patch, axis, int(whole.outputs[number].shape[axis.position]))
            if entries is None:
                return None
            kept[number].append(entries)
    return Patches(tuple(size), tuple(starts), tuple(tuple(k) for k in kept))


def cheapest(found: Locality, positions: float) -> tuple[int, ...] | None:
    """The size of patches of at most so many positions that together compute the fewest; None when none is so small."""
    best: tuple[float, ...] | None = None
    chosen: tuple[int, ...] | None = None
    for combination in itertools.product(*(_sizes(found, i) for i in range(len(found.space)))):
        size = tuple(patch for patch, _ in combination)
        volume = math.prod(size)
        rank = (volume * math.prod(count for _, count in combination), -volume)
        if volume <= positions and (best is None or rank < best):
            best, chosen = rank, size
    return chosen


def _sizes(found: Locality, index: int) -> list[tuple[int, int]]:
    """Sizes to choose from along an axis of space, the largest first, each with the number of patches."""
    space, unit = found.space[index], found.alignment[index]
    axes = [reach[index] for reach in found.outputs]
    least = max(1, space // unit // _CHOICES)
    sizes = []
    for patch in range(space, 0, -unit * least):
        places = _starts(space, patch, unit, axes)
        if places is not None:
            sizes.append((patch, len(places)))
    return sizes


def _inner(axis: Axis, patch: int) -> tuple[int, int]:
    """The elements of a result (first, last excluded) that depend on nothing outside of a patch."""
    return math.ceil(axis.before / axis.step), math.floor((patch - 1 - axis.after) / axis.step) + 1


def _starts(space: int, patch: int, unit: int, axes: Sequence[Axis]) -> tuple[int, ...] | None:
    if patch == space:
        return (0,)
    advance = patch
    for axis in axes:
        first, last = _inner(axis, patch)
        advance = min(advance, math.floor((last - first) * axis.step))
    advance -= advance % unit
    if advance <= 0 or patch <= 0 or (space - patch) % unit:
        return None
    places = list(range(0, space - patch, advance))
    return (*places, space - patch)


def _kept(
    places: Sequence[int], space: int, patch: int, axis: Axis, whole: int
) -> tuple[tuple[int, int, int], ...] | None:
    first, last = _inner(axis, patch)
    entries, covered = [], 0
    for start in places:
        offset = start / axis.step
        assert offset.denominator == 1, "patches start at an element of every value"
        origin = int(offset)
        stop = whole - origin if start + patch == space else last
        begin = covered - origin
        if begin < (first if start else 0) or stop < begin:
            return None
        entries.append((begin, stop, covered))
        covered = origin + stop
    return tuple(entries) if covered == whole else None


def plan_entry(found: Locality, patches: Patches, whole: Graph) -> dict[str, Any]:
    """The entry ``tiles`` of a plan: what the runtime does around its program."""
    return {
        "starts": [list(s) for s in patches.starts],
        "size": list(patches.size),
        "inputs": [
            {"shape": [int(d) for d in v.shape], "axes": [a.position for a in reach]}
            for v, reach in zip(whole.inputs, found.inputs)
        ],
        "outputs": [
            {
                "shape": [int(d) for d in v.shape],
                "axes": [a.position for a in reach],
                "kept": [[list(entry) for entry in axis] for axis in kept],
            }
            for v, reach, kept in zip(whole.outputs, found.outputs, patches.kept)
        ],
    }
