"""The kernel cache under ill treatment: damaged entries, folders that cannot be written, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import dhc
from dhc.backends.cpu.cache import default_cache
from tests.robustness.conftest import small_model

_MODEL = small_model()


def _compile(folder: Path | str, monkeypatch: pytest.MonkeyPatch) -> tuple[dhc.Artifact, list[str]]:
    """Compiles as a process would that has this cache on disk and nothing in memory; and the warnings."""
    monkeypatch.setenv("DHC_CACHE_DIR", str(folder))
    default_cache().clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        artifact = dhc.compile(dhc.load_onnx(_MODEL), targets=["cpu"])
    return artifact, [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


@pytest.fixture(scope="module")
def clean() -> bytes:
    return dhc.compile(dhc.load_onnx(_MODEL), targets=["cpu"], cache=False).to_bytes()


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.o") if path.is_file())


def test_damaged_entries_are_made_again(clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = _compile(tmp_path, monkeypatch)
    assert first.to_bytes() == clean
    entries = _entries(tmp_path)
    sound = {path: path.read_bytes() for path in entries}
    assert len(entries) >= 5
    damages: list[Callable[[bytes], bytes]] = [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:50] + bytes([data[50] ^ 0x80]) + data[51:],
        lambda data: data + b"more",
        lambda data: b"\x7fELF" + data,
        lambda data: sound[entries[0]] if data != sound[entries[0]] else sound[entries[1]],  # another's content
    ]
    for number, path in enumerate(entries):
        path.write_bytes(damages[number % len(damages)](sound[path]))
    second, messages = _compile(tmp_path, monkeypatch)
    assert second.to_bytes() == clean
    assert messages == []
    assert {path: path.read_bytes() for path in _entries(tmp_path)} == sound


def test_an_entry_that_is_a_folder_or_leads_nowhere(
    clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compile(tmp_path, monkeypatch)
    entries = _entries(tmp_path)
    entries[0].unlink()
    entries[0].symlink_to(tmp_path / "nothing")
    entries[1].unlink()
    entries[1].mkdir()
    artifact, messages = _compile(tmp_path, monkeypatch)
    assert artifact.to_bytes() == clean
    assert len(messages) <= 1


def test_a_cache_that_cannot_be_written(
    clean: bytes, monkeypatch: pytest.MonkeyPatch, mounted: Callable[[str], Path]
) -> None:
    folder = mounted("ro")
    artifact, messages = _compile(folder, monkeypatch)
    assert artifact.to_bytes() == clean
    assert len(messages) == 1
    assert "DHC_CACHE_DIR" in messages[0]
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_cache_without_permission(clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o555)
    artifact, messages = _compile(tmp_path, monkeypatch)
    tmp_path.chmod(0o755)
    assert artifact.to_bytes() == clean
    assert len(messages) == 1


def test_a_cache_below_a_file(clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    artifact, messages = _compile(tmp_path / "file" / "cache", monkeypatch)
    assert artifact.to_bytes() == clean
    assert len(messages) == 1


def test_four_processes_with_one_empty_cache(tmp_path: Path) -> None:
    cache, model = tmp_path / "cache", tmp_path / "small.onnx"
    model.write_bytes(_MODEL)
    clean = dhc.compile(dhc.load_onnx(model), cache=False).to_bytes()
    script = (
        "import sys\n"
        "import dhc, dhc.compiler, dhc.frontend.onnx, onnx, llvmlite.binding\n"
        "graph = dhc.load_onnx(sys.argv[1])\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "sys.stdin.readline()\n"  # all begin at the same moment
        "dhc.compile(graph, targets=['cpu']).save(sys.argv[2])\n"
    )
    environment = {**os.environ, "DHC_CACHE_DIR": str(cache)}
    outputs = [tmp_path / f"{number}.dhc" for number in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", "-c", script, str(model), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for path in outputs
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert [path.read_bytes() == clean for path in outputs] == [True] * 4
    assert not [path for path in cache.rglob("*") if "dhc-tmp" in path.name]
