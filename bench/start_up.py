"""What a user waits for before anything happens: imports, `dhc --help`, and loading in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bench.interleaved import interleaved, median

TITLE = "Start-up, wall time of a fresh process"

_ROUNDS = 15
# What is run, and the limit that the project sets itself for what it adds to a bare Python, in ms.
_CASES: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "import numpy": (["-c", "import numpy"], None),
    "import dhc": (["-c", "import dhc"], 150.0),
    "import dhc_runtime": (["-c", "import dhc_runtime"], None),
    "dhc --help": ([str(Path(sys.executable).with_name("dhc")), "--help"], 400.0),
}


def run() -> list[dict[str, Any]]:
    """Medians over interleaved fresh processes; the bare interpreter is subtracted where a limit is set."""
    candidates = {name: partial(_process, arguments) for name, (arguments, _) in _CASES.items()}
    times = interleaved(candidates, _ROUNDS)
    bare = median(times["python -c pass"])
    rows = []
    for name, (_, limit) in _CASES.items():
        wall = median(times[name])
        rows.append(
            {"what": name, "median ms": wall, "above bare Python ms": wall - bare, "limit ms": limit or "-"},
        )
    return rows


def _process(arguments: list[str]) -> None:
    # A user's Python keeps compiled modules; some build machines forbid it, which would be measured here.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
