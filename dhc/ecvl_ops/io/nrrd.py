"""NRRD with its samples in the same file: raw or gzip. Files that point to others are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits, check_declared
from dhc.ecvl_ops.io.region import slices
from dhc.ecvl_ops.io.source import Source
from dhc.ecvl_ops.io.text_header import lines_of, numbers, samples, sizes

_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_NAMES = {text: name for name, texts in _TYPES.items() for text in texts}
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


def probe(source: Source, limits: Limits) -> Header:
    """Sizes, element type and spacing."""
    return _header(source, limits)[0]


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The volume, or a region of it."""
    header, fields, offset, matrix = _header(source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    packing = {"raw": "", "gzip": "gzip", "gz": "gzip"}[fields.get("encoding", "raw").lower()]
    stored = np.dtype(header.dtype).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<")
    with source.open() as stream:
        stream.seek(offset)
        values = samples(stream, source.size - offset, header.shape, stored, packing, limits, source.name)
    image = Image(np.ascontiguousarray(values[part]), header.layout, header.color, metadata=header.metadata)
    if matrix is not None:
        first = [part[image.layout.index(letter)].start for letter in image.spatial]
        rank = len(image.spatial)
        matrix[:rank, rank] += matrix[:rank, :rank] @ first
        image = image.with_affine(matrix)
    return image


def _header(source: Source, limits: Limits) -> tuple[Header, dict[str, str], int, np.ndarray | None]:
    where = source.name
    with source.open() as stream:
        stream.readline(16)
        fields = lines_of(stream, b"", ":", where)
        offset = stream.tell()
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedError(
            "the samples of this NRRD file are in another file", where=where, hint="convert it to one .nrrd file"
        )
    if fields.get("encoding", "raw").lower() not in ("raw", "gzip", "gz"):
        raise UnsupportedError(f"NRRD files with the encoding {fields['encoding']!r} are not read", where=where)
    if fields.get("byte skip", "0") not in ("0", "-1") or fields.get("line skip", "0") != "0":
        raise UnsupportedError("NRRD files that skip bytes or lines are not read", where=where)
    name = _NAMES.get(fields.get("type", "").lower())
    if name is None:
        raise UnsupportedError(f"NRRD samples of the type {fields.get('type')!r} are not read", where=where)
    count = sizes(fields.get("dimension", ""), where)[0]
    shape = tuple(reversed(sizes(fields.get("sizes", ""), where)))
    if len(shape) != count or not 2 <= count <= 4:
        raise ModelError(f"the NRRD file declares {count} axes and the sizes {shape[::-1]}", where)
    colors = _color_axis(fields, count)
    rank = count - colors
    if not 2 <= rank <= 3:
        raise UnsupportedError(f"NRRD images of {rank} spatial axes are not read", where=where)
    layout = "DHW"[3 - rank :] + ("C" if colors else "")
    color = {3: "rgb", 4: "rgba", 1: "gray"}.get(shape[-1], "none") if colors else "gray"
    check_declared(shape, name, limits, where)
    matrix = _matrix(fields, rank, colors, where)
    spacing = () if matrix is None else tuple(float(v) for v in np.linalg.norm(matrix[:rank, :rank], axis=0))
    metadata = {"content": fields["content"][:1000]} if "content" in fields else {}
    return Header("NRRD", shape, layout, name, color, spacing, metadata=metadata), fields, offset, matrix


def _color_axis(fields: dict[str, str], count: int) -> int:
    """1 when the fastest axis holds colours or a vector."""
    kinds = fields.get("kinds", "").lower().split()
    known = kinds and kinds[0] in (
        "rgb-color",
        "rgba-color",
        "vector",
        "3-color",
        "4-color",
        "list",
        "rgbcolor",
        "rgbacolor",
    )
    directions = fields.get("space directions", "").split()
    return int(bool(known) or bool(directions and directions[0] == "none") or count == 4)


def _matrix(fields: dict[str, str], rank: int, colors: int, where: str) -> np.ndarray | None:
    """Array positions to LPS millimetres; None when the file says nothing of space."""
    space = fields.get("space", "").lower()
    matrix: Any = np.eye(rank + 1)
    vectors = re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    if vectors:
        columns = [numbers(v, where) for v in vectors]
        if len(columns) != rank or any(len(c) != rank for c in columns):
            raise ModelError(f"the NRRD file has directions {fields['space directions'][:80]!r} for {rank} axes", where)
        matrix[:rank, :rank] = np.array(columns[::-1]).T
        origin = numbers(fields.get("space origin", "0 " * rank), where)
        if len(origin) != rank:
            raise ModelError(f"the NRRD file has the origin {fields['space origin'][:60]!r} for {rank} axes", where)
        matrix[:rank, rank] = origin
        if rank == 3:
            sign = _TO_LPS.get(space)
            if sign is None:
                raise UnsupportedError(f"the NRRD space {space!r} is not that of a patient", where=where)
            matrix[:3] *= np.array(sign, float)[:, None]
    elif "spacings" in fields:
        found = numbers(fields["spacings"].lower().replace("nan", "0"), where)[colors:][::-1]
        if len(found) != rank or min(found) <= 0:
            return None
        matrix[:rank, :rank] = np.eye(rank)[:, ::-1] * np.array(found)
    else:
        return None
    return matrix if np.all(np.linalg.norm(matrix[:rank, :rank], axis=0) > 0) else None
