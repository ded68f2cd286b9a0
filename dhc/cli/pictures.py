"""Reading images of strangers: sizes are checked before anything is decoded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import MissingExtraError, ModelError, ResourceError, UnsupportedError

from dhc.cli.preprocessing import Array, Picture

MAX_PIXELS = 1 << 27
"""Larger images are refused: decoded to float32 they would take 1.5 GiB."""
_MAX_FILE = 1 << 30
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def read_picture(path: Path, channels: int | None) -> Picture:
    """Decodes an image file.

    Args:
        path: an image that pillow reads, or a DICOM file with one frame.
        channels: 1, 3 or 4 to convert to grey, RGB or RGBA; None to keep what the file has.

    Raises:
        MissingExtraError: pillow or pydicom is not installed.
        ModelError: the file is damaged.
        ResourceError: it declares more pixels than are allowed.
    """
    if path.stat().st_size > _MAX_FILE:
        raise ResourceError(f"the image has {path.stat().st_size} bytes, more than 1 GiB", _MAX_FILE, path)
    return _read_dicom(path, channels) if path.suffix.lower() in DICOM_SUFFIXES else _read_image(path, channels)


def _check_pixels(width: int, height: int, path: Path) -> None:
    if width <= 0 or height <= 0:
        raise ModelError(f"the image declares {width} x {height} pixels", path)
    if width * height > MAX_PIXELS:
        raise ResourceError(
            f"the image declares {width} x {height} pixels, more than the {MAX_PIXELS} allowed",
            MAX_PIXELS,
            path,
            "make it smaller, or give the values as .npy",
        )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("imaging", "reading images (pillow)") from None
    return Image


def _read_image(path: Path, channels: int | None) -> Picture:
    image_module = _pillow()
    with warnings.catch_warnings():
        # Our own limit below is the stricter one.
        warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
        try:
            with image_module.open(path) as image:
                _check_pixels(*image.size, path)
                values, high = _decoded(image, channels)
        except image_module.UnidentifiedImageError:
            raise ModelError("the file is not an image that pillow knows", path, "give .png, .jpg or .npy") from None
        except image_module.DecompressionBombError:
            raise ResourceError("the image declares far too many pixels", MAX_PIXELS, path) from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
            raise ModelError(f"the image is damaged: {error}", path) from None
    return Picture(values, 0.0, high)


def _decoded(image: Any, channels: int | None) -> tuple[Array, float]:
    """Float values ``[C, H, W]`` and the largest value that the pixel type can hold."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        high = 65535.0 if image.mode != "F" else 1.0
        plane = np.asarray(image, np.float32)[None]
        return (np.repeat(plane, channels, 0) if channels in (3, 4) else plane), high
    mode = _CHANNELS.get(channels or 0)
    if mode is None:
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    values = np.asarray(image.convert(mode), np.float32)
    return (values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))), 255.0


def _read_dicom(path: Path, channels: int | None) -> Picture:
    from dhc.ecvl_ops.io import dicom_codecs
    from dhc.ecvl_ops.io.dicom_file import damaged, opened
    from dhc.ecvl_ops.io.limits import Limits
    from dhc.ecvl_ops.io.quiet import quiet
    from dhc.ecvl_ops.io.source import Source

    with quiet():
        dataset = opened(Source.of(path), Limits(values=_MAX_FILE, file=_MAX_FILE))
        try:
            rows, columns = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
            frames = int(dataset.get("NumberOfFrames", 1) or 1)
            _check_pixels(columns, rows, path)
            if frames != 1:
                raise UnsupportedError(
                    f"the file holds {frames} frames, and an image input takes one", where=path,
                    hint="save the frames you want as .npy",
                )  # fmt: skip
            dicom_codecs.install()
            return _dicom_picture(dataset, dataset.pixel_array, channels)
        except (ModelError, ResourceError):
            raise
        except Exception as error:  # pydicom and its decoders raise whatever a damaged file leads them to
            raise damaged(error, str(path)) from None


def _dicom_picture(dataset: Any, pixels: Any, channels: int | None) -> Picture:
    from dhc.ecvl_ops.io.dicom import window_of

    stored = int(dataset.get("BitsStored", 8))
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    low, high = (-(1 << (stored - 1)), (1 << (stored - 1)) - 1) if signed else (0, (1 << stored) - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    values = np.asarray(pixels, np.float32)
    if values.ndim == 3:
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
        return Picture(_fit_channels(values, channels), float(low), float(high))
    values = values * np.float32(slope) + np.float32(intercept)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    window = window_of(dataset)
    if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1":  # small values are bright
        values = np.float32(ends[0] + ends[1]) - values
        window = None if window is None else (ends[0] + ends[1] - window[1], ends[0] + ends[1] - window[0])
    return Picture(_fit_channels(values[None], channels), ends[0], ends[1], window)


def _fit_channels(values: Array, channels: int | None) -> Array:
    if channels is None or channels == len(values):
        return values
    if len(values) == 1:
        return np.repeat(values, channels, 0)
    if channels == 1:
        return np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), values[:3], 1)[None]
    raise ModelError(f"the image has {len(values)} channels and the input takes {channels}")


def resized(values: Array, height: int, width: int) -> Array:
    """Bilinear resizing of ``[C, H, W]`` values; shrinking averages, as pillow does it."""
    if values.shape[1:] == (height, width):
        return values
    image_module = _pillow()
    planes = [
        np.asarray(image_module.fromarray(np.ascontiguousarray(plane)).resize((width, height), image_module.BILINEAR))
        for plane in values
    ]
    return np.stack(planes)
