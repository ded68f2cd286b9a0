"""The one way in which an artifact's zip file is laid out.

All bytes of the zip structure follow from the names, sizes and CRC-32 values of the members and the final comment: the
writer emits them, the reader rebuilds and compares them. So no byte of the file escapes the checks, and every unzip
tool reads it. Members are stored uncompressed and start at multiples of 4096; ZIP64 records are used where a size or
offset needs them.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Sequence, Tuple

__all__ = ["ALIGNMENT", "Entry", "Layout", "end_record_size", "lay_out"]

ALIGNMENT = 4096
_LIMIT32 = 0xFFFFFFFF
_DOS_DATE = (1 << 5) | 1  # 1980-01-01
_PADDING_ID = 0xD935  # the id that Android's zipalign uses for alignment padding
_UTF8_NAMES = 0x0800
_MODE = (0o100644 << 16) & _LIMIT32


class Entry(NamedTuple):
    """One member: its name, bytes, and CRC-32."""

    name: str
    size: int
    crc: int


class Layout(NamedTuple):
    """The structure of the whole file.

    Attributes:
        headers: the local header (with padding) of each member and where it starts.
        data: where the data of each member starts.
        tail: the central directory and the end records, which follow the last member.
        size: bytes of the whole file.
    """

    headers: List[Tuple[int, bytes]]
    data: List[int]
    tail: bytes
    size: int


def end_record_size(comment: bytes) -> int:
    """Bytes of the end record with this comment."""
    return 22 + len(comment)


def _local_header(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode("ascii")
    big = entry.size >= _LIMIT32
    extra = struct.pack("<HHQQ", 1, 16, entry.size, entry.size) if big else b""
    stored = _LIMIT32 if big else entry.size
    # The padding field takes at least 6 bytes: id, size, and the alignment that it serves.
    length = 30 + len(name) + len(extra) + 6
    padding = -(offset + length) % ALIGNMENT
    extra += struct.pack("<HHH", _PADDING_ID, 2 + padding, ALIGNMENT) + bytes(padding)
    return (
        struct.pack(
            "<IHHHHHIIIHH",
            0x04034B50,
            45 if big else 20,
            _UTF8_NAMES,
            0,
            0,
            _DOS_DATE,
            entry.crc,
            stored,
            stored,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def _central_record(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode("ascii")
    wide = b""
    stored, place = entry.size, offset
    if entry.size >= _LIMIT32:
        wide += struct.pack("<QQ", entry.size, entry.size)
        stored = _LIMIT32
    if offset >= _LIMIT32:
        wide += struct.pack("<Q", offset)
        place = _LIMIT32
    extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    version = 45 if wide else 20
    return (
        struct.pack(
            "<IHHHHHHIIIHHHHHII",
            0x02014B50,
            0x0300 | version,
            version,
            _UTF8_NAMES,
            0,
            0,
            _DOS_DATE,
            entry.crc,
            stored,
            stored,
            len(name),
            len(extra),
            0,
            0,
            0,
            _MODE,
            place,
        )
        + name
        + extra
    )


def lay_out(entries: Sequence[Entry], comment: bytes) -> Layout:
    """The layout of a file with these members, in this order, and this comment."""
    headers: List[Tuple[int, bytes]] = []
    data: List[int] = []
    position = 0
    for entry in entries:
        header = _local_header(entry, position)
        headers.append((position, header))
        data.append(position + len(header))
        position += len(header) + entry.size
    directory = b"".join(_central_record(entry, start) for entry, (start, _) in zip(entries, headers))
    tail = directory
    place, count = position, len(entries)
    if position >= _LIMIT32:
        tail += struct.pack(
            "<IQHHIIQQQQ", 0x06064B50, 44, 0x0300 | 45, 45, 0, 0, count, count, len(directory), position
        )
        tail += struct.pack("<IIQI", 0x07064B50, 0, position + len(directory), 1)
        place = _LIMIT32
    tail += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), place, len(comment)) + comment
    return Layout(headers, data, tail, position + len(tail))
