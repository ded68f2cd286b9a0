"""Sizes that compressed frames declare in their own headers: decoders take memory and time for those."""

from __future__ import annotations

import struct
from typing import Any

from dhc_runtime.errors import ModelError

_JPEG_2000 = b"\xff\x4f\xff\x51"
_ALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame: all processes of JPEG, and JPEG-LS."""


def declared_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 stream; None for what is none of them."""
    at = frame.find(_JPEG_2000, 0, 4096)
    if at >= 0 and len(frame) >= at + 42:
        columns, rows, left, top = struct.unpack_from(">IIII", frame, at + 8)
        return rows - top, columns - left, int.from_bytes(frame[at + 40 : at + 42], "big")
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 < len(frame):
        if frame[at] != 0xFF:
            at += 1
            continue
        marker = frame[at + 1]
        if marker in _FRAMES:
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns, frame[at + 9]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def check_frame(dataset: Any, number: int, where: str) -> None:
    """Refuses a frame whose stream has another size than the data set says.

    Raises:
        ModelError: it has, or the stream has no header at all.
    """
    from pydicom.encaps import get_frame

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated or "JPEG" not in syntax.name:
        return
    frame = get_frame(dataset.PixelData, number, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    found = declared_size(frame)
    wanted = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    if found != wanted:
        said = "no size" if found is None else " x ".join(map(str, found))
        raise ModelError(
            f"frame {number} declares {said} and the file {' x '.join(map(str, wanted))} samples",
            where,
            "it is damaged",
        )
