"""Where the frames of DICOM data sets lie in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Plane:
    """One frame in space.

    Attributes:
        spacing: millimetres between rows, between columns; empty when unknown.
        position: of the first sample, LPS; None when unknown.
        axes: matrix ``[3, 2]``, directions of growing row and of growing column number; None when unknown.
    """

    spacing: tuple[float, ...] = ()
    position: np.ndarray | None = None
    axes: np.ndarray | None = None

    @property
    def normal(self) -> np.ndarray | None:
        """Direction across the plane, so that (normal, rows, columns) is right-handed in array order."""
        return None if self.axes is None else np.cross(self.axes[:, 1], self.axes[:, 0])


def numbers(value: Any, count: int) -> list[float] | None:
    """Finite numbers of an element, None where it has others or not so many."""
    try:
        found = [float(v) for v in ([value] if isinstance(value, (int, float, str)) else value)]
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(np.isfinite(found)) else None


def plane(dataset: Any, frame: int = 0) -> Plane:
    """The plane of a frame, from the data set or its functional groups."""
    groups = _groups(dataset, frame)
    spacing = numbers(_find(groups, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None:
        spacing = numbers(dataset.get("PixelSpacing"), 2) or numbers(dataset.get("ImagerPixelSpacing"), 2)
    position = numbers(_find(groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
    common = position is None
    if position is None:
        position = numbers(dataset.get("ImagePositionPatient"), 3)
    cosines = numbers(_find(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if cosines is None:
        cosines = numbers(dataset.get("ImageOrientationPatient"), 6)
    axes = None
    if cosines is not None:
        across, down = np.array(cosines[:3]), np.array(cosines[3:])
        lengths = np.linalg.norm(across), np.linalg.norm(down)
        if min(lengths) > 0.5 and abs(across @ down) < 1e-2 * lengths[0] * lengths[1]:
            axes = np.stack([down / lengths[1], across / lengths[0]], 1)
    at = Plane(
        tuple(spacing) if spacing and min(spacing) > 0 else (), None if position is None else np.array(position), axes
    )
    offsets = dataset.get("GridFrameOffsetVector") if common else None
    if offsets is not None and at.position is not None and at.normal is not None:  # dose grids
        found = numbers(offsets, len(offsets)) or []
        if frame < len(found):
            # The vector is relative where it begins with 0, else it holds coordinates along z.
            moved = found[frame] - found[0]
            at = replace(at, position=at.position + moved * at.normal)
    return at


@dataclass(frozen=True)
class Stack:
    """Slices in order.

    Attributes:
        order: numbers of the slices, ascending along the normal; as given where positions are unknown.
        step: millimetres between slices, the median; None when unknown.
        gaps: (number of the slice before, millimetres) where the distance is more than 1.5 steps.
        uneven: largest deviation of any other distance from the step, as a share of it.
        duplicates: slices that lie where another one lies.
        shear: largest offset of a slice across the normal, relative to the first one's line, millimetres.
    """

    order: list[int]
    step: float | None
    gaps: list[tuple[int, float]]
    uneven: float
    duplicates: list[int]
    shear: float


def stacked(planes: Sequence[Plane]) -> Stack:
    """Sorts parallel planes by their position along the normal."""
    normal = planes[0].normal
    if normal is None or any(p.position is None for p in planes):
        return Stack(list(range(len(planes))), None, [], 0.0, [], 0.0)
    positions = np.stack([p.position for p in planes])  # type: ignore[misc]
    along = positions @ normal
    order = [int(n) for n in np.argsort(along, kind="stable")]
    distances = np.diff(along[order])
    duplicates = [order[n + 1] for n in range(len(distances)) if distances[n] < 1e-3]
    positive = distances[distances >= 1e-3]
    if not len(positive):
        return Stack(order, None, [], 0.0, duplicates, 0.0)
    step = float(np.median(positive))
    gaps = [(n, float(d)) for n, d in enumerate(distances) if d > 1.5 * step]
    regular = positive[positive <= 1.5 * step]
    uneven = float(np.abs(regular - step).max() / step) if len(regular) else 0.0
    offsets = positions - positions[order[0]]
    across = offsets - np.outer(offsets @ normal, normal)
    return Stack(order, step, gaps, uneven, duplicates, float(np.abs(across).max()))


def _groups(dataset: Any, frame: int) -> list[Any]:
    found = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if per_frame is not None and frame < len(per_frame):
        found.append(per_frame[frame])
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared:
        found.append(shared[0])
    return found


def _find(groups: Sequence[Any], sequence: str, keyword: str) -> Any:
    for group in groups:
        items = group.get(sequence)
        if items:
            value = items[0].get(keyword)
            if value is not None:
                return value
    return None


def frame_value(dataset: Any, frame: int, sequence: str, keyword: str) -> Any:
    """An element of a frame's functional groups, else of the data set."""
    value = _find(_groups(dataset, frame), sequence, keyword)
    return dataset.get(keyword) if value is None else value
