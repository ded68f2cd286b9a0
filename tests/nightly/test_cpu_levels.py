"""The correctness suite of the CPU with the code of every level of x86-64: ``DHC_CPU`` chooses it for all tests.

The same by hand, for one level: ``DHC_CPU=x86-64-v2 pytest tests/backends tests/models tests/frontend/onnx``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.cpu.differential.test_cpu_levels import LEVELS, need

SUITE = ("tests/backends/cpu/differential", "tests/backends/cpu/numba", "tests/backends/loop", "tests/models",
         "tests/examples", "tests/frontend/onnx/test_node_cases.py", "tests/frontend/onnx/test_suites.py")  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("level", LEVELS)
def test_suite_with_the_code_of_a_level(level: str, repository: Path) -> None:
    need(level)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", *SUITE],
        cwd=repository, env={**os.environ, "DHC_CPU": level}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
