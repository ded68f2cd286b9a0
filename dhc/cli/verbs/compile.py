"""``dhc compile``: a model to an artifact."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dhc.cli.compiling import show_report
from dhc.cli.models import open_graph
from dhc.cli.options import (
    AsJson,
    Cpu,
    Debug,
    Exact,
    MaxMemory,
    Model,
    NoCache,
    Precision,
    PrintAfter,
    Shapes,
    Threads,
    Verify,
    parse_bytes,
)
from dhc.cli.output import Output, require_folder
from dhc.cli.reuse import compile_report, reuse_of
from dhc.errors import UsageError

if TYPE_CHECKING:
    from dhc.ir.graph import Graph
    from dhc.passes.base import Pass


def compile_model(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The artifact to write. Default: the model's name with .dhc.")
    ] = None,
    target: Annotated[str, typer.Option("--target", "--targets", help="Device to compile for.")] = "cpu",
    shape: Shapes = [],  # noqa: B006 - Typer reads the default and never changes it
    threads: Threads = None,
    cpu: Cpu = None,
    max_memory: MaxMemory = None,
    precision: Precision = "fp32",
    tune: Annotated[
        float | None,
        typer.Option("--tune", metavar="SECONDS", help="Measure on this machine which methods are fastest, so long."),
    ] = None,
    emit_kernels: Annotated[
        Path | None, typer.Option("--emit-kernels", metavar="DIR", help="Write the sources of the kernels to a folder.")
    ] = None,
    emit: Annotated[
        tuple[str, Path] | None, typer.Option("--emit", metavar="kernels DIR", help="The same as --emit-kernels DIR.")
    ] = None,
    print_after: PrintAfter = [],  # noqa: B006
    verify: Verify = False,
    exact: Exact = False,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compile a model into an artifact that runs without a compiler."""
    import dhc

    if emit is not None and emit[0] != "kernels":
        raise UsageError(f"there is nothing to emit that is called {emit[0]!r}", hint="write --emit kernels DIR")
    folder = emit[1] if emit is not None else emit_kernels
    path = _target_path(model, output)
    out = Output(as_json)
    seconds: dict[str, float] = {}
    targets = [name.strip() for name in target.split(",") if name.strip()]
    data: dict[str, Any] = {"model": model, "artifact": str(path), "targets": targets, "threads": threads}
    start = time.perf_counter()
    reuse = None
    if not (no_cache or folder or print_after or verify or tune) and targets == ["cpu"]:
        reuse = reuse_of(model, cpu, shape, threads, parse_bytes(max_memory), precision, exact)
    entry = None if reuse is None else reuse.find()
    if entry is not None and entry.copy(path):
        data.update(entry.report)
        data["seconds"] = {"reading the cache": time.perf_counter() - start}
        _finish(out, data, None)
        return
    with out.progress() as progress:
        progress("importing")
        start = time.perf_counter()
        graph = open_graph(model, shape)
        seconds["import"] = time.perf_counter() - start
        progress("passes")
        artifact = dhc.compile(
            graph, targets=targets, cpu=cpu, threads=threads, verify=verify, cache=not no_cache, exact=exact,
            emit=folder, max_memory=parse_bytes(max_memory), precision=precision, tune=tune,
            after_pass=pass_printer(print_after, targets), progress=progress,
        )  # fmt: skip
        progress("writing")
        start = time.perf_counter()
        artifact.save(path)
        seconds.update(artifact.report.seconds)
        seconds["writing"] = time.perf_counter() - start
    report = compile_report(artifact, graph, seconds, threads, path)
    if reuse is not None:
        reuse.keep(path, report)
    data.update(report)
    _finish(out, data, folder)


def _finish(out: Output, data: dict[str, Any], sources: Path | None) -> None:
    show_report(out, data)
    out.line(f"wrote {data['artifact']}" + (f" and the kernels' sources in {sources}" if sources else ""))
    inputs = "".join(f" --input {value['name']}=FILE" for value in data["inputs"])
    out.end(data, f"dhc run {data['artifact']}{inputs}")


def _target_path(model: str, output: Path | None) -> Path:
    if output is not None:
        require_folder(output)
        return output
    if model == "-":
        raise UsageError("the artifact of a model from standard input needs a name", hint="write -o model.dhc")
    return Path(Path(model).stem + ".dhc")


def pass_printer(names: list[str], targets: list[str] | None = None) -> Callable[[Pass, Graph], None] | None:
    """What prints the graph on standard error after the named passes; None when none is named.

    Raises:
        UsageError: a name is no pass, or none that runs for the targets.
    """
    if not names:
        return None
    from dhc.ir.text import print_graph
    from dhc.passes.base import find_pass
    from dhc.passes.pipelines import standard_pipeline

    wanted = [name for entry in names for name in entry.split(",") if name]
    for name in wanted:
        if name != "all":
            find_pass(name)
            running = {p.name for t in targets or [] for p in standard_pipeline(t)}
            if targets and name not in running:
                raise UsageError(
                    f"the pass {name!r} does not run for {', '.join(targets)}", hint="use `dhc opt --passes`"
                )

    def show(pass_: Pass, graph: Graph) -> None:
        if "all" in wanted or pass_.name in wanted:
            sys.stderr.write(f"// after {pass_}\n{print_graph(graph, constants='elide')}\n")

    return show
