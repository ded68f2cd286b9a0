"""Equal input gives equal bytes: twice in a process, in other processes, with and without cached kernels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dhc
from tests.backends.cpu.differential.models import MODELS

PROGRAM = """
import hashlib, sys
import dhc
from tests.backends.cpu.differential.models import MODELS
for name in sys.argv[1:]:
    print(name, hashlib.sha256(dhc.compile(MODELS[name]()).to_bytes()).hexdigest())
"""


def digests(repository: Path, seed: str, cache: str) -> list[str]:
    """Name and hash of the artifact of every model, made in a process of its own."""
    path = os.pathsep.join([str(repository), str(repository / "runtime"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "DHC_CACHE_DIR": cache, "PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MODELS], env=environment, cwd=repository, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.split("\n")[:-1]


def test_two_processes_with_cold_and_warm_caches_write_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cold = digests(repository, "1", str(cache))
    assert len(cold) == len(MODELS) and list(cache.rglob("*.o")), "the first process fills the cache"
    warm = digests(repository, "2", str(cache))
    assert warm == cold


@pytest.mark.parametrize("name", ["convolutions", "dense"])
def test_twice_in_one_process(name: str, tmp_path: Path) -> None:
    first, second = (dhc.compile(MODELS[name](), cache=cache) for cache in (False, True))
    assert hashlib.sha256(first.to_bytes()).digest() == hashlib.sha256(second.to_bytes()).digest()
    first.save(tmp_path / "model.dhc")
    assert (tmp_path / "model.dhc").read_bytes() == second.to_bytes()


def test_compiling_leaves_the_graph_as_it_was() -> None:
    graph = MODELS["convolutions"]()
    before = str(graph)
    dhc.compile(graph)
    assert str(graph) == before
