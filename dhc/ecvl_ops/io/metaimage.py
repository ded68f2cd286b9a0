"""MetaImage (.mha) with its samples in the same file, plain or deflated. Files that point to others are refused."""

from __future__ import annotations

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits, check_declared
from dhc.ecvl_ops.io.region import slices
from dhc.ecvl_ops.io.source import Source
from dhc.ecvl_ops.io.text_header import lines_of, numbers, samples, sizes

_TYPES = {
    "MET_CHAR": "int8", "MET_UCHAR": "uint8", "MET_SHORT": "int16", "MET_USHORT": "uint16", "MET_INT": "int32",
    "MET_UINT": "uint32", "MET_LONG_LONG": "int64", "MET_ULONG_LONG": "uint64", "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}  # fmt: skip


def probe(source: Source, limits: Limits) -> Header:
    """Sizes, element type and spacing."""
    return _header(source, limits)[0]


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The volume, or a region of it."""
    header, fields, offset, matrix = _header(source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    big = _truth(fields, "binarydatabyteordermsb") or _truth(fields, "elementbyteordermsb")
    stored = np.dtype(header.dtype).newbyteorder(">" if big else "<")
    packing = "zlib" if _truth(fields, "compresseddata") else ""
    with source.open() as stream:
        stream.seek(offset)
        values = samples(stream, source.size - offset, header.shape, stored, packing, limits, source.name)
    image = Image(np.ascontiguousarray(values[part]), header.layout, header.color)
    first = [part[image.layout.index(letter)].start for letter in image.spatial]
    rank = len(image.spatial)
    matrix[:rank, rank] += matrix[:rank, :rank] @ first
    return image.with_affine(matrix)


def _truth(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "false").lower() in ("true", "1")


def _header(source: Source, limits: Limits) -> tuple[Header, dict[str, str], int, np.ndarray]:
    where = source.name
    with source.open() as stream:
        fields = lines_of(stream, b"elementdatafile", "=", where)
        offset = stream.tell()
    if fields["elementdatafile"].upper() != "LOCAL":
        raise UnsupportedError(
            "the samples of this MetaImage are in another file", where=where, hint="convert it to one .mha file"
        )
    if not _truth({"binarydata": "true", **fields}, "binarydata"):
        raise UnsupportedError("MetaImage files of text are not read", where=where)
    name = _TYPES.get(fields.get("elementtype", "").upper())
    if name is None:
        raise UnsupportedError(f"MetaImage samples of the type {fields.get('elementtype')!r} are not read", where=where)
    rank = sizes(fields.get("ndims", ""), where)[0]
    shape = tuple(reversed(sizes(fields.get("dimsize", ""), where)))
    channels = sizes(fields.get("elementnumberofchannels", "1"), where)[0]
    if len(shape) != rank or not 2 <= rank <= 3:
        raise UnsupportedError(f"MetaImages of the sizes {shape[::-1]} are not read", where=where)
    layout, color = "DHW"[3 - rank :], "gray"
    if channels > 1:
        shape, layout, color = (*shape, channels), layout + "C", {3: "rgb", 4: "rgba"}.get(channels, "none")
    check_declared(shape, name, limits, where)
    matrix = _matrix(fields, rank, where)
    spacing = tuple(float(v) for v in np.linalg.norm(matrix[:rank, :rank], axis=0))
    return Header("MetaImage", shape, layout, name, color, spacing), fields, offset, matrix


def _matrix(fields: dict[str, str], rank: int, where: str) -> np.ndarray:
    """Array positions to LPS millimetres, which is MetaImage's own space."""

    def given(names: tuple[str, ...], default: list[float]) -> np.ndarray:
        for name in names:
            if name in fields:
                found = numbers(fields[name], where)
                if len(found) != len(default):
                    raise ModelError(f"the MetaImage has {len(found)} numbers in {name}, not {len(default)}", where)
                return np.array(found)
        return np.array(default)

    spacing = given(("elementspacing", "elementsize"), [1.0] * rank)
    origin = given(("offset", "position", "origin"), [0.0] * rank)
    # Each row of the matrix is the direction of one of the file's axes.
    directions = given(("transformmatrix", "rotation", "orientation"), list(np.eye(rank).ravel())).reshape(rank, rank)
    if not np.all(spacing > 0) or not np.all(np.linalg.norm(directions, axis=1) > 0):
        raise ModelError("the MetaImage has an axis without length", where)
    matrix = np.eye(rank + 1)
    matrix[:rank, :rank] = (directions.T * spacing)[:, ::-1]
    matrix[:rank, rank] = origin
    return matrix
