"""The file formats: how each is recognised, and the module that knows it.

A module of a format has

    probe(source, limits) -> Header                what the header says; no samples are decoded
    read(source, limits, request) -> Image         the samples that are asked for
    write(image, stream, **options)                where the format can be written

and checks what a file declares before it takes memory. Modules import their libraries when they are called.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from dhc_runtime.errors import MissingExtraError, UnsupportedError

from dhc.ecvl_ops.io.source import Source


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        format: its name.
        shape: of the samples that `read` gives by default.
        layout: see `dhc.ecvl_ops.image.Image`.
        dtype: NumPy's name of the element type.
        color: colour space.
        spacing: millimetres, one for each spatial axis; empty when unknown.
        unit: of the intensities.
        pages: images in the file that have a size of their own (TIFF pages, levels of a slide).
        levels: sizes ``(height, width)`` of a pyramid's levels, the largest first.
        metadata: texts and numbers.
    """

    format: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    color: str = "gray"
    spacing: tuple[float, ...] = ()
    unit: str = "raw"
    pages: int = 1
    levels: tuple[tuple[int, int], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """Which part of a file to read.

    Attributes:
        page: number of the TIFF page; None reads pages of one size as slices.
        level: of a pyramid, 0 the largest.
        region: for spatial letters of the layout, first and one past the last sample.
        window: DICOM: apply the window (VOI LUT) that the file names, to 0..1.
        rescale: apply the linear map to real values that the file names (HU for CT).
    """

    page: int | None = None
    level: int = 0
    region: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    window: bool = False
    rescale: bool = True


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: as shown to users.
        suffixes: of its files, the first is used when writing.
        sniff: tells by the first bytes (of the unpacked file) whether it may be this format.
        module: where the code is, in this package.
        writes: images can be written.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool]
    module: str
    writes: bool = False

    def code(self) -> ModuleType:
        """The module of the format."""
        return import_module(f"dhc.ecvl_ops.io.{self.module}")


def _starts(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def _is_dicom(head: bytes) -> bool:
    # Without the preamble a data set begins with a group 0002 or 0008 element, in either byte order.
    return head[128:132] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0")


def _is_metaimage(head: bytes) -> bool:
    return b"ElementType" in head or head[:12].replace(b" ", b"").startswith((b"ObjectType=", b"NDims="))


FORMATS = (
    Format("DICOM", (".dcm", ".dicom", ".ima"), _is_dicom, "dicom", writes=True),
    Format("NIfTI", (".nii", ".nii.gz"), _is_nifti, "nifti", writes=True),
    Format("PNG", (".png",), _starts(b"\x89PNG\r\n\x1a\n"), "raster", writes=True),
    Format("JPEG", (".jpg", ".jpeg"), _starts(b"\xff\xd8\xff"), "raster", writes=True),
    Format("BMP", (".bmp",), _starts(b"BM"), "raster"),
    Format("GIF", (".gif",), _starts(b"GIF87a", b"GIF89a"), "raster"),
    Format("WebP", (".webp",), lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", "raster"),
    Format("PNM", (".pgm", ".ppm", ".pnm"), _starts(b"P2", b"P3", b"P5", b"P6"), "raster"),
    Format("TIFF", (".tif", ".tiff", ".btf"), _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "tiff", writes=True),
    Format("NRRD", (".nrrd",), _starts(b"NRRD000"), "nrrd"),
    Format("MetaImage", (".mha", ".mhd"), _is_metaimage, "metaimage"),
    Format("EDF", (".edf", ".bdf"), _starts(b"0       ", b"\xffBIOSEMI"), "edf"),
    Format("NumPy", (".npy",), _starts(b"\x93NUMPY"), "npy", writes=True),
)
"""In the order in which they are tried."""

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
SLIDE = Format("whole slide", SLIDE_SUFFIXES, lambda head: False, "slide")


def recognise(source: Source) -> Format:
    """The format of a source, by its content; by its suffix for slides, whose content is another format's.

    Raises:
        UnsupportedError: none of the formats; the message lists them.
    """
    if source.name.lower().endswith(SLIDE_SUFFIXES):
        return SLIDE
    head = source.head(1024)
    if head.startswith(b"\x1f\x8b"):
        head = _unpacked_head(source)
    for known in FORMATS:
        if known.sniff(head):
            return known
    if source.name.lower().endswith(FORMATS[0].suffixes):  # a data set without any preamble
        return FORMATS[0]
    raise UnsupportedError(
        "the file is none of the image formats that dhc knows",
        where=source.name,
        hint="it reads " + ", ".join(f.name for f in (*FORMATS, SLIDE)),
    )


def _unpacked_head(source: Source) -> bytes:
    with source.open() as stream:
        try:
            return gzip.GzipFile(fileobj=stream).read(1024)
        except (OSError, EOFError, zlib.error):
            return b""


def by_suffix(name: str) -> Format:
    """The format in which a file of this name is written.

    Raises:
        UnsupportedError: its suffix belongs to none that can be.
    """
    lower = name.lower()
    for known in FORMATS:
        if known.writes and lower.endswith(known.suffixes):
            return known
    writable = ", ".join(s for f in FORMATS if f.writes for s in f.suffixes)
    raise UnsupportedError("images cannot be written in the format of this suffix", where=name, hint=f"use {writable}")


def missing(what: str, extra: str = "imaging") -> MissingExtraError:
    """The error for a library that is not installed."""
    return MissingExtraError(extra, what)
