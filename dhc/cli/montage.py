"""A sheet of small grey images, each with the digit that a network read in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dhc.errors import MissingExtraError

_SCALE = 5
_CELL = (48, 62)
_MARGIN = 8
_PAPER = (250, 250, 248)
_INK = (40, 44, 52)
_WRONG = (200, 30, 30)


def write_montage(
    images: np.ndarray, labels: np.ndarray, predictions: np.ndarray, path: Path, columns: int = 20, rows: int = 10
) -> int:
    """Writes a PNG of ``columns * rows`` images with the prediction below each; wrong ones come first, in red.

    Args:
        images: float32 ``[N, side, side]``, 0 is empty paper, the largest value is the darkest stroke.
        labels: ``[N]`` true digits.
        predictions: ``[N]`` predicted digits.
        path: the PNG to write (through a temporary name, so that no half picture stays behind).
        columns: images in one row.
        rows: rows of images.

    Returns:
        How many images the sheet shows.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError("demo", "the montage of the demo (pillow)") from None
    wrong = predictions != labels
    order = np.argsort(~wrong, kind="stable")[: columns * rows]
    width = 2 * _MARGIN + columns * _CELL[0]
    header = 26
    height = 2 * _MARGIN + header + -(-len(order) // columns) * _CELL[1]
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    title = f"{len(labels)} digits held out, {int(wrong.sum())} read wrongly (first, in red: read, true)"
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    brightest = max(float(images.max()), 1.0)
    for place, index in enumerate(order):
        left = _MARGIN + place % columns * _CELL[0]
        top = _MARGIN + header + place // columns * _CELL[1]
        grey = np.uint8(255) - (images[index] * (255.0 / brightest)).astype(np.uint8)
        picture = Image.fromarray(grey)
        picture = picture.resize((picture.width * _SCALE, picture.height * _SCALE), Image.Resampling.NEAREST)
        sheet.paste(picture.convert("RGB"), (left + 2, top))
        bottom = top + picture.height
        if wrong[index]:
            draw.rectangle((left + 1, top - 1, left + 2 + picture.width, bottom), outline=_WRONG, width=2)
            draw.text((left + 3, bottom + 1), f"{predictions[index]}, {labels[index]}", fill=_WRONG, font=small)
        else:
            draw.text((left + 17, bottom + 1), str(predictions[index]), fill=_INK, font=small)
    temporary = path.with_name(path.name + ".part")
    sheet.save(temporary, format="PNG")
    temporary.replace(path)
    return len(order)
