"""Pictures that pillow decodes: PNG, JPEG, BMP, GIF, WebP, PNM."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request, missing
from dhc.ecvl_ops.io.limits import Limits, check_declared
from dhc.ecvl_ops.io.region import slices
from dhc.ecvl_ops.io.source import Source

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
_MODES = {  # pillow's mode -> (mode to convert to, element type, colour space)
    "1": ("L", "uint8", "gray"),
    "L": ("L", "uint8", "gray"),
    "LA": ("RGBA", "uint8", "rgba"),
    "P": ("RGB", "uint8", "rgb"),
    "PA": ("RGBA", "uint8", "rgba"),
    "RGB": ("RGB", "uint8", "rgb"),
    "RGBA": ("RGBA", "uint8", "rgba"),
    "CMYK": ("RGB", "uint8", "rgb"),
    "YCbCr": ("RGB", "uint8", "rgb"),
    "I;16": ("I;16", "uint16", "gray"),
    "I;16B": ("I;16", "uint16", "gray"),
    "I": ("I", "int32", "gray"),
    "F": ("F", "float32", "gray"),
}
_DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, AttributeError, struct.error,
    ZeroDivisionError, OverflowError,
)  # fmt: skip
"""What pillow raises for files that are not what they seem."""


def probe(source: Source, limits: Limits) -> Header:
    """Size and element type, without decoding."""
    return _header(_opened(source), source, limits)


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The picture: ``HW``, or ``HWC`` with colours; the first one of an animation."""
    image = _opened(source)
    header = _header(image, source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    mode, _, _ = _mode(image)
    try:
        if header.metadata.get("bits") == 16 and header.color != "gray":
            values = _deep_png(source)
        else:
            values = np.asarray(image if image.mode == mode else image.convert(mode)).astype(header.dtype)
    except _DAMAGED as error:
        raise ModelError(f"the image is damaged: {error}", source.name) from None
    if values.shape != header.shape:
        raise ModelError(f"the image decodes to {values.shape} and declares {header.shape}", source.name)
    return Image(np.ascontiguousarray(values[part]), header.layout, header.color, metadata=header.metadata)


def write(image: Image, stream: BinaryIO, *, codec: str = "PNG", quality: int = 95) -> None:
    """Writes a picture of 8 or 16 bits.

    Args:
        image: ``HW``, ``HWC`` or ``CHW``; 8-bit grey, RGB or RGBA, or 16-bit grey.
        stream: where to.
        codec: PNG or JPEG.
        quality: of JPEG, 1 to 100.

    Raises:
        UnsupportedError: the element type or the channels do not fit the format.
    """
    picture = image.moved("HWC") if "C" in image.layout and image.channels > 1 else image.moved("HW")
    values, color = np.ascontiguousarray(picture.values), picture.color
    if color == "bgr":
        values, color = np.ascontiguousarray(values[..., ::-1]), "rgb"
    fits = values.dtype == np.uint8 and color in ("gray", "rgb", "rgba") and not (codec == "JPEG" and color == "rgba")
    if not fits and not (codec == "PNG" and values.dtype == np.uint16 and color == "gray"):
        raise UnsupportedError(
            f"{codec} cannot hold {color} samples of {values.dtype}",
            hint="convert them to uint8 first, or write TIFF, NIfTI or .npy",
        )
    _pillow().fromarray(values).save(stream, codec, quality=quality)


def _pillow() -> Any:
    try:
        from PIL import Image as Pictures
    except ImportError:
        raise missing("reading and writing pictures (pillow)") from None
    Pictures.MAX_IMAGE_PIXELS = None  # `Limits` is the bound, and stricter
    return Pictures


def _opened(source: Source) -> Any:
    pillow = _pillow()
    try:
        return pillow.open(source.open(), formats=_FORMATS)
    except pillow.UnidentifiedImageError:
        raise ModelError("the image is damaged: pillow does not recognise it", source.name) from None
    except _DAMAGED as error:
        raise ModelError(f"the image is damaged: {error}", source.name) from None


def _mode(image: Any) -> tuple[str, str, str]:
    """The mode to convert to, element type and colour space."""
    mode, dtype, color = _MODES[image.mode]
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA", "uint8", "rgba"
    if image.format == "PPM" and image.mode == "I":  # values up to 65535
        return mode, "uint16", color
    return mode, dtype, color


def _header(image: Any, source: Source, limits: Limits) -> Header:
    if image.mode not in _MODES:
        raise UnsupportedError(f"pictures of the mode {image.mode} are not read", where=source.name)
    width, height = image.size
    check_declared((height, width), np.uint8, limits, source.name)
    _, dtype, color = _mode(image)
    metadata: dict[str, Any] = {"format": image.format}
    if image.format == "PNG" and source.head(26)[24] == 16:
        # pillow drops the lower byte of 16-bit colours; another library decodes those.
        metadata["bits"] = 16
        if color != "gray" or source.head(26)[25] == 4:
            dtype, color = "uint16", "rgba" if source.head(26)[25] in (4, 6) else "rgb"
    channels = {"rgb": 3, "rgba": 4}.get(color)
    shape = (height, width) if channels is None else (height, width, channels)
    check_declared(shape, dtype, limits, source.name)
    dpi = image.info.get("dpi")
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(isinstance(d, (int, float)) and d > 0 for d in dpi):
        metadata["dpi"] = [float(dpi[0]), float(dpi[1])]
    try:
        frames = int(getattr(image, "n_frames", 1))
    except _DAMAGED as error:
        raise ModelError(f"the image is damaged: {error}", source.name) from None
    layout = "HW" if channels is None else "HWC"
    return Header(image.format, shape, layout, dtype, color, pages=frames, metadata=metadata)


def _deep_png(source: Source) -> np.ndarray:
    try:
        import imagecodecs
    except ImportError:
        raise missing("colours of 16 bits in PNG files (imagecodecs)") from None
    with source.open() as stream:
        values = np.asarray(imagecodecs.png_decode(stream.read()))
    if values.ndim == 3 and values.shape[2] == 2:  # grey with alpha
        values = values[..., [0, 0, 0, 1]]
    return values
