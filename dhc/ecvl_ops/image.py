"""An image or a volume in memory, with what its numbers mean.

Positions are those of DICOM and ITK: the patient's left, posterior and superior (LPS), in millimetres. NIfTI files,
which count to the right and to the front, are converted when they are read and written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from dhc_runtime.errors import ShapeError, UsageError

from dhc.ir.dtypes import dtype
from dhc.ir.types import COLOR_SPACES, UNITS, ImageType

Array = np.ndarray[Any, Any]

CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4, "bgr": 3, "hsv": 3, "ycbcr": 3}
"""Channels of each colour space; "none" has any number."""


@dataclass(frozen=True, eq=False)
class Image:
    """Samples and their meaning.

    Attributes:
        values: the samples.
        layout: one letter for each axis of ``values``: N images, C channels, then the spatial axes out of D (slices),
            H (rows) and W (columns), e.g. ``HWC`` or ``DHW``.
        color: colour space of the channels, one of `dhc.ir.types.COLOR_SPACES`.
        spacing: millimetres between samples along each spatial axis, in the order of the layout; empty when unknown.
        origin: position of the first sample, millimetres: as many numbers as spatial axes; empty when unknown.
        orientation: a matrix, row by row, whose column k is the direction of spatial axis k; empty when unknown.
        unit: meaning of the intensities, one of `dhc.ir.types.UNITS`.
        metadata: what else the file says: texts and numbers by name.
    """

    values: Array
    layout: str = "HW"
    color: str = "gray"
    spacing: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    unit: str = "raw"
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if len(self.layout) != self.values.ndim or len(set(self.layout)) != len(self.layout):
            raise ShapeError(f"the layout {self.layout!r} does not name the {self.values.ndim} axes of the samples")
        if set(self.layout) - set("NCDHW") or [a for a in self.layout if a in "DHW"] != sorted(self.spatial):
            raise ShapeError(f"the layout {self.layout!r} is not made of N, C and D, H, W in this order")
        if self.color not in COLOR_SPACES:
            raise UsageError(f"unknown colour space {self.color!r}; there are {', '.join(COLOR_SPACES)}")
        if self.unit not in UNITS:
            raise UsageError(f"unknown unit {self.unit!r}; there are {', '.join(UNITS)}")
        rank, channels = len(self.spatial), self.channels
        for name, wanted in (("spacing", rank), ("origin", rank), ("orientation", rank * rank)):
            if len(getattr(self, name)) not in (0, wanted):
                raise ShapeError(f"{name} has {len(getattr(self, name))} numbers, {rank} spatial axes need {wanted}")
        if any(not s > 0 for s in self.spacing):
            raise ShapeError(f"spacing must be positive, not {self.spacing}")
        if self.color != "none" and channels != CHANNELS[self.color]:
            raise ShapeError(f"{channels} channels cannot be {self.color}, which has {CHANNELS[self.color]}")
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @property
    def spatial(self) -> str:
        """The letters of the spatial axes."""
        return "".join(a for a in self.layout if a in "DHW")

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return tuple(self.values.shape[self.layout.index(a)] for a in self.spatial)

    @property
    def channels(self) -> int:
        """Number of channels; 1 without a channel axis."""
        return self.values.shape[self.layout.index("C")] if "C" in self.layout else 1

    @property
    def type(self) -> ImageType:
        """The type that a graph's input for such images has."""
        return ImageType(
            dtype(self.values.dtype.name),
            self.values.shape,
            color=self.color,
            spacing=self.spacing,
            origin=self.origin,
            orientation=self.orientation,
            unit=self.unit,
            layout=self.layout,
        )

    @property
    def affine(self) -> Array:
        """The matrix ``[r+1, r+1]`` from positions in the array (spatial axes in the layout's order) to millimetres.

        Unknown parts count as spacing 1, origin 0 and axes along those of the patient.
        """
        rank = len(self.spatial)
        matrix = np.eye(rank + 1)
        directions = np.reshape(self.orientation, (rank, rank)) if self.orientation else np.eye(rank)[:, ::-1]
        matrix[:rank, :rank] = directions * np.asarray(self.spacing or (1.0,) * rank)
        matrix[:rank, rank] = self.origin or 0.0
        return matrix

    def with_affine(self, affine: Array) -> Image:
        """The same samples elsewhere; spacing, directions and origin are taken from the matrix.

        Raises:
            ShapeError: it has another size, or columns without length.
        """
        rank = len(self.spatial)
        matrix = np.asarray(affine, np.float64)
        if matrix.shape != (rank + 1, rank + 1):
            raise ShapeError(f"an affine matrix of {rank} spatial axes has {rank + 1} rows and columns")
        spacing = np.linalg.norm(matrix[:rank, :rank], axis=0)
        if not np.all(np.isfinite(matrix)) or not np.all(spacing > 0):
            raise ShapeError("the affine matrix has an axis without length")
        return replace(
            self,
            spacing=tuple(map(float, spacing)),
            origin=tuple(map(float, matrix[:rank, rank])),
            orientation=tuple(map(float, (matrix[:rank, :rank] / spacing).ravel())),
        )

    def moved(self, layout: str) -> Image:
        """The same image with its axes in another order of N and C, which may be added (of size 1) or dropped.

        Raises:
            ShapeError: a dropped axis has more than one element, or the spatial axes differ.
        """
        values, have = self.values, self.layout
        for letter in have:
            if letter not in layout:
                axis = have.index(letter)
                if values.shape[axis] != 1 or letter in "DHW":
                    raise ShapeError(f"axis {letter} of size {values.shape[axis]} cannot be left out")
                values, have = np.squeeze(values, axis), have.replace(letter, "")
        for letter in layout:
            if letter not in have:
                if letter in "DHW":
                    raise ShapeError(f"the image has no axis {letter}")
                values, have = values[None], letter + have
        return replace(self, values=np.transpose(values, [have.index(a) for a in layout]), layout=layout)
