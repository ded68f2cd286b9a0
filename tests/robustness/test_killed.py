"""kill -9 at random instants of `dhc compile`: output and cache stay sound, and nothing piles up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dhc_runtime

from tests.models import light_models
from tests.robustness.conftest import small_model

_KILLS = 30

# A process that has imported everything and forks one `dhc compile` for each line it reads, "CACHE<TAB>OUTPUT": so
# that random instants fall into compiling and writing, not into the start of Python.
_SERVER = """
import os, sys
import numpy, onnx, llvmlite.binding
import dhc, dhc.compiler, dhc.frontend.onnx, dhc.backends.cpu.backend
from dhc.cli.main import main
for line in sys.stdin:
    cache, output = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        os.environ["DHC_CACHE_DIR"] = cache
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 0)
        os.dup2(quiet, 1)
        os._exit(main(["compile", sys.argv[1], "-o", output]))
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


class _Compilers:
    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, cache: Path, output: Path, kill_after: float | None = None) -> tuple[int, float]:
        """Compiles; with `kill_after`, kills it after so many seconds. Gives the wait status and the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{cache}\t{output}\n")
        self._process.stdin.flush()
        pid = self._line()
        begin = time.perf_counter()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it had ended
                os.kill(pid, signal.SIGKILL)
        return self._line(), time.perf_counter() - begin

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture
def compilers(tmp_path: Path) -> Iterator[_Compilers]:
    model = tmp_path / "small.onnx"
    model.write_bytes(small_model())
    found = _Compilers(model)
    yield found
    found.close()


def _temporary(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "dhc-tmp" in path.name)


def _check_output(path: Path, clean: bytes) -> bool:
    """Whether there is an output; if so it must be the whole artifact, ready to load."""
    if not path.exists():
        return False
    assert path.read_bytes() == clean
    dhc_runtime.load(path).close()
    return True


@pytest.mark.slow
def test_killed_at_30_instants(compilers: _Compilers, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    status, _ = compilers.run(tmp_path / "clean", out / "clean.dhc")
    assert status == 0
    clean = (out / "clean.dhc").read_bytes()
    status, cold = compilers.run(tmp_path / "other", out / "other.dhc")
    assert status == 0
    assert (out / "other.dhc").read_bytes() == clean
    rng = random.Random(7)
    killed = finished = 0
    for turn in range(_KILLS):
        # Ten kills share a cache: later ones find what earlier ones left, complete and broken.
        cache, output = tmp_path / f"cache{turn % 3}", out / f"{turn}.dhc"
        status, _ = compilers.run(cache, output, rng.uniform(0.0, cold))
        killed += os.WIFSIGNALED(status)
        finished += _check_output(output, clean)
    assert killed >= _KILLS // 3, "too few were killed while they worked"
    for number in range(3):
        cache = tmp_path / f"cache{number}"
        for path in [*_temporary(cache), *_temporary(out)]:
            os.utime(path, (time.time() - 7200, time.time() - 7200))
        entries = sorted(cache.rglob("*.o"))
        if entries:
            entries[0].unlink()  # something to write, so that the cache looks after itself
        status, _ = compilers.run(cache, out / "after.dhc")
        assert status == 0
        assert (out / "after.dhc").read_bytes() == clean
        assert _temporary(cache) == []
        assert _temporary(out) == []


@pytest.mark.nightly
def test_whole_commands_killed_at_30_instants(tmp_path: Path) -> None:
    """The same with a process for each command, from the start of Python on."""
    model = light_models.path_of("light_squeezenet")

    def start(cache: str, output: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "DHC_CACHE_DIR": str(tmp_path / cache)}
        command = [sys.executable, "-m", "dhc.cli", "compile", str(model), "-o", str(output)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    begin = time.perf_counter()
    assert start("clean", tmp_path / "clean.dhc").wait(120) == 0
    whole = time.perf_counter() - begin
    clean = (tmp_path / "clean.dhc").read_bytes()
    rng = random.Random(8)
    for turn in range(_KILLS):
        process = start(f"cache{turn % 3}", tmp_path / "killed.dhc")
        time.sleep(rng.uniform(0.2 * whole, whole))
        process.kill()
        process.wait(30)
        _check_output(tmp_path / "killed.dhc", clean)
        if turn % 2:
            (tmp_path / "killed.dhc").unlink(missing_ok=True)
    for number in range(3):
        assert start(f"cache{number}", tmp_path / "after.dhc").wait(120) == 0
        assert (tmp_path / "after.dhc").read_bytes() == clean
