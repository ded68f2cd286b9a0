"""``dhc opt``: passes on IR text, text in and text out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dhc.cli.models import open_graph
from dhc.cli.options import AsJson, Debug, Model, PrintAfter, Shapes, Verify
from dhc.cli.output import Output, format_seconds, require_folder
from dhc.cli.verbs.compile import pass_printer
from dhc.errors import UsageError

if TYPE_CHECKING:
    from dhc.ir.graph import Graph
    from dhc.passes.base import PassRecord


def opt(
    model: Model,
    passes: Annotated[
        str,
        typer.Option(
            "--passes",
            metavar="LIST",
            help="Passes with options, such as fold,fuse{max_nodes=8}; or clean or standard, which are sequences; "
            "empty for none; list names them all.",
        ),
    ] = "standard",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the result: IR text, or ONNX when it ends in .onnx.")
    ] = None,
    shape: Shapes = [],  # noqa: B006 - Typer reads the default and never changes it
    print_after: PrintAfter = [],  # noqa: B006
    verify: Verify = False,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show the time of every pass, on stderr.")] = False,
    constants: Annotated[
        str, typer.Option("--constants", help="full: the text can be read back. elide: large ones as a hash. inline.")
    ] = "full",
    locations: Annotated[bool, typer.Option("--locations/--no-locations", help="Write where nodes came from.")] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run passes on IR text or a model and print the result."""
    from dhc.ir.text import print_graph
    from dhc.ir.text.printer import MODES
    from dhc.passes.base import parse_passes, run_passes

    out = Output(as_json, notes=output is None)
    require_folder(output)
    if passes == "list":
        _list_passes(as_json)
        return
    if constants not in MODES:
        raise UsageError(f"--constants {constants} is not one of {', '.join(MODES)}")
    sequence = parse_passes(passes)
    printer = pass_printer(print_after)
    graph = open_graph(model, shape)
    start = time.perf_counter()
    records = run_passes(graph, sequence, verify=verify, after=printer)
    seconds = time.perf_counter() - start
    data: dict[str, Any] = {"model": model, "passes": [_record(r) for r in records], "seconds": seconds}
    text = ""
    if output is None:
        text = print_graph(graph, locations=locations, constants=constants)
        data["text"] = text
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        _write(graph, output, constants, locations)
        data["output"] = str(output)
    if time_passes:
        rows = [[e["pass"], format_seconds(e["seconds"]), _counts(e["statistics"])] for e in data["passes"]]
        out.table(["pass", ">time", "changes"], [*rows, ["total", format_seconds(seconds), ""]])
    if output is not None:
        out.line(f"wrote {output}")
    # On a terminal the hint would stand between the text and the prompt: useful there, noise in a pipe.
    if output is not None or as_json or sys.stderr.isatty():
        out.end(data, f"dhc compile {output or model} -o model.dhc")


def _write(graph: Graph, path: Path, constants: str, locations: bool) -> None:
    from dhc_runtime.safe_write import write_bytes

    if path.suffix == ".onnx":
        from dhc.frontend.onnx import save_onnx

        save_onnx(graph, path)
        return
    from dhc.ir.text import print_graph

    write_bytes(path, print_graph(graph, locations=locations, constants=constants).encode())


def _record(record: PassRecord) -> dict[str, Any]:
    return {
        "pass": str(record.pass_),
        "seconds": record.seconds,
        "modified": record.result.modified,
        "statistics": record.result.statistics,
        "refusals": [{"rule": r.rule, "where": r.where, "reason": r.reason} for r in record.result.refusals],
    }


def _counts(statistics: dict[str, int]) -> str:
    return ", ".join(f"{what} {n}" for what, n in statistics.items()) or "none"


def _list_passes(as_json: bool) -> None:
    import dataclasses
    import inspect

    from dhc.passes.base import find_pass, pass_names

    entries = []
    for name in pass_names():
        cls = find_pass(name)
        options = {f.name: f.default for f in dataclasses.fields(cls)}
        doc = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
        entries.append({"pass": name, "options": options, "doc": doc})
    out = Output(as_json)
    rows = [[e["pass"], ", ".join(f"{k}={v}" for k, v in e["options"].items()), e["doc"]] for e in entries]
    out.table(["pass", "options", "what it does"], rows)
    out.end({"passes": entries}, "dhc opt --passes fold,fuse model.onnx")
