"""Finished artifacts kept on disk: the same model, options, compiler and processor give the same bytes at once.

An entry is found by a hash of the model's bytes and of everything else that decides about the artifact. What cannot be
told from those (models with weights in files of their own, installed extensions) is not kept. Entries are complete
files that were renamed into place, checked by SHA-256 when read; the least recently used go first above a limit.
Trouble with the folder never fails a compile: the model is compiled then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dhc_runtime.errors import DhcError
from dhc_runtime.safe_write import atomic_file, sweep_orphans, write_bytes

DEFAULT_LIMIT = 2 << 30
_PIECE = 8 << 20
_FILE_NAME = b"location"  # how ONNX announces the file of a tensor
_EXTENSIONS = ("dhc.ops", "dhc.passes", "dhc.backends")
_VERSIONS = ("dhc", "llvmlite", "numba", "numpy", "onnx", "protobuf", "ml_dtypes")


class _DamagedError(Exception):
    """What was read is not what was kept."""


@dataclass(frozen=True)
class Entry:
    """A kept artifact.

    Attributes:
        path: the file.
        report: what was told about its compilation.
        digest: its content as `file_digest` gives it.
    """

    path: Path
    report: Mapping[str, Any]
    digest: str

    def copy(self, path: Path) -> bool:
        """Writes the artifact to `path`, which appears whole or not at all; False when the entry is damaged.

        Raises:
            DhcError: `path` cannot be written.
        """
        try:
            source = self.path.open("rb", buffering=0)
        except OSError:
            return False
        # Not synced to the disk: the entry is there to copy it again.
        with source, contextlib.suppress(_DamagedError), atomic_file(path, durable=False) as stream:
            with _threads() as pool:
                digests = []
                while piece := source.read(_PIECE):
                    digests.append(pool.submit(_digest, piece))
                    stream.write(piece)
            if _joined(d.result() for d in digests) != self.digest:
                raise _DamagedError
            return True
        return False


class ArtifactCache:
    """Artifacts by key.

    Args:
        folder: where entries live.
        limit: bytes that the folder may hold; an artifact of more than a quarter of that is not kept.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    def find(self, key: str) -> Entry | None:
        """The entry of a key."""
        path = self.folder / f"{key}.dhc"
        try:
            table = json.loads(path.with_suffix(".json").read_bytes())
            entry = Entry(path, table["report"], table["digest"])
            size = path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if size != table.get("bytes") or not isinstance(entry.report, dict):
            return None
        with contextlib.suppress(OSError):
            os.utime(path.with_suffix(".json"))  # the time of use, for eviction
        return entry

    def add(self, key: str, artifact: Path, report: Mapping[str, Any]) -> bool:
        """Keeps an artifact; False when it is too large or the folder cannot be written.

        The entry is another name of the same file where the file system allows that, so that nothing is written twice.
        Who changes that file in place afterwards only loses the entry: it does not check out any more.
        """
        path = self.folder / f"{key}.dhc"
        try:
            digest, size = file_digest(artifact)
            if size > self.limit // 4:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            table = {"digest": digest, "bytes": size, "report": report}
            # Not synced to the disk: what a power failure tears does not check out and is made again.
            if not _linked(artifact, path):
                write_bytes(path, artifact.read_bytes(), durable=False)
            write_bytes(path.with_suffix(".json"), json.dumps(table).encode(), durable=False)
        except (OSError, ValueError, DhcError):
            return False
        self.evict()
        return True

    def evict(self) -> int:
        """Removes the least recently used entries above the limit, and files of killed writers; returns how many."""
        removed = sweep_orphans(self.folder)
        entries: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.dhc"):
                table = path.with_suffix(".json")
                used = table.stat().st_mtime if table.exists() else 0.0
                entries.append((used, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            total -= size
            removed += self._remove(path)
        return removed

    def clear(self) -> int:
        """Removes all entries; returns how many."""
        return sum(self._remove(path) for path in sorted(self.folder.glob("*.dhc")))

    def _remove(self, path: Path) -> int:
        with contextlib.suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
            return 1
        return 0


def artifact_cache() -> ArtifactCache | None:
    """The cache beside that of kernels; None when caches are off (``DHC_CACHE_DIR`` is empty)."""
    from dhc.backends.cpu.cache import default_folder

    folder = default_folder()
    return None if folder is None else ArtifactCache(folder / "artifacts")


def model_key(model: Path, options: Mapping[str, Any], cpu: str | None) -> str | None:
    """The key of an ONNX model compiled for the CPU with some options; None when its artifact cannot be kept.

    Args:
        model: the file; its name becomes that of the graph and is part of the key.
        options: everything that decides about the artifact, as plain data.
        cpu: the named CPU target, None for the default.
    """
    if any(metadata.entry_points(group=group) for group in _EXTENSIONS):
        return None  # their code is not known here
    processor = _processor(cpu or os.environ.get("DHC_CPU") or "host")
    if processor is None:
        return None
    try:
        content, _ = file_digest(model)
    except OSError:
        return None  # whoever reads the model says what is wrong with it
    parts = [content, model.name, json.dumps(options, sort_keys=True), processor, compiler_version()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_whole(model: Path) -> bool:
    """Whether a model surely holds all of its weights: the key covers one file alone."""
    try:
        with model.open("rb", buffering=0) as stream:
            before = b""
            while piece := stream.read(_PIECE):
                if _FILE_NAME in piece or _FILE_NAME in before[-len(_FILE_NAME) :] + piece[: len(_FILE_NAME)]:
                    return False
                before = piece
    except OSError:
        return False
    return True


def compiler_version() -> str:
    """A hash of the compiler's and the runtime's sources, and the versions of what they compute with."""
    import dhc_runtime

    found = [platform.python_version()]
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name}={metadata.version(name)}")
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(dhc_runtime.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return " ".join([*found, digest.hexdigest()])


def file_digest(path: Path) -> tuple[str, int]:
    """SHA-256 over the SHA-256 of a file's pieces of 8 MiB, which several threads read and hash; and its bytes."""
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size

        def piece(start: int) -> bytes:
            return _digest(os.pread(stream.fileno(), _PIECE, start))

        with _threads() as pool:
            return _joined(pool.map(piece, range(0, size, _PIECE))), size


def _digest(piece: bytes) -> bytes:
    return hashlib.sha256(piece).digest()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1))


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _linked(file: Path, name: Path) -> bool:
    """Gives a file a second name; False where the file system cannot."""
    temporary = name.with_name(f".{name.stem}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        os.link(file, temporary)
        os.replace(temporary, name)
        temporary.unlink(missing_ok=True)  # a rename onto the same file keeps both names
    except OSError:
        return False
    return True


def _processor(name: str) -> str | None:
    """What code for a CPU target depends on; LLVM, which knows the host best, would take longer to load."""
    if name != "host":
        return name
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        from dhc.backends.cpu.target import target

        try:
            return target("host").text()
        except DhcError:
            return None
    lines = [line for line in first if line.startswith(("flags", "Features", "vendor_id", "cpu family", "model"))]
    caches = []
    for index in range(4):
        with contextlib.suppress(OSError):
            caches.append(Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip())
    return "\n".join([platform.machine(), *lines, *caches])
