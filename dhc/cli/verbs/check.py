"""``dhc check``: what a target says of every op of a model, without compiling."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dhc.cli.models import graph_signature, open_graph, shape_words
from dhc.cli.options import AsJson, Debug, Model, Shapes
from dhc.cli.output import Output, format_bytes, format_count, format_seconds, format_shape
from dhc.errors import UnsupportedError

if TYPE_CHECKING:
    from dhc.ir.graph import Graph, Node

_SHOWN_REFUSALS = 40


def check(
    model: Model,
    target: Annotated[str, typer.Option("--target", "--targets", help="Device to ask.")] = "cpu",
    shape: Shapes = [],  # noqa: B006 - Typer reads the default and never changes it
    explain: Annotated[bool, typer.Option("--explain", help="List rewrites that almost applied.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show support and placement of every op, without compiling."""
    from dhc.backends.registry import get_backend
    from dhc.passes.base import refusals, run_passes
    from dhc.passes.pipelines import standard_pipeline

    out = Output(as_json)
    start = time.perf_counter()
    backend = get_backend(target)
    with out.progress() as progress:
        progress("importing")
        try:
            graph = open_graph(model, shape)
        except UnsupportedError as error:
            _not_imported(out, model, target, error)
            raise typer.Exit(error.exit_code) from None
        progress("passes")
        working = graph.clone()
        records = run_passes(working, standard_pipeline(target))
        progress("asking the target")
        rows = support_rows(working, target)
    refused = refusals(records)
    problems = [row for row in rows if row["reason"]]
    sides = graph_signature(graph)
    unavailable = backend.available()
    data: dict[str, Any] = {
        "model": model,
        "target": target,
        "supported": not problems,
        "unavailable": None if unavailable is None else str(unavailable),
        **sides,
        "nodes": sum(row["count"] for row in rows),
        "flops": sum(row["flops"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "ops": rows,
        "refusals": [{"rule": r.rule, "where": r.where, "reason": r.reason} for r in refused],
        "seconds": time.perf_counter() - start,
    }
    _show(out, data, graph.symbols(), explain)
    if problems:
        out.end(data, f"dhc inspect {model} --graph")
        raise typer.Exit(UnsupportedError.exit_code)
    out.end(data, f"dhc compile {model} --target {target}{''.join(f' --shape {s}' for s in shape)} -o model.dhc")


def support_rows(graph: Graph, target: str) -> list[dict[str, Any]]:
    """One row for each op and answer of the target: op, origin, count, device, reason, places, flops, bytes."""
    from dhc.backends.cost import moved_bytes, operations
    from dhc.compiler import unsupported_nodes
    from dhc.ir.kinds import Structural

    reasons: dict[int, str] = {id(node): reason for node, reason in unsupported_nodes(graph, target)}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for node in graph.walk():
        silent = isinstance(node.op.kind, Structural) and node.op.kind.name in ("constant", "group")
        reason = reasons.get(id(node), "")
        if silent and not reason:
            continue
        row = rows.setdefault(
            (node.op.name, reason),
            {
                "op": node.op.name,
                "from": [],
                "count": 0,
                "device": "" if reason else target,
                "reason": reason,
                "flops": 0,
                "bytes": 0,
                "places": [],
            },
        )
        row["count"] += 1
        if not node.regions:
            row["flops"] += operations(node)
            row["bytes"] += moved_bytes(node)
        if node.location.op and node.location.op not in row["from"]:
            row["from"].append(node.location.op)
        if reason:
            row["places"].append(_place(node))
    return sorted(rows.values(), key=lambda row: (not row["reason"], -row["flops"], row["op"]))


def _place(node: Node) -> str:
    return str(node.location)


def _show(out: Output, data: dict[str, Any], symbols: list[str], explain: bool) -> None:
    for side in ("inputs", "outputs"):
        for entry in data[side]:
            out.line(f"{side[:-1]:<7} {entry['name']}: {entry['dtype']}{format_shape(entry['shape'])}")
    rows = [
        [
            row["op"],
            ", ".join(row["from"][:3]) + (", ..." if len(row["from"]) > 3 else ""),
            row["count"],
            row["device"] or "none",
            format_count(row["flops"]),
            format_bytes(row["bytes"]),
            row["reason"],
        ]
        for row in data["ops"]
    ]
    out.table(["op", "from", ">count", "device", ">flops", ">bytes", "reason"], rows)
    open_sizes = f" (with {', '.join(symbols)} = 1; fix them by{shape_words(data['inputs'])})" if symbols else ""
    out.line(
        f"{data['nodes']} nodes, about {format_count(data['flops'])}flop and {format_bytes(data['bytes'])} moved"
        f"{open_sizes}; asked in {format_seconds(data['seconds'])}"
    )
    if data["unavailable"]:
        out.line(f"this machine cannot run the target {data['target']}: {data['unavailable']}")
    for row in data["ops"]:
        for place in row["places"]:
            out.line(f"not supported: {row['op']} at {place}: {row['reason']}", "red")
    if data["supported"]:
        out.line(f"the target {data['target']} takes every op", "green")
    if explain:
        out.line(f"{len(data['refusals'])} rewrites did not apply")
        for refusal in data["refusals"][:_SHOWN_REFUSALS]:
            out.line(f"  {refusal['rule']} at {refusal['where']}: {refusal['reason']}")
        if len(data["refusals"]) > _SHOWN_REFUSALS:
            out.line(f"  ... and {len(data['refusals']) - _SHOWN_REFUSALS} more (--json lists all)")
    elif data["refusals"]:
        out.line(f"{len(data['refusals'])} rewrites almost applied; --explain says why they did not")


def _not_imported(out: Output, model: str, target: str, error: UnsupportedError) -> None:
    """The model has operators without a meaning in dhc: all of them, with hints."""
    problems = [str(problem) for problem in error.problems]
    out.line(f"{error.message}:", "red")
    for problem in problems:
        out.line(f"  {problem}")
    if error.hint:
        out.line(f"hint: {error.hint}")
    data = {"model": model, "target": target, "supported": False, "unsupported": problems, "hint": error.hint}
    out.end(data, "dhc doctor")
