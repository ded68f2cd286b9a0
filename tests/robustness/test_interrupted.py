"""Ctrl-C while compiling and while running: it ends at once, leaves nothing behind, and a session stays usable."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dhc_runtime

import dhc
from tests.models import light_models
from tests.robustness.conftest import small_model


def test_a_compilation_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes after every stage in turn; the next compilation is as a clean one."""
    model = small_model()
    clean = dhc.compile(dhc.load_onnx(model), cache=False).to_bytes()
    monkeypatch.setenv("DHC_CACHE_DIR", str(tmp_path))
    calls = 0
    for stop in range(1, 100):
        calls = 0

        def progress(stage: str, done: int, total: int, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGINT)

        try:
            artifact = dhc.compile(dhc.load_onnx(model), progress=progress)
        except KeyboardInterrupt:
            assert not [path for path in tmp_path.rglob("*") if "dhc-tmp" in path.name]
            continue
        break
    assert stop > 5
    assert artifact.to_bytes() == clean


def test_the_command_line_ends_with_130(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading\n"
        "import dhc.backends.cpu.backend as backend\n"
        "from dhc.cli.main import main\n"
        "compile = backend.CpuBackend.compile\n"
        "def interrupted(self, graph, options):\n"
        "    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    blob = compile(self, graph, options)\n"
        "    import time; time.sleep(5)\n"
        "    return blob\n"
        "backend.CpuBackend.compile = interrupted\n"
        "sys.exit(main(['compile', sys.argv[1], '-o', sys.argv[2]]))\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    environment = {**os.environ, "DHC_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script, str(light_models.path_of("light_squeezenet")), str(out / "model.dhc")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_run_is_interrupted(artifact: Path, threads: int) -> None:
    x = np.random.default_rng(3).random((1, 3, 224, 224), dtype=np.float32)
    interrupted = 0
    with dhc_runtime.load(artifact, threads=threads) as session:
        feeds = {session.inputs[0].name: x}
        begin = time.perf_counter()
        wanted = session.run(feeds)
        session.run(feeds)
        duration = max((time.perf_counter() - begin) / 2, 1e-3)
        rng = random.Random(threads)
        previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            for _ in range(20):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.05, 0.95) * duration)
                    for _ in range(1000):
                        session.run(feeds)
                except KeyboardInterrupt:
                    interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        again = session.run(feeds)
    assert interrupted == 20
    for name, value in wanted.items():
        assert np.array_equal(again[name], value)
