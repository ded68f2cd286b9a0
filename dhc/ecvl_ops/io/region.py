"""Parts of images: which samples a request means, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dhc_runtime.errors import UsageError


def slices(layout: str, shape: Sequence[int], region: Mapping[str, tuple[int, int]], where: str) -> tuple[slice, ...]:
    """One slice for each axis.

    Raises:
        UsageError: the region names an axis that the image has not, or lies beyond it.
    """
    for letter, (first, end) in region.items():
        if letter not in layout or letter not in "DHW":
            raise UsageError(f"a region along {letter!r}: the image has the axes {layout}", where)
        size = shape[layout.index(letter)]
        if not 0 <= first < end <= size:
            raise UsageError(f"the region {first}:{end} along {letter} is not within 0:{size}", where)
    return tuple(slice(*region.get(letter, (0, size))) for letter, size in zip(layout, shape))


def region_shape(taken: Sequence[slice]) -> tuple[int, ...]:
    """Sizes of what slices with both ends take."""
    return tuple(part.stop - part.start for part in taken)
