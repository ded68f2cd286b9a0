"""The artifact file ``model.dhc``: a zip of stored, page-aligned members, all of it checked before it is used.

The manifest lists size, SHA-256 and CRC-32 of the other members; the zip comment holds the SHA-256 of the manifest.
What remains, the zip structure itself, has one canonical form (`dhc_runtime.zip_layout`) that the reader rebuilds and
compares.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import struct
import zlib
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, Union, overload

from dhc_runtime.errors import ArtifactError, ResourceError, UsageError
from dhc_runtime.safe_write import write_bytes
from dhc_runtime.strict_json import parse_table
from dhc_runtime.zip_layout import ALIGNMENT, Entry, Layout, end_record_size, lay_out

__all__ = ["FORMAT", "ArtifactReader", "artifact_chunks", "load_json", "write_artifact"]

FORMAT = 1
MANIFEST = "manifest.json"
_ORDER = ("plan.json", "graph.txt", "weights.safetensors")
_MAX_ENTRIES = 64
_MAX_MANIFEST = 4 << 20
_MAX_JSON = 32 << 20
_CHUNK = 1 << 20
_COMMENT_HEAD = b"dhc1 sha256="
_COMMENT_SIZE = len(_COMMENT_HEAD) + 64
_HINT = "The file is damaged or was changed: compile the model again or copy the file again"

Member = Union[bytes, bytearray, memoryview, Iterable[Any]]
Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]


def _member_order(name: str) -> Tuple[int, str]:
    return (_ORDER.index(name), "") if name in _ORDER else (len(_ORDER), name)


def _chunks(member: Member) -> List[memoryview]:
    parts: Iterable[Any] = [member] if isinstance(member, (bytes, bytearray, memoryview)) else member
    views = [memoryview(part) for part in parts]
    return [view.cast("B") for view in views if view.nbytes]


def _valid_name(name: Any) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        return False
    good = all(character.isascii() and (character.isalnum() or character in "._-/") for character in name)
    return good and all(part not in ("", ".", "..") for part in name.split("/"))


def artifact_chunks(manifest: Mapping[str, Any], members: Mapping[str, Member]) -> Iterator[Union[bytes, memoryview]]:
    """The bytes of an artifact in pieces, which need not be joined in memory.

    Args:
        manifest: the manifest without ``format`` and ``members``, which are added here.
        members: every other member by name, bytes-like or as an iterable of bytes-like pieces.
    """
    names = sorted(members, key=_member_order)
    if len(names) + 1 > _MAX_ENTRIES:
        raise UsageError("An artifact holds at most {} members, not {}".format(_MAX_ENTRIES, len(names) + 1))
    contents: List[List[memoryview]] = []
    table: Dict[str, Any] = {}
    entries: List[Entry] = []
    for name in names:
        if not _valid_name(name) or name == MANIFEST:
            raise UsageError("{!r} cannot be the name of a member of an artifact".format(name))
        pieces = _chunks(members[name])
        digest, crc, size = hashlib.sha256(), 0, 0
        for piece in pieces:
            digest.update(piece)
            crc = zlib.crc32(piece, crc)
            size += piece.nbytes
        contents.append(pieces)
        table[name] = {"bytes": size, "sha256": digest.hexdigest(), "crc32": crc & 0xFFFFFFFF}
        entries.append(Entry(name, size, crc & 0xFFFFFFFF))
    full = dict(manifest)
    full["format"] = FORMAT
    full["members"] = table
    text = json.dumps(full, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii")
    if len(text) > _MAX_MANIFEST:
        raise UsageError("The manifest takes {} bytes, more than the {} allowed".format(len(text), _MAX_MANIFEST))
    comment = _COMMENT_HEAD + hashlib.sha256(text).hexdigest().encode("ascii")
    layout = lay_out([Entry(MANIFEST, len(text), zlib.crc32(text) & 0xFFFFFFFF)] + entries, comment)
    for (_, header), pieces in zip(layout.headers, [[memoryview(text)]] + contents):
        yield header
        for piece in pieces:
            yield piece
    yield layout.tail


@overload
def write_artifact(path: None, manifest: Mapping[str, Any], members: Mapping[str, Member]) -> bytes: ...


@overload
def write_artifact(
    path: Union[str, "os.PathLike[str]"], manifest: Mapping[str, Any], members: Mapping[str, Member]
) -> None: ...


def write_artifact(
    path: Union[None, str, "os.PathLike[str]"], manifest: Mapping[str, Any], members: Mapping[str, Member]
) -> Optional[bytes]:
    """Writes an artifact; identical input gives identical bytes.

    Args:
        path: the file, which appears whole or not at all; None to get the bytes instead.
        manifest: the manifest without ``format`` and ``members``, which are added here.
        members: every other member by name, bytes-like or as an iterable of bytes-like pieces.

    Returns:
        The bytes of the file if ``path`` is None, otherwise None.
    """
    if path is None:
        return b"".join(artifact_chunks(manifest, members))
    write_bytes(path, artifact_chunks(manifest, members))
    return None


def load_json(data: Union[bytes, memoryview], what: str, limit: int = _MAX_JSON) -> Dict[str, Any]:
    """Parses a JSON table of an artifact strictly.

    Args:
        data: the text.
        what: what to call it in messages.
        limit: largest size in bytes.

    Raises:
        ArtifactError: it is too large, not valid JSON, no table, or names a key twice.
    """
    return parse_table(data, what, limit, _HINT)


class ArtifactReader:
    """Opens an artifact, checks all of it, and gives access to its members without copying them.

    Args:
        source: a path, the bytes of an artifact, or a binary file object.

    Attributes:
        name: what to call the artifact in messages.
        manifest: the checked manifest.

    Raises:
        ArtifactError: the file is no artifact, truncated, changed anywhere, or of an unknown format.
        UsageError: the file does not exist or cannot be read.
    """

    def __init__(self, source: Source) -> None:
        self.name = "artifact"
        self._map: Optional[mmap.mmap] = None
        self._view: memoryview = memoryview(b"")
        self._ranges: Dict[str, Tuple[int, int]] = {}
        self.manifest: Dict[str, Any] = {}
        try:
            self._open(source)
            self._check()
        except BaseException:
            self.close()
            raise

    def _open(self, source: Source) -> None:
        if isinstance(source, (bytes, bytearray, memoryview)):
            data = memoryview(source).cast("B")
            self._check_ends(data.nbytes, lambda start, stop: bytes(data[start:stop]))
            self._copy([data], data.nbytes)
            return
        if isinstance(source, (str, os.PathLike)):
            self.name = os.fspath(source)
            try:
                with open(self.name, "rb") as stream:
                    self._map_file(stream)
            except OSError as error:
                raise UsageError(
                    "The artifact cannot be read: {}".format(error.strerror or error),
                    self.name,
                    "Check the path and its permissions",
                ) from error
            return
        self.name = str(getattr(source, "name", "artifact"))
        try:
            source.fileno()
        except (OSError, AttributeError, io.UnsupportedOperation):
            data = memoryview(source.read())
            self._check_ends(data.nbytes, lambda start, stop: bytes(data[start:stop]))
            self._copy([data], data.nbytes)
        else:
            self._map_file(source)

    def _copy(self, pieces: List[memoryview], size: int) -> None:
        """Keeps the bytes in an anonymous map: it starts at a page, so that the members are aligned as in a file."""
        self._map = mmap.mmap(-1, size)
        for piece in pieces:
            self._map.write(piece)
        self._view = memoryview(self._map)

    def _map_file(self, stream: BinaryIO) -> None:
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size

        def read(start: int, stop: int) -> bytes:
            stream.seek(start)
            return stream.read(stop - start)

        # Before anything is mapped: a huge file that only looks like an artifact must not take address space.
        self._check_ends(size, read)
        try:
            self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            raise ResourceError(
                "The artifact of {} bytes cannot be mapped into memory: {}".format(size, error), size, self.name
            ) from error
        self._view = memoryview(self._map)

    def _fail(self, message: str) -> ArtifactError:
        return ArtifactError(message, self.name, _HINT)

    def _check_ends(self, size: int, read: Any) -> None:
        """Checks, from a few hundred bytes, that the ends look like an artifact and that the sizes fit the file."""
        tail_size = end_record_size(b"x" * _COMMENT_SIZE)
        if size < ALIGNMENT + tail_size:
            raise self._fail("The file is too short to be an artifact ({} bytes)".format(size))
        if read(0, 4) != b"PK\x03\x04":
            raise self._fail("The file is not an artifact of dhc")
        tail = read(size - tail_size, size)
        signature, _, _, _, count, _, _, comment_size = struct.unpack("<IHHHHIIH", tail[:22])
        if signature != 0x06054B50 or comment_size != _COMMENT_SIZE or not tail[22:].startswith(_COMMENT_HEAD):
            raise self._fail("The file is truncated, or not an artifact of dhc")
        if count > _MAX_ENTRIES:
            raise self._fail("The file declares {} members, more than the {} allowed".format(count, _MAX_ENTRIES))

    def _check(self) -> None:
        view, size = self._view, self._view.nbytes
        comment = bytes(view[size - _COMMENT_SIZE :])
        manifest_size = struct.unpack("<I", view[22:26])[0]
        start = ALIGNMENT
        if manifest_size > _MAX_MANIFEST or start + manifest_size > size:
            raise self._fail("The manifest declares {} bytes, more than there are or are allowed".format(manifest_size))
        text = view[start : start + manifest_size]
        if comment != _COMMENT_HEAD + hashlib.sha256(text).hexdigest().encode("ascii"):
            raise self._fail("The manifest does not match its hash")
        self.manifest = load_json(text, "manifest of " + self.name, _MAX_MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise ArtifactError(
                "The artifact has format {!r} and this runtime reads format {}".format(
                    self.manifest.get("format"), FORMAT
                ),
                self.name,
                "Install the dhc-runtime that matches the compiler, or compile the model again",
            )
        entries, digests = self._entries()
        layout = lay_out([Entry(MANIFEST, manifest_size, zlib.crc32(text) & 0xFFFFFFFF)] + entries, comment)
        self._compare(layout, size)
        self._ranges[MANIFEST] = (start, start + manifest_size)
        for entry, digest, offset in zip(entries, digests, layout.data[1:]):
            if self._hash(offset, offset + entry.size) != digest:
                raise self._fail("The member {} does not match its hash".format(entry.name))
            self._ranges[entry.name] = (offset, offset + entry.size)

    def _entries(self) -> Tuple[List[Entry], List[str]]:
        table = self.manifest.get("members")
        if not isinstance(table, dict) or len(table) + 1 > _MAX_ENTRIES:
            raise self._fail("The manifest lists no members, or too many")
        entries: List[Entry] = []
        digests: List[str] = []
        for name in sorted(table, key=_member_order):
            record = table[name]
            if not _valid_name(name) or name == MANIFEST or not isinstance(record, dict):
                raise self._fail("The manifest lists a member wrongly: {!r}".format(name[:100]))
            size, digest, crc = record.get("bytes"), record.get("sha256"), record.get("crc32")
            good = type(size) is int and 0 <= size <= self._view.nbytes and type(crc) is int and 0 <= crc <= 0xFFFFFFFF
            if not good or not isinstance(digest, str):
                raise self._fail("The manifest gives the member {} a size or hash that cannot be".format(name))
            assert isinstance(size, int) and isinstance(crc, int)
            entries.append(Entry(name, size, crc))
            digests.append(digest)
        return entries, digests

    def _compare(self, layout: Layout, size: int) -> None:
        if layout.size != size:
            raise self._fail("The file has {} bytes where its manifest describes {}".format(size, layout.size))
        for offset, header in layout.headers:
            if self._view[offset : offset + len(header)] != header:
                raise self._fail("The zip structure at byte {} is not as it was written".format(offset))
        if self._view[size - len(layout.tail) :] != layout.tail:
            raise self._fail("The zip directory is not as it was written")

    def _hash(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for position in range(start, stop, _CHUNK):
            digest.update(self._view[position : min(position + _CHUNK, stop)])
        return digest.hexdigest()

    @property
    def members(self) -> List[str]:
        """The names of all members, in file order."""
        return list(self._ranges)

    def member(self, name: str) -> memoryview:
        """The bytes of a member, inside the map of the file.

        Raises:
            ArtifactError: there is no such member.
        """
        try:
            start, stop = self._ranges[name]
        except KeyError:
            raise ArtifactError(
                "The artifact has no member {!r}".format(name), self.name, "Compile the model again"
            ) from None
        return self._view[start:stop]

    def close(self) -> None:
        """Lets go of the file. Arrays that still look into it keep it mapped."""
        self._ranges = {}
        self._view = memoryview(b"")
        self._map = None

    def __enter__(self) -> "ArtifactReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
