"""Writes the parts of these pages that the code itself knows: ops, passes, support, command help, measurements."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def ops() -> str:
    """The registry, one table for each kind: what an op takes, whether it has a gradient, what it follows."""
    from dhc.ir import NotDifferentiable, all_ops
    from dhc.ir.kinds import Composite

    groups: dict[str, list[list[str]]] = {}
    for op in all_ops():
        if isinstance(op.grad, NotDifferentiable):
            gradient = f"none: {op.grad.reason}"
        elif op.grad is None:
            gradient = "of its parts" if isinstance(op.kind, Composite) else "none"
        else:
            gradient = "yes"
        groups.setdefault(op.kind.name, []).append([f"`{_signature(op)}`", op.doc, gradient, op.source])
    parts = [f"{sum(map(len, groups.values()))} ops, by kind. A `?` marks what may be left out, `...` any number.\n"]
    for kind in sorted(groups):
        parts.append(f"### {kind}\n\n{table(['op', 'what it is', 'gradient', 'follows'], groups[kind])}\n")
    return "\n".join(parts)


def _signature(op: Any) -> str:
    operands = [o.name + ("..." if o.variadic else "?" if o.optional else "") for o in op.operands]
    attributes = [f"{a.name}: {a.kind}" for a in op.attrs if a.kind != "symbol"]
    return f"{op.name}({', '.join([*operands, *attributes])})"


def passes() -> str:
    """Every registered pass with its options and defaults."""
    from dhc.passes.base import find_pass, pass_names

    rows = []
    for name in pass_names():
        cls = find_pass(name)
        options = ", ".join(f"`{f.name}={f.default}`" for f in dataclasses.fields(cls)) or "-"
        rows.append([f"`{name}`", (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "), options])
    return table(["pass", "what it does", "options and defaults"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "ops": ops,
    **{name: (lambda: "") for name in ("cli", "ir", "passes", "support")},
}
