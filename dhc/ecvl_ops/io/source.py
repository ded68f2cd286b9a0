"""Where the bytes of an image come from: a file, or bytes that a program already has."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Union

from dhc_runtime.errors import UsageError

Readable = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryIO]


@dataclass(frozen=True)
class Source:
    """Bytes that can be opened any number of times.

    Attributes:
        name: for messages, and for formats that are known by their suffix alone.
        path: the file, None for bytes in memory.
        content: the bytes, None for a file.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None

    @classmethod
    def of(cls, given: Readable, name: str = "") -> Source:
        """A source from a path, from bytes, or from a stream, which is read to its end.

        Raises:
            UsageError: there is no such file, or it is a folder.
        """
        if isinstance(given, (bytes, bytearray, memoryview)):
            return cls(name or "bytes", content=bytes(given))
        if hasattr(given, "read"):
            return cls(name or str(getattr(given, "name", "stream")), content=given.read())
        path = Path(os.fspath(given))
        if not path.exists():
            raise UsageError("there is no such file", str(path))
        if not path.is_file():
            raise UsageError("this is not a file", str(path), "`read_series` takes the folder of a DICOM series")
        return cls(str(path), path=path)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path is not None else len(self.content or b"")

    def open(self) -> BinaryIO:
        """A seekable stream at its beginning.

        Raises:
            UsageError: the file cannot be read.
        """
        if self.path is None:
            return io.BytesIO(self.content or b"")
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UsageError(f"the file cannot be read: {error.strerror}", self.name) from None

    def head(self, count: int = 512) -> bytes:
        """The first bytes."""
        with self.open() as stream:
            return stream.read(count)
