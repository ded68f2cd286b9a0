"""Whole slides by OpenSlide: regions of the levels of a pyramid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError, UsageError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request, missing
from dhc.ecvl_ops.io.limits import Limits, check_declared
from dhc.ecvl_ops.io.region import region_shape, slices
from dhc.ecvl_ops.io.source import Source


def probe(source: Source, limits: Limits) -> Header:
    """Sizes of all levels and the slide's properties."""
    slide = _opened(source)
    try:
        return _header(slide, 0, source)
    finally:
        slide.close()


def read(source: Source, limits: Limits, request: Request) -> Image:
    """A region of a level as RGB, ``HWC``; what was not scanned is white."""
    slide = _opened(source)
    try:
        header = _header(slide, request.level, source)
        part = slices("HWC", header.shape, request.region, source.name)
        check_declared(region_shape(part[:2]), np.uint32, limits, source.name)
        down = float(slide.level_downsamples[request.level])
        corner = round(part[1].start * down), round(part[0].start * down)
        size = part[1].stop - part[1].start, part[0].stop - part[0].start
        pixels = np.asarray(slide.read_region(corner, request.level, size))
    except Exception as error:
        raise _failure(error, source) from None
    finally:
        slide.close()
    alpha = pixels[..., 3:].astype(np.uint16)
    # OpenSlide's colours are not premultiplied: mix with white where nothing was scanned.
    colors = (pixels[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha) + 127) // 255
    image = Image(colors.astype(np.uint8), "HWC", "rgb", header.spacing, metadata=header.metadata)
    if header.spacing:
        affine = np.eye(3)
        affine[:2, :2] = np.eye(2)[:, ::-1] * np.array(header.spacing)
        affine[:2, 2] = affine[:2, :2] @ [part[0].start, part[1].start]
        image = image.with_affine(affine)
    return image


def _opened(source: Source) -> Any:
    try:
        import openslide
    except ImportError:
        raise missing("reading whole slides (openslide)", "wsi") from None
    if source.path is None:
        raise UnsupportedError("whole slides are read from files alone", where=source.name)
    try:
        return openslide.OpenSlide(str(source.path))
    except openslide.OpenSlideUnsupportedFormatError:
        raise ModelError("OpenSlide does not know this file", source.name) from None
    except openslide.OpenSlideError as error:
        raise _failure(error, source) from None


def _failure(error: Exception, source: Source) -> Exception:
    from dhc_runtime.errors import DhcError

    if isinstance(error, (DhcError, MemoryError)):
        return error
    return ModelError(f"the slide cannot be read: {' '.join(str(error).split())[:200]}", source.name, "it is damaged")


def _header(slide: Any, level: int, source: Source) -> Header:
    levels = tuple((int(height), int(width)) for width, height in slide.level_dimensions)
    if not 0 <= level < len(levels):
        raise UsageError(f"there is no level {level}: the slide has {len(levels)}", source.name)
    spacing = []
    for name in ("openslide.mpp-y", "openslide.mpp-x"):
        try:
            microns = float(slide.properties[name])
        except (KeyError, ValueError):
            break
        if math.isfinite(microns) and microns > 0:
            spacing.append(microns / 1000 * float(slide.level_downsamples[level]))
    metadata = {str(k)[:200]: str(v)[:1000] for k, v in list(slide.properties.items())[:2000]}
    found = tuple(spacing) if len(spacing) == 2 else ()
    return Header("whole slide", (*levels[level], 3), "HWC", "uint8", "rgb", found, levels=levels, metadata=metadata)
