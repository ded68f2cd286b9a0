"""What NRRD and MetaImage share: a header of lines ``name: value``, then samples, plain or deflated."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import ModelError

from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored

MOST_HEADER = 1 << 20
_STEP = 1 << 22


def lines_of(stream: BinaryIO, end: bytes, separator: str, where: str) -> dict[str, str]:
    """Fields up to a line, or to one that begins with ``end``; names in lower case.

    Raises:
        ModelError: the header does not end, or has lines that are no fields.
    """
    fields: dict[str, str] = {}
    taken = 0
    while True:
        line = stream.readline(MOST_HEADER)
        taken += len(line)
        if not line or taken > MOST_HEADER:
            raise ModelError("the header does not end", where, "the file is truncated or damaged")
        text = line.decode("latin-1").strip()
        if not end and not text:
            return fields
        if not text or text.startswith("#"):
            continue
        name, found, value = text.partition(separator)
        if not found:
            raise ModelError(f"a header line is no field: {text[:80]!r}", where)
        name = name.strip().lower()
        fields[name] = value.lstrip("=").strip()
        if end and name.encode() == end:
            return fields


def numbers(text: str, where: str) -> list[float]:
    """The numbers of a field.

    Raises:
        ModelError: it has something else, or numbers that are not finite.
    """
    try:
        found = [float(word) for word in text.replace("(", " ").replace(")", " ").replace(",", " ").split()]
    except ValueError:
        raise ModelError(f"the header has {text[:60]!r} where numbers are due", where) from None
    if not all(map(math.isfinite, found)):
        raise ModelError(f"the header has numbers that are not finite: {text[:60]!r}", where)
    return found


def sizes(text: str, where: str) -> list[int]:
    """Positive whole numbers of a field.

    Raises:
        ModelError: it has something else.
    """
    found = numbers(text, where)
    if not found or any(n < 1 or n != int(n) or n > 1 << 31 for n in found):
        raise ModelError(f"the header declares the sizes {text[:60]!r}", where)
    return [int(n) for n in found]


def samples(
    stream: BinaryIO, stored: int, shape: Sequence[int], dtype: np.dtype[Any], packing: str, limits: Limits, where: str
) -> np.ndarray:
    """The samples that follow in the stream.

    Args:
        stream: at their beginning.
        stored: bytes that the file has for them.
        shape: of the samples.
        dtype: as stored, with its byte order.
        packing: "", "gzip" or "zlib".
        limits: of their size.
        where: the file's name.

    Raises:
        ModelError: there are too few, or the packing is damaged.
        ResourceError: there are too many.
    """
    total = check_declared(shape, dtype, limits, where)
    check_stored(total, stored, where, compressed=bool(packing))
    values = np.empty(tuple(shape), dtype)
    target = values.reshape(-1).view(np.uint8).data
    try:
        filled = (
            _inflate(stream, target)
            if packing == "zlib"
            else _fill(gzip.GzipFile(fileobj=stream) if packing else stream, target)
        )
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"the samples are damaged: {error}", where) from None
    if filled != total:
        raise ModelError(f"the file ends after {filled} of {total} bytes of samples", where, "it is truncated")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _fill(stream: Any, target: memoryview) -> int:
    filled = 0
    while filled < len(target):
        got = stream.readinto(target[filled : filled + _STEP])
        if not got:
            break
        filled += got
    return filled


def _inflate(stream: BinaryIO, target: memoryview) -> int:
    unpacker, filled = zlib.decompressobj(), 0
    while filled < len(target) and not unpacker.eof:
        block = unpacker.unconsumed_tail or stream.read(1 << 20)
        if not block:
            break
        got = unpacker.decompress(block, min(len(target) - filled, _STEP))
        target[filled : filled + len(got)] = got
        filled += len(got)
    return filled
