"""Named preprocessing of images: from the values of a file to those that a network was trained on."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc_runtime.errors import UsageError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        values: float32 ``[C, H, W]``; C is 1 (grey), 3 (red, green, blue) or 4 (with alpha).
        low: smallest value that its pixel type can hold (after the rescaling that a DICOM file asks for).
        high: largest such value.
        window: lower and upper end of the window that a DICOM file names, None without one.
    """

    values: Array
    low: float
    high: float
    window: tuple[float, float] | None = None


def _unit(picture: Picture) -> Array:
    return (picture.values - np.float32(picture.low)) / np.float32(picture.high - picture.low)


def _minmax(picture: Picture) -> Array:
    low, high = picture.values.min(), picture.values.max()
    return (picture.values - low) / (high - low if high > low else np.float32(1))


def _standard(picture: Picture) -> Array:
    deviation = picture.values.std()
    return (picture.values - picture.values.mean()) / (deviation if deviation > 0 else np.float32(1))


def _peak(picture: Picture) -> Array:
    high = picture.values.max()
    return picture.values / (high if high > 0 else np.float32(1))


def _imagenet(picture: Picture) -> Array:
    if len(picture.values) not in (1, 3):
        raise UsageError("preprocessing 'imagenet' takes grey or RGB images", hint="use --pre unit")
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    deviation = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
    if len(picture.values) == 1:
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    return (_unit(picture) - mean) / deviation


def _gray(picture: Picture) -> Array:
    unit = _unit(picture)
    if len(unit) == 1:
        return unit
    # ITU-R BT.601, as JPEG files and most grey conversions use it.
    luma = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), unit[:3], 1)[None]
    return np.repeat(luma, len(unit), 0)


def _window(picture: Picture) -> Array:
    if picture.window is None:
        raise UsageError("preprocessing 'window' needs a window, which the file does not name", hint="use --pre minmax")
    low, high = picture.window
    return np.clip((picture.values - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)


@dataclass(frozen=True)
class Preprocessing:
    """One way to prepare images."""

    name: str
    doc: str
    apply: Callable[[Picture], Array]


PREPROCESSING = {
    p.name: p
    for p in (
        Preprocessing("none", "values of the file: 0..255 for 8 bits, HU for DICOM", lambda p: p.values),
        Preprocessing("unit", "0..1: divided by the largest value of the pixel type", _unit),
        Preprocessing("minmax", "0..1: from the smallest to the largest value of this image", _minmax),
        Preprocessing("peak", "divided by the largest value of this image", _peak),
        Preprocessing("standard", "mean 0 and deviation 1 over this image", _standard),
        Preprocessing("centered", "-1..1: unit, then (v - 0.5) / 0.5", lambda p: _unit(p) * 2 - 1),
        Preprocessing("centered127", "(v - 127) / 128 of 8-bit values", lambda p: (_unit(p) * 255 - 127) / 128),
        Preprocessing("imagenet", "unit, then ImageNet's mean and deviation by channel (averaged for grey)", _imagenet),
        Preprocessing("gray", "unit, then luma in every channel", _gray),
        Preprocessing("inverted", "1 - unit: dark strokes on bright paper become bright ones", lambda p: 1 - _unit(p)),
        Preprocessing("bgr", "unit with the channels in the order blue, green, red", lambda p: _unit(p)[::-1]),
        Preprocessing("window", "0..1 over the window that the DICOM file names, clipped", _window),
    )
}  # fmt: skip


def find_preprocessing(name: str) -> Preprocessing:
    """The preprocessing of a name.

    Raises:
        UsageError: there is none; the message lists all.
    """
    found = PREPROCESSING.get(name)
    if found is None:
        close = difflib.get_close_matches(name, PREPROCESSING, 1)
        raise UsageError(
            f"there is no preprocessing {name!r}; there are {', '.join(PREPROCESSING)}",
            hint=f"did you mean {close[0]!r}?" if close else "`dhc run --pre list` explains them",
        )
    return found
