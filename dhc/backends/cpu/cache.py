"""Content-hash cache of object code: in memory for the process, on disk between processes.

The key is a hash of the kernel's canonical text, the target and the versions of everything that makes code; the value
is stored with its own SHA-256, which is checked on every read. Writers rename complete files into place, so readers
and other writers of any number of processes never see half an entry, also when one is killed. An entry that does not
check out is removed and made again. Trouble with the folder never fails a compile: one warning, then memory alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from dhc_runtime.errors import DhcError
from dhc_runtime.safe_write import sweep_orphans, write_bytes

_MAGIC = b"dhc-kernel-1\n"
_DIGEST = 32
_DEFAULT_LIMIT = 512 << 20
_FORMAT = "1"


def default_folder() -> Path | None:
    """Where entries are kept: ``DHC_CACHE_DIR`` (empty: nowhere), else the platform's cache folder."""
    given = os.environ.get("DHC_CACHE_DIR")
    if given is not None:
        return Path(given) if given.strip() else None
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dhc" / "kernels"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "dhc" / "Cache" / "kernels"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "dhc" / "kernels"


@functools.cache
def code_versions() -> str:
    """Versions of everything that decides about generated code."""
    found = []
    for name in ("dhc", "llvmlite", "numba"):
        try:
            found.append(f"{name}={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name}=none")
    return " ".join([f"format={_FORMAT}", f"source={_source_hash()}", *found])


@functools.cache
def _source_hash() -> str:
    """Hash of the modules that write code: a changed generator does not meet the objects of an older one."""
    digest = hashlib.sha256()
    backends = Path(__file__).parent.parent
    for folder in (backends / "loop", backends / "cpu"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(backends).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class KernelCache:
    """A cache of object code.

    Args:
        folder: where entries live; None: only in memory.
        limit: bytes that the folder may hold; the least recently used entries go first.
    """

    def __init__(self, folder: Path | None, limit: int = _DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._memory: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._warned = False
        self._written = 0

    def key(self, text: str, target: str) -> str:
        """The name of an entry."""
        joined = "\0".join((code_versions(), target, text))
        return hashlib.sha256(joined.encode()).hexdigest()

    def get_or_make(self, text: str, target: str, make: Callable[[], bytes]) -> bytes:
        """The object code for a kernel text and target; `make` compiles it when it is in no cache."""
        found = self.get(text, target)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        made = make()
        self.put(text, target, made)
        return made

    def get(self, text: str, target: str) -> bytes | None:
        """What is kept for a text and target; None: nothing. Not counted."""
        key = self.key(text, target)
        with self._lock:
            found = self._memory.get(key)
        if found is None:
            found = self._read(key)
            if found is not None:
                with self._lock:
                    self._memory[key] = found
        return found

    def put(self, text: str, target: str, data: bytes) -> None:
        """Keeps something, in place of what was kept before."""
        key = self.key(text, target)
        self._write(key, data)
        with self._lock:
            self._memory[key] = data

    def path(self, key: str) -> Path | None:
        """The file of an entry."""
        return None if self.folder is None else self.folder / key[:2] / f"{key}.o"

    def _read(self, key: str) -> bytes | None:
        path = self.path(key)
        if path is None:
            return None
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._trouble(error)
            return None
        body = stored[len(_MAGIC) + _DIGEST :]
        if stored[: len(_MAGIC)] != _MAGIC or stored[len(_MAGIC) : len(_MAGIC) + _DIGEST] != _checksum(key, body):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the time of use, for eviction
        return body

    def _write(self, key: str, data: bytes) -> None:
        path = self.path(key)
        if path is None or self._warned:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced to the disk: an entry torn by a power failure does not check out and is made again.
            write_bytes(path, _MAGIC + _checksum(key, data) + data, durable=False)
        except (OSError, DhcError) as error:
            self._trouble(error)
            return
        self._written += 1
        if self._written % 64 == 1:
            self.evict()

    def _trouble(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the kernel cache {self.folder} cannot be used ({error}); set DHC_CACHE_DIR to a writable folder",
                RuntimeWarning,
                stacklevel=4,
            )

    def evict(self) -> int:
        """Removes the least recently used entries above the limit, and files of killed writers; returns how many."""
        if self.folder is None:
            return 0
        entries: list[tuple[float, int, str]] = []
        removed = 0
        try:
            folders = sorted(p for p in self.folder.iterdir() if p.is_dir())
        except OSError:
            return 0
        for folder in folders:
            removed += sweep_orphans(folder)
            with contextlib.suppress(OSError), os.scandir(folder) as found:
                for entry in found:
                    if entry.name.endswith(".o"):
                        with contextlib.suppress(OSError):
                            status = entry.stat()
                            entries.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed += 1
            total -= size
        return removed

    def clear(self) -> None:
        """Forgets what is held in memory."""
        with self._lock:
            self._memory.clear()


def _checksum(key: str, data: bytes) -> bytes:
    """Bound to the key, so that an entry under another's name does not check out."""
    return hashlib.sha256(key.encode() + b"\0" + data).digest()


@functools.cache
def _cache_at(folder: Path | None) -> KernelCache:
    return KernelCache(folder)


def default_cache() -> KernelCache:
    """The process's cache in `default_folder`."""
    return _cache_at(default_folder())


def disabled_cache() -> KernelCache:
    """A cache that keeps nothing on disk."""
    return KernelCache(None)
