"""A disk that fills up while an artifact or a cache entry is written: the old file stays, nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dhc_runtime.errors import ResourceError

import dhc
from dhc.backends.cpu.cache import KernelCache, default_cache
from tests.models import light_models
from tests.robustness.conftest import one_paragraph


@pytest.fixture(scope="module")
def compiled() -> dhc.Artifact:
    return dhc.compile(dhc.load_onnx(light_models.path_of("light_shufflenet")), targets=["cpu"])


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class _FailingDisk:
    """Counts what reaches the disk and fails once, at the n-th operation, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.count, self.fail_at = 0, fail_at
        opened = os.fdopen
        disk = self

        class Stream:
            def __init__(self, stream: Any) -> None:
                self._stream = stream

            def write(self, data: Any) -> int:
                disk.operation()
                return int(self._stream.write(data))

            def flush(self) -> None:
                disk.operation()
                self._stream.flush()

            def fileno(self) -> int:
                return int(self._stream.fileno())

            def __enter__(self) -> Stream:
                return self

            def __exit__(self, *exception: Any) -> None:
                self._stream.close()

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                disk.operation()
                return function(*arguments, **options)

            return call

        monkeypatch.setattr(os, "fdopen", lambda *a, **k: Stream(opened(*a, **k)))
        monkeypatch.setattr(os, "replace", wrap(os.replace))
        monkeypatch.setattr(os, "fsync", wrap(os.fsync))

    def operation(self) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_every_operation_of_writing_may_fail(compiled: dhc.Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.dhc"
    whole = compiled.to_bytes()
    failures = 0
    for fail_at in range(1, 1000):
        path.write_bytes(b"the old file")
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = _FailingDisk(monkeypatch, fail_at)
            try:
                compiled.save(path)
            except ResourceError as error:
                assert one_paragraph(str(error))
                failures += 1
        assert _names(tmp_path) == ["model.dhc"]
        if disk.count < fail_at:  # it was not reached: the write was clean
            break
        if path.read_bytes() == whole:
            # Only the sync of the folder, after the rename, may fail without an error.
            assert disk.count == fail_at
            continue
        assert path.read_bytes() == b"the old file"
    assert path.read_bytes() == whole
    assert failures > 10


def test_a_small_disk(compiled: dhc.Artifact, mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=2m")
    path = folder / "model.dhc"
    path.write_bytes(b"the old file")
    with pytest.raises(ResourceError) as caught:
        compiled.save(path)
    assert "no room" in str(caught.value)
    assert one_paragraph(str(caught.value))
    assert path.read_bytes() == b"the old file"
    assert _names(folder) == ["model.dhc"]


def test_a_limit_of_file_sizes(tmp_path: Path) -> None:
    """The command line beside a limit that the system sets; it also works where nobody may mount anything."""
    path = tmp_path / "out" / "model.dhc"
    path.parent.mkdir()
    path.write_bytes(b"the old file")
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from dhc.cli.main import main\n"
        "sys.exit(main(['compile', sys.argv[1], '-o', sys.argv[2]]))\n"
    )
    model = str(light_models.path_of("light_shufflenet"))
    done = subprocess.run([sys.executable, "-c", script, model, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 8, done.stderr
    assert "no room" in done.stderr
    assert one_paragraph(done.stderr)
    assert path.read_bytes() == b"the old file"
    assert _names(path.parent) == ["model.dhc"]


def test_a_full_cache_disk_costs_one_warning(
    compiled: dhc.Artifact, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mounted("size=16k")
    monkeypatch.setenv("DHC_CACHE_DIR", str(folder))
    default_cache().clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = dhc.compile(dhc.load_onnx(light_models.path_of("light_shufflenet")), targets=["cpu"])
    assert again.to_bytes() == compiled.to_bytes()
    messages = [str(w.message) for w in caught if "kernel cache" in str(w.message)]
    assert len(messages) == 1
    assert not [path for path in folder.rglob("*") if "dhc-tmp" in path.name]


def test_an_entry_of_the_cache_appears_whole_or_not(tmp_path: Path) -> None:
    for fail_at in range(1, 50):
        with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disk = _FailingDisk(monkeypatch, fail_at)
            assert KernelCache(tmp_path).get_or_make(f"text {fail_at}", "target", lambda: b"code") == b"code"
        assert not [path for path in tmp_path.rglob("*") if "dhc-tmp" in path.name]
        stored = KernelCache(tmp_path)._read(KernelCache(tmp_path).key(f"text {fail_at}", "target"))
        assert stored == (b"code" if disk.count < fail_at else None)
        if disk.count < fail_at:
            break
    assert fail_at > 2
