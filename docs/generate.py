"""Writes the parts of these pages that the code itself knows: ops, passes, support, command help, measurements."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable
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
    """The tables of each JSON file of bench/results: the columns are the keys of their rows."""
    parts = []
    for path in sorted((REPOSITORY / "bench" / "results").glob("*.json")):
        if path.stem == "conformance":
            continue  # on the support page
        report = json.loads(path.read_text(encoding="utf-8"))
        rows = report.get("rows", [])
        if not rows:
            continue
        notes = "".join(f"- {note}\n" for note in report.get("notes", []))
        parts.append(
            f"## {report.get('title', path.stem)}\n\n{report.get('machine', '')}\n\n{notes}\n{_figures(rows)}\n"
        )
        for name, more in report.get("tables", {}).items():
            if more:
                parts.append(f"### {name.capitalize()}\n\n{_figures(more)}\n")
    return "\n".join(parts) or "No measurements are stored; `make bench` makes them."


def _figures(rows: list[dict[str, Any]]) -> str:
    header = list(rows[0])
    return table(header, [[_figure(row.get(key)) for key in header] for row in rows])


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def conformance() -> str:
    """How many of ONNX's own test cases pass, as `python -m bench conformance` found it."""
    path = REPOSITORY / "bench" / "results" / "conformance.json"
    if not path.is_file():
        return "No run is stored; `python -m bench conformance` makes one."
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])


def ir() -> str:
    """A small graph as the printer writes it."""
    from dhc.ir import Builder, Graph, Location

    graph = Graph("head")
    features = graph.input("features", "f32", ("N", 3))
    weight = graph.input("weight", "f32", (3, 2))
    b = Builder(graph, Location(source="net.onnx", node="head", op="Gemm"))
    scores = b.add(b.matmul(features, weight), b.constant([0.5, -1.0], "f32", name="bias"))
    graph.output(b.softmax(scores, axis=-1), names=["probabilities"])
    return f"```text\n{graph}```"


def ops() -> str:
    """The registry, one table for each kind: what an op takes, whether it has a gradient, what it follows."""
    from dhc.ir import all_ops

    groups: dict[str, list[list[str]]] = {}
    for op in all_ops():
        groups.setdefault(op.kind.name, []).append([f"`{_signature(op)}`", op.doc, _gradient(op), op.source])
    parts = [f"{sum(map(len, groups.values()))} ops, by kind. A `?` marks what may be left out, `...` any number.\n"]
    for kind in sorted(groups):
        parts.append(f"### {kind}\n\n{table(['op', 'what it is', 'gradient', 'follows'], groups[kind])}\n")
    return "\n".join(parts)


def _gradient(op: Any) -> str:
    from dhc.ir import NotDifferentiable
    from dhc.ir.kinds import Composite

    if isinstance(op.grad, NotDifferentiable):
        return f"none: {op.grad.reason}"
    if op.grad is None:
        return "of its parts" if isinstance(op.kind, Composite) else "none"
    return "yes"


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


def support() -> str:
    """What each target says of every op, asked with the examples that the tests use, for every element type."""
    from dhc.backends.registry import backend_names
    from dhc.compiler import unsupported_nodes
    from dhc.ir import all_ops
    from dhc.ir.dtypes import ALL
    from dhc.passes.base import run_passes
    from dhc.passes.pipelines import standard_pipeline
    from tests.ir.op_examples import examples_for

    targets = [name for name in backend_names() if name not in ("reference", "null")]
    rows, limits = [], []
    for op in all_ops():
        graphs: dict[str, Any] = {}
        for example in examples_for(op):
            key = ", ".join(dict.fromkeys(d.name for d in example.dtypes)) or "-"
            graphs.setdefault(key, example.graph())
        cells = []
        for target in targets:
            refused: dict[str, str] = {}
            for key, graph in graphs.items():
                working = graph.clone()
                run_passes(working, standard_pipeline(target))
                problems = unsupported_nodes(working, target)
                if problems:
                    refused[key] = problems[0][1]
            taken = len(graphs) - len(refused)
            cells.append("as its nested graphs" if not graphs else f"{taken} of {len(graphs)}" if refused else "yes")
            for reason, keys in _by_reason(refused).items():
                shown = "every type" if len(keys) == len(graphs) and len(keys) > 1 else "; ".join(keys)
                limits.append([f"`{op.name}`", target, shown, reason])
        types = sorted({d for spec in op.operands for d in spec.dtypes}, key=list(ALL.values()).index)
        rows.append([f"`{op.name}`", op.kind.name, _families([d.name for d in types]) or "-", _gradient(op), *cells])
    legend = "\n".join(f"- *{family}*: {' '.join(names)}" for family, names in FAMILIES.items())
    parts = [f"{legend}\n", table(["op", "kind", "element types", "gradient", *targets], rows), "\n## Limitations\n"]
    parts.append(table(["op", "target", "element types", "reason"], limits) if limits else "None.")
    return "\n".join(parts)


