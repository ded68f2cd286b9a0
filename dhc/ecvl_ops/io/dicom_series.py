"""A DICOM series, one file a slice, as a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dhc_runtime.errors import ModelError, UsageError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.dicom_geometry import Plane, stacked
from dhc.ecvl_ops.io.formats import Request
from dhc.ecvl_ops.io.limits import Limits, check_declared

_PARALLEL = 1e-3
_MAY_DEVIATE = 0.02
"""Uneven distances up to this share of the step are rounding of the positions."""


def joined(images: Sequence[Image], names: Sequence[str], limits: Limits, request: Request, gaps: str) -> Image:
    """One volume of slices.

    Args:
        images: single frames with their positions in the metadata.
        names: of their files, for messages.
        limits: of the volume.
        request: region along D.
        gaps: "refuse" missing slices, or "keep" the slices that are there at one distance.

    Raises:
        ModelError: slices differ in size, direction or meaning, lie in one place, or some are missing.
    """
    first = images[0]
    for image, name in zip(images, names):
        if image.layout not in ("HW", "HWC"):
            raise ModelError("a slice of a series has one frame", name, "read this file alone")
        if (image.values.shape, image.color, image.unit) != (first.values.shape, first.color, first.unit):
            raise ModelError(
                f"the slice has {image.values.shape} samples ({image.color}, {image.unit}), "
                f"the first one {first.values.shape} ({first.color}, {first.unit})",
                name,
                "choose one series by `series=`",
            )
    planes = [_plane(image) for image in images]
    _check_parallel(planes, names)
    stack = stacked(planes)
    if stack.duplicates:
        raise ModelError(
            f"{len(stack.duplicates)} slices lie where another one lies",
            names[stack.duplicates[0]],
            "several acquisitions are in one series: give the files of one",
        )
    holes = [(names[stack.order[n]], distance) for n, distance in stack.gaps]
    if holes and gaps != "keep":
        text = ", ".join(f"{distance:.3g} mm after {name}" for name, distance in holes[:5])
        raise ModelError(
            f"slices are missing: the series has a step of {stack.step:.3g} mm and {text}",
            hint='`gaps="keep"` takes the slices that are there',
        )
    if stack.uneven > _MAY_DEVIATE and gaps != "keep":
        raise ModelError(
            f"slices lie unevenly: up to {100 * stack.uneven:.0f} % off their step of {stack.step:.3g} mm",
            hint='`gaps="keep"` takes them as if they were even',
        )
    order = stack.order
    if planes[0].normal is None or planes[0].position is None:
        order = sorted(order, key=lambda n: (images[n].metadata.get("InstanceNumber", math.inf), names[n]))
    start, end = request.region.get("D", (0, len(order)))
    if not 0 <= start < end <= len(order):
        raise UsageError(f"the region {start}:{end} along D is not within 0:{len(order)}")
    chosen = order[start:end]
    dtype = np.result_type(*(images[n].values.dtype for n in chosen))
    check_declared((len(chosen), *first.values.shape), dtype, limits, names[0])
    values = np.stack([images[n].values.astype(dtype, copy=False) for n in chosen])
    metadata = {k: v for k, v in first.metadata.items() if k not in ("InstanceNumber", "SOPInstanceUID")}
    metadata |= {"gaps": [[n, d] for n, d in stack.gaps], "files": [names[n] for n in chosen], "shear": stack.shear}
    volume = Image(values, "D" + first.layout, first.color, unit=first.unit, metadata=metadata)
    return _placed(volume, planes, chosen, stack.step or _thickness(first))


def _plane(image: Image) -> Plane:
    position = image.metadata.get("ImagePositionPatient")
    cosines = image.metadata.get("ImageOrientationPatient")
    axes = None
    if cosines is not None:
        across, down = np.array(cosines[:3]), np.array(cosines[3:])
        axes = np.stack([down / np.linalg.norm(down), across / np.linalg.norm(across)], 1)
    return Plane(image.spacing, None if position is None else np.array(position), axes)


def _check_parallel(planes: Sequence[Plane], names: Sequence[str]) -> None:
    first = planes[0]
    for at, name in zip(planes, names):
        if (at.axes is None) != (first.axes is None) or (at.position is None) != (first.position is None):
            raise ModelError("some slices of the series have a position and some have none", name)
        if at.axes is not None and first.axes is not None and np.abs(at.axes - first.axes).max() > _PARALLEL:
            raise ModelError("the slice is not parallel to the others", name, "it is a scout or another series")
        if at.spacing != first.spacing and np.abs(np.subtract(at.spacing or 0, first.spacing or 0)).max() > 1e-4:
            raise ModelError(f"the slice has the spacing {at.spacing}, the first one {first.spacing}", name)


def _thickness(image: Image) -> float | None:
    value = image.metadata.get("SpacingBetweenSlices") or image.metadata.get("SliceThickness")
    return float(value) if value and value > 0 else None


def _placed(volume: Image, planes: Sequence[Plane], chosen: Sequence[int], step: float | None) -> Image:
    at = planes[chosen[0]]
    if step is None or not at.spacing:
        return volume
    affine = np.eye(4)
    directions = np.eye(3)[:, ::-1]
    if at.axes is not None and at.normal is not None and at.position is not None:
        directions = np.column_stack([at.normal, at.axes])
        affine[:3, 3] = at.position
        last = planes[chosen[-1]].position
        if last is not None and len(chosen) > 1:  # a tilted gantry moves slices across their normal
            way = last - at.position
            directions = np.column_stack([way / np.linalg.norm(way), at.axes])
            step = float(np.linalg.norm(way)) / _steps(planes, chosen, step)
    affine[:3, :3] = directions * np.array([step, *at.spacing])
    return volume.with_affine(affine)


def _steps(planes: Sequence[Plane], chosen: Sequence[int], step: float) -> float:
    """How many steps lie between the first and the last slice: more than slices where some are missing."""
    normal = planes[chosen[0]].normal
    ends = [planes[n].position for n in (chosen[0], chosen[-1])]
    if normal is None or ends[0] is None or ends[1] is None:
        return float(len(chosen) - 1)
    between = abs(float((ends[1] - ends[0]) @ normal)) / step
    return float(len(chosen) - 1) if abs(between - (len(chosen) - 1)) < 0.5 else between
