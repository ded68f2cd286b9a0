"""NumPy's own files: plain arrays, never objects."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored
from dhc.ecvl_ops.io.region import region_shape, slices
from dhc.ecvl_ops.io.source import Source

_LAYOUTS = {1: "W", 2: "HW", 3: "DHW", 4: "CDHW", 5: "NCDHW"}


def probe(source: Source, limits: Limits) -> Header:
    """Shape and element type."""
    shape, _, dtype, _ = _header(source, limits)
    return Header("NumPy", shape, _LAYOUTS[len(shape)], dtype.name, "gray" if len(shape) < 4 else "none")


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The array, or a region of it."""
    shape, fortran, dtype, offset = _header(source, limits)
    layout = _LAYOUTS[len(shape)]
    part = slices(layout, shape, request.region, source.name)
    check_declared(region_shape(part), dtype, limits, source.name)
    if source.path is not None:
        stored = np.memmap(source.path, dtype, "r", offset, shape, "F" if fortran else "C")
    else:
        content = source.content or b""
        stored = np.ndarray(shape, dtype, content, offset, order="F" if fortran else "C")  # type: ignore[assignment]
    values = np.ascontiguousarray(stored[part]).astype(dtype.newbyteorder("="), copy=False)
    return Image(np.array(values), layout, "gray" if len(shape) < 4 else "none")


def write(image: Image, stream: BinaryIO) -> None:
    """Writes the samples; spacing and the rest are lost."""
    np.save(stream, np.ascontiguousarray(image.values), allow_pickle=False)


def _header(source: Source, limits: Limits) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    with source.open() as stream:
        try:
            version = np.lib.format.read_magic(stream)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = reader(stream, max_header_size=10_000)
        except (ValueError, KeyError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ModelError(f"the header of the array is damaged: {error}", source.name) from None
        offset = stream.tell()
    if dtype.hasobject or dtype.kind not in "fiub":
        raise UnsupportedError(f"arrays of {dtype} are not images", where=source.name)
    if not 1 <= len(shape) <= 5:
        raise UnsupportedError(f"an array of {len(shape)} axes is not an image", where=source.name)
    total = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    check_stored(total, source.size - offset, source.name)
    if any(n <= 0 for n in shape):
        raise ModelError(f"the file declares an array of {shape}", source.name)
    return tuple(map(int, shape)), bool(fortran), dtype, offset