def onnx() -> str:
    """Every ONNX operator: the versions that are imported, the element types by what runs them on the CPU target."""
    from onnx_operators import answers, types_not_read, versions

    found = answers()
    parts, refused, limits = [], [], []
    known = versions()
    for domain in sorted({domain for domain, _ in known}):
        rows = []
        for (own, name), history in known.items():
            if own != domain:
                continue
            without = [str(version) for version, how in history if not how]
            if without:
                refused.append([f"{domain}.{name}", ", ".join(without)])
            taken = [f"*{version}*" if how == "function" else str(version) for version, how in history if how]
            if not taken:
                continue
            cases = found.get((domain, name), [])
            cells = [_types_of(case.dtype for case in cases if case.how == how) for how in HOW]
            rows.append([name, ", ".join(taken), *(cells if cases else ["no case", "", ""])])
            reasons: dict[str, set[str]] = {}
            for case in cases:
                if case.reason:
                    reasons.setdefault(_in_short(case.reason), set()).add(case.dtype)
            limits.extend([name, _types_of(dtypes), reason] for reason, dtypes in reasons.items())
        if rows:
            parts.append(f"### {domain}\n\n{table(['operator', 'versions', *HOW], rows)}\n")
    parts.append(f"### Limitations of the CPU target\n\n{table(['operator', 'element types', 'reason'], limits)}\n")
    parts.append(f"### Not imported\n\n{table(['operator', 'versions'], refused)}\n")
    parts.append(f"Element types that are not read: {', '.join(types_not_read())}.\n")
    return "\n".join(parts)


def _in_short(reason: str) -> str:
    """A reason without the shapes of the case that it was found with."""
    return re.sub(r"^(\w+)\(.*operand .* is one of .*", r"the op `\1` does not take this type", reason)


HOW = ("compiled", "opaque", "interpreted")


def _types_of(dtypes: Iterable[str]) -> str:
    from dhc.ir.dtypes import ALL

    order = list(ALL)
    return _families(sorted(set(dtypes), key=order.index))


FAMILIES = {
    "floats": ("f64", "f32", "f16", "bf16"),
    "integers": ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8"),
    "small integers": ("i4", "u4", "i2", "u2"),
    "small floats": ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f4e2m1"),
    "complex": ("c64", "c128"),
}


def _families(names: list[str]) -> str:
    """Element types with whole families named as such."""
    parts, left = [], list(names)
    for family, members in FAMILIES.items():
        if set(members) <= set(left):
            parts.append(f"*{family}*")
            left = [name for name in left if name not in members]
    return " ".join([*parts, *left])


def _by_reason(refused: dict[str, str]) -> dict[str, list[str]]:
    """Examples by the reason why they are refused; reasons that differ in an element type alone are one."""
    found: dict[str, list[str]] = {}
    for key, reason in refused.items():
        found.setdefault(re.sub(r"^(seq|opt)<.*> ", lambda m: f"{_CONTAINERS[m[1]]} ", reason), []).append(key)
    return found


_CONTAINERS = {"seq": "a sequence", "opt": "an optional"}


def cli() -> str:
    """Arguments and options of every verb, as the command line itself knows them."""
    from typer.main import get_command

    from dhc.cli.main import app

    parts = []
    for name, command in get_command(app).commands.items():
        rows = []
        for parameter in command.params:
            names = " ".join(f"`{text}`" for text in (*parameter.opts, *parameter.secondary_opts))
            is_argument = parameter.param_type_name == "argument"
            shown = f"`{parameter.metavar or parameter.name.upper()}`" if is_argument else names
            rows.append([shown, " ".join((getattr(parameter, "help", None) or "").split())])
        summary = " ".join((command.help or "").partition("\n\n")[0].split())
        parts.append(f"## dhc {name}\n\n{summary}\n\n{table(['argument or option', 'meaning'], rows)}\n")
    return "\n".join(parts)


def exit_codes() -> str:
    """What a script can tell from the status of a command."""
    from dhc.cli.failures import EXIT_CODES

    return table(["code", "meaning"], [[str(code), meaning] for code, meaning in EXIT_CODES.items()])


PARTS: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "conformance": conformance,
    "onnx": onnx,
    "ir": ir,
    "ops": ops,
    "support": support,
    "passes": passes,
    "cli": cli,
    "exit_codes": exit_codes,
}
