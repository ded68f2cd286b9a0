"""``dhc inspect``: what is inside an artifact or a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Annotated, Any

import typer

from dhc.cli.models import ARTIFACT, graph_signature, kind_of, open_graph, shape_words
from dhc.cli.options import AsJson, Debug, Runnable, Shapes
from dhc.cli.output import Output, format_bytes, format_shape
from dhc.errors import UsageError


def inspect_file(
    file: Runnable,
    graph: Annotated[bool, typer.Option("--graph", help="Print the IR text.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan of an artifact: buffers and steps.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="List the kernels of an artifact.")] = False,
    shape: Shapes = [],  # noqa: B006 - Typer reads the default and never changes it
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show signature, members, steps, memory and constants of a file."""
    out = Output(as_json)
    if kind_of(file) == ARTIFACT:
        _artifact(out, file, graph, plan, kernels)
        return
    if plan or kernels:
        raise UsageError("only artifacts have a plan and kernels", file, f"compile it first: dhc compile {file}")
    _model(out, file, shape, graph)


def _signature(out: Output, data: dict[str, Any]) -> None:
    for side in ("inputs", "outputs"):
        for entry in data[side]:
            out.line(f"{side[:-1]:<7} {entry['name']}: {entry['dtype']}{format_shape(entry['shape'])}")


def _model(out: Output, file: str, shape: list[str], show_graph: bool) -> None:
    from dhc.ir.text import print_graph

    graph = open_graph(file, shape)
    counts: Counter[str] = Counter()
    constants = 0
    for node in graph.walk():
        if node.op.name == "constant":
            constants += int(getattr(node.attrs["value"], "nbytes", 0))
        else:
            counts[node.op.name] += 1
    data: dict[str, Any] = {
        "file": file,
        "kind": "model",
        "name": graph.name,
        **graph_signature(graph),
        "symbols": graph.symbols(),
        "metadata": dict(graph.metadata),
        "nodes": sum(counts.values()),
        "ops": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "constant_bytes": constants,
    }
    if show_graph:
        data["graph"] = print_graph(graph, constants="elide")
        _print_text(out, data["graph"])
    else:
        out.fields([("model", graph.name), *data["metadata"].items()])
        _signature(out, data)
        out.table(["op", ">count"], list(data["ops"].items()))
        out.line(f"{data['nodes']} nodes, {format_bytes(constants)} constants")
    out.end(data, f"dhc check {file}{shape_words(data['inputs'])}")


def _print_text(out: Output, text: str) -> None:
    if not out.as_json:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def _artifact(out: Output, file: str, show_graph: bool, show_plan: bool, show_kernels: bool) -> None:
    from dhc_runtime.container import ArtifactReader, load_json
    from dhc_runtime.dims import format_expression

    with ArtifactReader(file) as reader:
        manifest = reader.manifest
        sizes = {name: len(reader.member(name)) for name in reader.members}
        program = load_json(reader.member("plan.json"), f"plan of {file}")["program"]
        data: dict[str, Any] = {
            "file": file,
            "kind": "artifact",
            "name": manifest.get("name"),
            "producer": manifest.get("producer"),
            "targets": manifest.get("targets"),
            "threads": manifest.get("threads"),
            "devices": manifest.get("devices"),
            "metadata": manifest.get("metadata"),
            "members": sizes,
        }
        for side in ("inputs", "outputs"):
            data[side] = [{**e, "shape": [format_expression(d) for d in e["shape"]]} for e in manifest[side]]
            for entry in data[side]:
                entry["shape"] = [int(d) if d.isdigit() else d for d in entry["shape"]]
        data.update(_plan_figures(program))
        if show_graph:
            data["graph"] = bytes(reader.member("graph.txt")).decode()
            _print_text(out, data["graph"])
        if show_plan:
            data["plan"] = program
            _print_text(out, json.dumps(program, indent=1))
        if show_kernels:
            data["kernels"] = _kernels(reader, data["devices"], program)
            rows = [[k["symbol"], k["steps"], format_bytes(k["bytes"])] for k in data["kernels"]]
            out.table(["kernel", ">steps", ">object"], rows)
    if not (show_graph or show_plan or show_kernels):
        _show_artifact(out, data)
    inputs = "".join(f" --input {entry['name']}=FILE" for entry in data["inputs"])
    out.end(data, f"dhc run {file}{inputs}")


def _plan_figures(program: dict[str, Any]) -> dict[str, Any]:
    from dhc.cli.compiling import available_cpus, memory_figures

    counts: Counter[str] = Counter()
    ops: Counter[str] = Counter()

    def walk(part: Any) -> None:
        # Control flow holds programs; wherever a list of items is, its entries say what they do.
        if isinstance(part, dict):
            for item in part.get("items", ()):
                counts[item["do"]] += 1
                if item["do"] == "kernel":
                    ops[item.get("op") or "?"] += 1
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                if isinstance(value, (dict, list)):
                    walk(value)

    walk(program)
    threads = available_cpus()
    return {
        "symbols": program.get("symbols", []),
        "buffers": len(program["buffers"]),
        "steps": dict(sorted(counts.items())),
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "memory": memory_figures(program, threads),
        "memory_threads": threads,
    }


def _kernels(reader: Any, devices: dict[str, Any], program: dict[str, Any]) -> list[dict[str, Any]]:
    from dhc_runtime.code_archive import read_archive

    used: Counter[str] = Counter()

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("do") == "kernel":
                used[part["symbol"]] += 1
            for value in part.values():
                walk(value)
        elif isinstance(part, list):
            for value in part:
                if isinstance(value, (dict, list)):
                    walk(value)

    walk(program)
    entries = []
    for device in devices.values():
        member = str(device.get("object", ""))
        if member.endswith(".a"):
            for symbol, code in read_archive(reader.member(member), member).items():
                entries.append({"symbol": symbol, "steps": used[symbol], "bytes": len(code)})
    return sorted(entries, key=lambda entry: (-entry["bytes"], entry["symbol"]))


def _show_artifact(out: Output, data: dict[str, Any]) -> None:
    out.fields([("artifact", data["name"]), ("made by", data["producer"]), ("targets", ", ".join(data["targets"]))])
    if data["threads"]:
        out.fields([("threads", data["threads"])])
    for name, device in data["devices"].items():
        features = device.get("features", [])
        out.line(f"device  {name}: {device.get('arch', device.get('kind', ''))}, needs {len(features)} CPU features")
    out.fields(list((data["metadata"] or {}).items()))
    _signature(out, data)
    out.table(["member", ">size"], [[name, format_bytes(size)] for name, size in data["members"].items()])
    steps = ", ".join(f"{count} {what}" for what, count in data["steps"].items()) or "none"
    out.fields([("steps", steps), ("buffers", data["buffers"])])
    memory = data["memory"]
    if memory is None:
        out.fields([("memory", f"depends on {', '.join(data['symbols']) or 'the data'}")])
    else:
        bound = format_bytes(memory["lower_bound"])
        ratio = (
            f"{memory['arena'] / memory['lower_bound']:.2f} x the bound by liveness, " if memory["lower_bound"] else ""
        )
        out.fields(
            [
                (
                    "memory",
                    f"{format_bytes(memory['arena'])} for {data['memory_threads']} threads ({ratio}{bound})",
                )
            ]
        )
