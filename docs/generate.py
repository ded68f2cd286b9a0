"""Writes the parts of these pages that the code itself knows: ops, passes, support, command help, measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def write_all(folder: Path) -> None:
    """Writes one Markdown file for each entry of ``PARTS`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        (folder / f"{name}.md").write_text(part().rstrip() + "\n", encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; cells get their pipes escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def benchmarks() -> str:
    """One table for each JSON file of bench/results: the columns are the keys of its rows."""
    parts = []
    for path in sorted((REPOSITORY / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = report.get("rows", [])
        if not rows:
            continue
        header = list(rows[0])
        cells = [
            [f"{row[key]:.3g}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in header]
            for row in rows
        ]
        parts.append(f"## {report.get('title', path.stem)}\n\n{report.get('machine', '')}\n\n{table(header, cells)}\n")
    return "\n".join(parts) or "No measurements are stored; `make bench` makes them."


PARTS: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    **{name: (lambda: "") for name in ("cli", "ir", "ops", "passes", "support")},
}
