"""Memory of sessions: weights are the file's pages and shared, arenas ask for huge pages and are not touched early."""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime import memory

from tests.runtime.artifacts import Plan


def mappings() -> list[dict[str, Any]]:
    """Each mapping of this process in the words of /proc/self/smaps; sizes in KiB."""
    found: list[dict[str, Any]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-[0-9a-f]+ (\S+) \S+ \S+ \S+ *(.*)", line)
        if head is not None:
            found.append({"start": int(head[1], 16), "access": head[2], "name": head[3]})
            continue
        name, _, value = line.partition(":")
        found[-1][name] = int(value.split()[0]) if value.endswith(" kB") else value.split()
    return found


def of_file(path: Path) -> list[dict[str, Any]]:
    return [entry for entry in mappings() if entry["name"] == str(path)]


needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps: run it on Linux")
WEIGHTS = 4 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Adds a vector of 4 MiB to its input."""
    plan = Plan()
    weights = plan.const("w", "f32", np.arange(WEIGHTS // 4, dtype=np.float32))
    plan.kernel("k_add", [plan.input("x", "f32", [WEIGHTS // 4]), weights, plan.output("y", "f32", [WEIGHTS // 4])],
                [WEIGHTS // 4])  # fmt: skip
    path = tmp_path / "weights.dhc"
    path.write_bytes(plan.artifact())
    return path


SECOND = """
import sys
import numpy as np
import dhc_runtime
sys.path.insert(0, sys.argv[3])
session = dhc_runtime.load(sys.argv[1])
session.run(np.zeros(int(sys.argv[2]), np.float32))
print("ready", flush=True)
sys.stdin.read()
"""


@needs_smaps
def test_weights_are_mapped_from_the_file_and_shared(model: Path, repository: Path) -> None:
    x = np.zeros(WEIGHTS // 4, np.float32)
    first, second = dhc_runtime.load(model), dhc_runtime.load(model)
    for session in (first, second):
        assert np.array_equal(session.run(x)["y"], np.arange(WEIGHTS // 4))
    found = of_file(model)
    assert sum(entry["Rss"] for entry in found) >= WEIGHTS >> 10
    assert all(entry["Anonymous"] == 0 for entry in found), "weights were copied"
    assert not any("w" in entry["access"] for entry in found)
    alone = sum(entry["Pss"] for entry in found)
    command = [sys.executable, "-c", SECOND, str(model), str(WEIGHTS // 4), str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        shared = sum(entry["Pss"] for entry in of_file(model))
        other.communicate()
    assert other.returncode == 0
    assert shared < alone * 0.9, "the other process has pages of its own"
    first.close()
    second.close()


@needs_smaps
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages to ask for")
def test_lasting_memory_asks_for_huge_pages_and_is_not_touched() -> None:
    size = (19 << 20) + 100
    block = memory.Block(memory.Budget(1 << 30, "test"), lasting=True)
    address = block.ensure(size)
    assert address % (2 << 20) == 0
    assert block.data is not None and block.data.size == size
    (area,) = [entry for entry in mappings() if entry["start"] == address]
    assert area["Size"] == 18 << 10 and "hg" in area["VmFlags"], "whole huge pages alone are asked for"
    assert area["Rss"] == 0, "touched by the thread that asked for it"
    block.data[:] = 1
    block.release()


def test_small_and_passing_memory_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", None)
    budget = memory.Budget(1 << 30, "test")
    for block, size in ((memory.Block(budget, lasting=True), 15 << 20), (memory.Block(budget), 30 << 20)):
        assert block.ensure(size) % memory.ALIGNMENT == 0
        assert block.capacity == size
        block.release()
    assert budget.held == 0


def test_memory_that_the_system_cannot_give_is_an_error() -> None:
    block = memory.Block(memory.Budget(1 << 62, "test"), lasting=True)
    with pytest.raises(dhc_runtime.ResourceError):
        block.ensure(1 << 60)
    assert block.capacity == 0
