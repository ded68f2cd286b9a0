"""One engine in a process of its own: how long until the first answer, how much memory at most.

    python -m bench.fresh ENGINE FILE THREADS '{"inputs": {"x": [1, 3, 224, 224]}, "outputs": ["y"]}'

prints a line of JSON. NumPy is imported before the clock starts, since a program around has it anyway.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench.signature import Signature

_SECONDS = 300


def in_a_process(engine: str, prepared: Path, threads: int, signature: Signature) -> dict[str, float]:
    """What `main` prints, from a fresh process.

    Raises:
        RuntimeError: the process failed, or took too long.
    """
    about = json.dumps({"inputs": signature.inputs, "outputs": signature.outputs})
    command = [sys.executable, "-m", "bench.fresh", engine, str(prepared), str(threads), about]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=root)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{engine} has no answer after {_SECONDS} s in a fresh process") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{engine} ends with {done.returncode}: {done.stderr.strip()[-200:]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def main(engine: str, prepared: str, threads: str, about: str) -> None:
    """Prints import, load and first run in seconds, and the largest resident memory in MB."""
    from bench.peers import adapter

    given = json.loads(about)
    signature = Signature({k: tuple(v) for k, v in given["inputs"].items()}, tuple(given["outputs"]))
    feeds = {name: np.ones(shape, np.float32) for name, shape in signature.inputs.items()}
    start = time.perf_counter()
    module = adapter(engine)
    module.warm_import()
    imported = time.perf_counter()
    run = module.load(Path(prepared), int(threads), signature)
    loaded = time.perf_counter()
    run(feeds)
    first = time.perf_counter()
    for _ in range(2):
        run(feeds)
    figures = {
        "import s": imported - start,
        "load s": loaded - imported,
        "cold start s": first - start,
        "peak MB": _peak_megabytes(),
    }
    print(json.dumps(figures))


def _peak_megabytes() -> float:
    """Largest resident memory since this program began (getrusage would include the process it was forked from)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main(*sys.argv[1:5])
