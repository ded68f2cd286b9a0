"""Runs the measurements and writes ``bench/results/NAME.json``.

    python -m bench               all of them
    python -m bench start_up      the named ones
    python -m bench models --help a measurement with options of its own

A measurement is a module of this folder with ``TITLE`` and ``run() -> list of rows``. Rows are dicts with the same
keys: the columns of the table in the docs. One with options has ``add_options(parser)``, and ``run(options)`` may
return a whole report: title, machine, rows, and as it likes notes, tables, and a failure that becomes the exit status.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from importlib import import_module
from pathlib import Path

from bench.machine import machine

_FOLDER = Path(__file__).parent
_SUPPORT = {
    "__main__",
    "entries",
    "fresh",
    "interleaved",
    "light_models",
    "machine",
    "measuring",
    "networks",
    "peers",
    "signature",
}


def main(arguments: list[str]) -> int:
    """Runs the named measurements, or all; returns the exit status."""
    known = [info.name for info in pkgutil.iter_modules([str(_FOLDER)]) if info.name not in _SUPPORT]
    first_option = next((i for i, text in enumerate(arguments) if text.startswith("-")), len(arguments))
    names, rest = arguments[:first_option], arguments[first_option:]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"no measurement {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    if rest and len(names) != 1:
        print(f"{rest[0]} is for one measurement: name it first, out of {', '.join(known)}", file=sys.stderr)
        return 2
    results = _FOLDER / "results"
    results.mkdir(exist_ok=True)
    failures = []
    for name in names or known:
        module = import_module(f"bench.{name}")
        parser = argparse.ArgumentParser(f"python -m bench {name}", description=module.TITLE)
        has_options = hasattr(module, "add_options")
        if has_options:
            module.add_options(parser)
        options = parser.parse_args(rest)
        print(f"[bench] {name}: {module.TITLE}", flush=True)
        if has_options:
            report = module.run(options)
        else:
            report = {"title": module.TITLE, "machine": machine(), "rows": module.run()}
            for row in report["rows"]:
                print("   ", "  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
        failure = report.pop("failure", None)
        if failure:
            failures.append(f"{name}: {failure}")
        (results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"[bench] written to {results.relative_to(Path.cwd())}" if results.is_relative_to(Path.cwd()) else results)
    for failure in failures:
        print(f"[bench] FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
