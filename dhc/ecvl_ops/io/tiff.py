"""TIFF and BigTIFF by tifffile: single images, stacks of pages, pyramids."""

from __future__ import annotations

import io
import struct
from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError, UsageError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request, missing
from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored
from dhc.ecvl_ops.io.region import region_shape, slices
from dhc.ecvl_ops.io.source import Source

_DAMAGED = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, ZeroDivisionError, EOFError,
    OverflowError, AssertionError, RuntimeError, NotImplementedError, RecursionError,
)  # fmt: skip
"""What tifffile and imagecodecs raise for damaged files (`RuntimeError` is the base of the codecs' own errors)."""
_RATIO = 40_000
"""Stored bytes times this bound the samples of any compression of TIFF; run lengths and LZMA pack the most."""
_MAX_PAGES = 100_000
_MINISWHITE, _RGB, _PALETTE, _YCBCR = 0, 2, 3, 6  # values of the tag PhotometricInterpretation
_SEPARATE = 2  # of PlanarConfiguration


def probe(source: Source, limits: Limits) -> Header:
    """Size, element type and pages of the first series."""
    with _opened(source) as file:
        return _header(file, source, limits, None)[0]


def read(source: Source, limits: Limits, request: Request) -> Image:
    """One page, or all pages of one size as slices: ``HW``, ``HWC``, ``DHW`` or ``DHWC``."""
    with _opened(source) as file:
        header, pages = _header(file, source, limits, request)
        part = slices(header.layout, header.shape, request.region, source.name)
        check_declared(region_shape(part), header.dtype, limits, source.name)
        try:
            if "D" in header.layout:
                values = np.stack([_page(file.pages[n], source)[part[1:]] for n in pages[part[0]]])
            else:
                values = _page(file.pages[pages[0]], source)[part]
        except _DAMAGED as error:
            raise _failure(error, source) from None
    return Image(
        np.ascontiguousarray(values).astype(header.dtype, copy=False),
        header.layout,
        header.color,
        header.spacing,
        metadata=header.metadata,
    )


def write(image: Image, stream: BinaryIO, *, compress: bool = True) -> None:
    """Writes any element type: slices become pages, spacing the resolution.

    Args:
        image: without an axis N.
        stream: where to.
        compress: deflate.
    """
    tifffile = _tifffile()
    if "N" in image.layout:
        image = image.moved(image.layout.replace("N", ""))
    order = image.spatial + ("C" if "C" in image.layout else "")
    values = np.ascontiguousarray(image.moved(order).values)
    if image.color == "bgr":
        values = np.ascontiguousarray(values[..., ::-1])
    options: dict[str, Any] = {"photometric": "rgb" if image.color in ("rgb", "rgba", "bgr") else "minisblack"}
    if image.color == "rgba":
        options["extrasamples"] = ["unassalpha"]
    if image.spacing:
        row, column = image.spacing[-2:]
        options |= {"resolution": (10 / column, 10 / row), "resolutionunit": "CENTIMETER"}
    axes = {"HW": "YX", "DHW": "ZYX", "HWC": "YXS", "DHWC": "ZYXS"}.get(order)
    if axes is None:
        raise UnsupportedError(f"a TIFF file cannot hold the axes {image.layout}")
    large = values.nbytes > 3 << 30
    metadata: dict[str, Any] = {"axes": axes}
    if len(image.spacing) == 3:
        metadata["spacing"] = image.spacing[0]
    written = io.BytesIO()  # tifffile wants a name of every file, which temporary ones have not
    tifffile.imwrite(
        written, values, bigtiff=large, compression="zlib" if compress else None, metadata=metadata, **options
    )
    stream.write(written.getbuffer())


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise missing("reading and writing TIFF files (tifffile)") from None
    return tifffile


def _opened(source: Source) -> Any:
    tifffile = _tifffile()
    try:
        return tifffile.TiffFile(source.open(), name=source.name)
    except (*_DAMAGED, tifffile.TiffFileError) as error:
        raise _failure(error, source) from None


def _failure(error: BaseException, source: Source) -> Exception:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if "imagecodecs" in text and "requires" in text:
        return missing("this compression of TIFF files (imagecodecs)")
    return ModelError(f"the TIFF file is damaged: {text}", source.name)


