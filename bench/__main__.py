"""Runs the measurements and writes ``bench/results/NAME.json``.

    python -m bench               all of them
    python -m bench start_up      the named ones

A measurement is a module of this folder with ``TITLE`` and ``run() -> list of rows``. Rows are dicts with the same
keys: the columns of the table in the docs.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

from bench.machine import machine

_FOLDER = Path(__file__).parent
_SUPPORT = {"__main__", "machine", "interleaved", "light_models"}


def main(names: list[str]) -> int:
    """Runs the named measurements, or all; returns the exit status."""
    known = [info.name for info in pkgutil.iter_modules([str(_FOLDER)]) if info.name not in _SUPPORT]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"no measurement {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    results = _FOLDER / "results"
    results.mkdir(exist_ok=True)
    for name in names or known:
        module = import_module(f"bench.{name}")
        print(f"[bench] {name}: {module.TITLE}", flush=True)
        report = {"title": module.TITLE, "machine": machine(), "rows": module.run()}
        for row in report["rows"]:
            print("   ", "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
        (results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"[bench] written to {results.relative_to(Path.cwd())}" if results.is_relative_to(Path.cwd()) else results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
