"""Writing files so that a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from typing import Any, BinaryIO, Iterable, Iterator, Optional, Union

from dhc_runtime.errors import ResourceError, UsageError

__all__ = ["atomic_file", "sweep_orphans", "write_bytes"]

_ORPHAN = re.compile(r"^\..*\.dhc-tmp-(\d+)-[0-9a-f]+$")
_ORPHAN_AGE_SECONDS = 3600.0
_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))

PathLike = Union[str, "os.PathLike[str]"]


def _file_error(error: OSError, path: str) -> Exception:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return ResourceError(
            "There is no room to write the file ({}); nothing was changed".format(reason),
            where=path,
            hint="Free some space or write to another disk",
        )
    return UsageError(
        "The file cannot be written: {}".format(reason), where=path, hint="Check that the folder exists and is writable"
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sweep_orphans(folder: PathLike, age_seconds: float = _ORPHAN_AGE_SECONDS) -> int:
    """Removes temporary files that killed writers left in ``folder``.

    Only files that carry this module's temporary name, are older than ``age_seconds`` and belong to a process that no
    longer exists are removed: a folder shared with other machines may hold files of processes that this one cannot see.

    Returns:
        The number of files removed.
    """
    removed = 0
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return 0
    limit = time.time() - age_seconds
    for name in names:
        match = _ORPHAN.match(name)
        if match is None or _alive(int(match.group(1))):
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if os.lstat(path).st_mtime <= limit:
                os.unlink(path)
                removed += 1
    return removed


def _sync_folder(folder: str) -> None:
    """Makes a rename durable; some file systems refuse to open or sync a folder, which is no reason to fail."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a binary file that takes its name only when the ``with`` block ends well.

    The data goes to a temporary name in the same folder and is renamed over ``path``. When the block raises, or the
    disk is full, the temporary file is removed and an older file of that name stays as it was. A symbolic link is
    followed, so that the file it points to is replaced. Devices and pipes are written directly.

    Args:
        path: where the file shall appear.
        durable: wait until the data is on the disk before the rename.

    Raises:
        ResourceError: the disk or quota is full.
        UsageError: the folder does not exist or is not writable, or ``path`` is a folder.
    """
    target = os.path.realpath(os.fspath(path))
    try:
        existing: Optional[os.stat_result] = os.stat(target)
    except OSError:
        existing = None
    if existing is not None and stat.S_ISDIR(existing.st_mode):
        raise UsageError("The path is a folder, not a file", where=target, hint="Give the name of a file")
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        try:
            with open(target, "wb") as stream:
                yield stream
        except OSError as error:
            raise _file_error(error, target) from error
        return
    folder, name = os.path.split(target)
    sweep_orphans(folder)
    # A name has at most 255 bytes, and a character up to four.
    temporary = os.path.join(folder, ".{}.dhc-tmp-{}-{}".format(name[:50], os.getpid(), os.urandom(6).hex()))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise _file_error(error, target) from error
    try:
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            if existing is not None:
                with contextlib.suppress(OSError):
                    os.chmod(temporary, stat.S_IMODE(existing.st_mode))
            os.replace(temporary, target)
        except OSError as error:
            raise _file_error(error, target) from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(folder)


def write_bytes(path: PathLike, data: Union[bytes, bytearray, memoryview, Iterable[Any]], durable: bool = True) -> None:
    """Writes ``data`` (bytes-like, or an iterable of bytes-like chunks) to ``path`` as `atomic_file` does."""
    with atomic_file(path, durable=durable) as stream:
        if isinstance(data, (bytes, bytearray, memoryview)):
            stream.write(data)
        else:
            chunks: Iterable[Any] = data
            for chunk in chunks:
                stream.write(chunk)