def _header(file: Any, source: Source, limits: Limits, request: Request | None) -> tuple[Header, list[int]]:
    """The header of what is asked for, and the numbers of its pages."""
    try:
        count = len(file.pages)
        if not 0 < count <= _MAX_PAGES:
            raise ModelError(f"the TIFF file declares {count} pages", source.name)
        first = request.page if request is not None and request.page is not None else 0
        if not 0 <= first < count:
            raise UsageError(f"there is no page {first}: the file has {count}", source.name)
        page = file.pages[first]
        shape, dtype, color = _page_type(page, source, limits)
        pages = [first]
        if request is None or request.page is None:
            pages += [n for n in range(1, count) if _same(file.pages[n], page)]
        levels = tuple((int(level.shape[0]), int(level.shape[1])) for level in _levels(file))
        spacing = _spacing(page)
        compression = getattr(page.compression, "name", str(page.compression))
        metadata = {"compression": compression, "description": str(page.description or "")[:10_000]}
    except (ModelError, UsageError):
        raise
    except _DAMAGED as error:
        raise _failure(error, source) from None
    layout = "HW" if len(shape) == 2 else "HWC"
    if len(pages) > 1 and not levels:
        layout, shape = "D" + layout, (len(pages), *shape)
        between = _between(page)
        spacing = (between, *spacing) if spacing and between else ()
        check_declared(shape, np.uint8, limits, source.name)
    else:
        pages = pages[:1]
    return Header("TIFF", shape, layout, dtype, color, spacing, "raw", count, levels, metadata), pages


def _page_type(page: Any, source: Source, limits: Limits) -> tuple[tuple[int, ...], str, str]:
    """Shape ``HW`` or ``HWC``, element type and colour space of a page, checked against limits and stored bytes."""
    height, width, samples = int(page.imagelength), int(page.imagewidth), int(page.samplesperpixel)
    if page.dtype is None or np.dtype(page.dtype).kind not in "fiub":
        raise UnsupportedError(f"TIFF samples of {page.bitspersample} bits are not read", where=source.name)
    if int(page.imagedepth) != 1:
        raise UnsupportedError("TIFF pages with a depth are not read", where=source.name)
    dtype = np.dtype(page.dtype)
    palette = int(page.photometric) == _PALETTE
    shape: tuple[int, ...] = (
        (height, width) if samples == 1 and not palette else (height, width, 3 if palette else samples)
    )
    check_declared((height, width), np.uint8, limits, source.name)
    declared = check_declared(shape, dtype, limits, source.name)
    check_stored(declared, sum(map(int, page.databytecounts)) * _RATIO, source.name)
    named = {_RGB: {3: "rgb", 4: "rgba"}, _YCBCR: {3: "rgb"}, _PALETTE: {1: "rgb"}}.get(int(page.photometric), {})
    color = named.get(samples, "gray" if samples == 1 else "none")
    return shape, "uint8" if palette else dtype.name, color


def _same(page: Any, first: Any) -> bool:
    full = getattr(page, "keyframe", page)
    return (full.imagelength, full.imagewidth, full.samplesperpixel, full.dtype) == (
        first.imagelength, first.imagewidth, first.samplesperpixel, first.dtype,
    ) and not full.is_reduced  # fmt: skip


def _levels(file: Any) -> list[Any]:
    series = file.series[0] if file.series else None
    return list(series.levels) if series is not None and len(series.levels) > 1 else []


def _page(page: Any, source: Source) -> np.ndarray:
    values = page.asarray(maxworkers=1)
    keyframe = getattr(page, "keyframe", page)
    if int(keyframe.planarconfig) == _SEPARATE and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if int(keyframe.photometric) == _MINISWHITE and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if int(keyframe.photometric) == _PALETTE:
        table = np.asarray(keyframe.colormap)  # 3 x 2^bits numbers of 16 bits
        if values.max(initial=0) >= table.shape[1]:
            raise ModelError("the TIFF file has samples beyond its palette", source.name)
        values = np.moveaxis(table[:, values], 0, -1)
        values = (values >> 8).astype(np.uint8)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return np.asarray(values)


def _spacing(page: Any) -> tuple[float, ...]:
    """Millimetres between rows and between columns, of files that name a unit."""
    unit = page.tags.get("ResolutionUnit")
    scale = {2: 25.4, 3: 10.0}.get(int(unit.value) if unit is not None else 0)
    if scale is None:
        return ()
    found = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        if tag is None or not tag.value[0] or not tag.value[1]:
            return ()
        found.append(scale * tag.value[1] / tag.value[0])
    return tuple(found)


def _between(page: Any) -> float | None:
    """Millimetres between slices, as `write` leaves them in the description."""
    import json

    try:
        value = json.loads(page.description).get("spacing")
    except (ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, (int, float)) and value > 0 else None
