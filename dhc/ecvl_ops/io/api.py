"""The functions that users call to read and write images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Union

from dhc_runtime.errors import DhcError, ModelError, UsageError
from dhc_runtime.safe_write import atomic_file

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io import sandbox
from dhc.ecvl_ops.io.formats import Header, Request, by_suffix
from dhc.ecvl_ops.io.limits import DEFAULT, Limits
from dhc.ecvl_ops.io.reading import probe_here, read_here
from dhc.ecvl_ops.io.source import Readable, Source

Region = Mapping[str, tuple[int, int]]
PathLike = Union[str, "os.PathLike[str]"]


def probe(source: Readable, *, limits: Limits = DEFAULT, trusted: bool = False, name: str = "") -> Header:
    """What a file says of itself: format, sizes, element type, spacing. No samples are decoded.

    Args:
        source: a path, bytes, or a stream, which is read to its end.
        limits: what the file may ask for.
        trusted: work in this process instead of a confined one.
        name: for messages when the source has none.

    Raises:
        DhcError: the file is damaged, beyond the limits, or of no known format.
    """
    given = Source.of(source, name)
    if trusted:
        return probe_here(given, limits)
    with sandbox.decoder() as decoder:
        header: Header = decoder.probe(given, limits)
    return header


def read(
    source: Readable,
    *,
    region: Region | None = None,
    page: int | None = None,
    level: int = 0,
    window: bool = False,
    rescale: bool = True,
    limits: Limits = DEFAULT,
    trusted: bool = False,
    name: str = "",
) -> Image:
    """Reads an image, a volume or a signal.

    Args:
        source: a path, bytes, or a stream, which is read to its end.
        region: for spatial axes out of D, H, W the first and one past the last sample, e.g. ``{"D": (0, 20)}``.
        page: TIFF: only this page; by default all pages of one size are slices.
        level: slides: of the pyramid, 0 the largest.
        window: DICOM: through the window (VOI LUT) that the file names, to 0..1.
        rescale: real values (HU for CT) where the file has a scale; False gives the stored numbers.
        limits: what the file may ask for.
        trusted: decode in this process instead of a confined one; quicker by the transfer of the samples.
        name: for messages when the source has none.

    Raises:
        DhcError: the file is damaged, beyond the limits, of no known format, or needs an extra that is not installed.
    """
    given = Source.of(source, name)
    request = Request(page, level, dict(region or {}), window, rescale)
    if trusted:
        return read_here(given, limits, request)
    with sandbox.decoder() as decoder:
        image: Image = decoder.read(given, limits, request)
    return image


def series_in(folder: PathLike, *, limits: Limits = DEFAULT, trusted: bool = False) -> dict[str, list[Path]]:
    """The DICOM series of a folder: paths of the files by series UID; other files are left out.

    Raises:
        UsageError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError("there is no such folder", str(root))
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name == "DICOMDIR":
            continue
        try:
            header = probe(path, limits=limits, trusted=trusted)
        except DhcError:
            continue  # not an image; damaged slices show as gaps when the series is read
        if header.format == "DICOM" and "SeriesInstanceUID" in header.metadata:
            found.setdefault(str(header.metadata["SeriesInstanceUID"]), []).append(path)
    return found


def read_series(
    source: PathLike | Sequence[PathLike],
    *,
    series: str = "",
    gaps: str = "refuse",
    region: Region | None = None,
    window: bool = False,
    rescale: bool = True,
    limits: Limits = DEFAULT,
    trusted: bool = False,
) -> Image:
    """Reads the slices of a DICOM series as one volume, sorted by their positions.

    Args:
        source: a folder, or the files.
        series: UID of the series, where a folder holds several.
        gaps: "refuse" series in which slices are missing or uneven, or "keep" the slices that are there.
        region: along D, H and W.
        window: see `read`.
        rescale: see `read`.
        limits: of each file and of the volume.
        trusted: see `read`.

    Returns:
        ``DHW`` (``DHWC`` with colours) with spacing, origin and directions. Its metadata names the files and gaps.

    Raises:
        ModelError: the slices do not make a volume: which one, and why.
        UsageError: the folder has several series, or none.
    """
    from dhc.ecvl_ops.io.dicom_series import joined

    if gaps not in ("refuse", "keep"):
        raise UsageError(f"gaps={gaps!r}: it is 'refuse' or 'keep'")
    paths = _series_files(source, series, limits, trusted)
    flat = {letter: ends for letter, ends in (region or {}).items() if letter != "D"}
    images = [read(path, region=flat, window=window, rescale=rescale, limits=limits, trusted=trusted) for path in paths]
    deep = {letter: ends for letter, ends in (region or {}).items() if letter == "D"}
    return joined(images, [str(path) for path in paths], limits, Request(region=deep), gaps)


def _series_files(source: Any, series: str, limits: Limits, trusted: bool) -> list[Path]:
    if not isinstance(source, (str, os.PathLike)):
        paths = [Path(os.fspath(path)) for path in source]
        if not paths:
            raise UsageError("no files of a series are given")
        return paths
    found = series_in(source, limits=limits, trusted=trusted)
    if series:
        if series not in found:
            raise UsageError(f"the folder has no series {series}", str(source), f"it has {', '.join(found) or 'none'}")
        return found[series]
    if len(found) != 1:
        listing = ", ".join(f"{uid} ({len(paths)} files)" for uid, paths in found.items())
        raise UsageError(
            f"the folder has {len(found)} DICOM series{': ' + listing if found else ''}", str(source),
            "choose one by `series=`" if found else "give a folder with DICOM files",
        )  # fmt: skip
    return next(iter(found.values()))


def write(image: Image, target: PathLike | BinaryIO, *, suffix: str = "", **options: Any) -> None:
    """Writes an image; a file appears whole or not at all.

    Args:
        image: what to write.
        target: a path, whose suffix says the format, or a stream.
        suffix: of the format, for streams: ``.png``, ``.nii.gz``.
        options: of the format: ``compress`` (TIFF, NIfTI), ``quality`` (JPEG), see the modules.

    Raises:
        UnsupportedError: the format cannot hold such an image.
        ResourceError: there is no room.
    """
    stream = hasattr(target, "write")
    name = suffix or ("" if stream else os.fspath(target))  # type: ignore[arg-type]
    if not name:
        raise UsageError("writing to a stream needs `suffix`, such as '.png'")
    known = by_suffix(name)
    if known.module == "raster":
        options["codec"] = known.name
    if known.module == "nifti":
        options.setdefault("compress", name.lower().endswith(".gz"))
    code = known.code()
    if stream:
        code.write(image, target, **options)
        return
    if not isinstance(image, Image):
        raise ModelError(f"{type(image).__name__} is not an Image")
    with atomic_file(os.fspath(target)) as file:  # type: ignore[arg-type]
        code.write(image, file, **options)
