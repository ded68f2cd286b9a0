"""``dhc compare``: answers of a backend beside those of another one or of onnxruntime, tensor by tensor."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dhc.cli.engine import OnnxRuntime, graph_inputs, has_onnxruntime
from dhc.cli.models import ONNX, kind_of, open_graph, shape_words
from dhc.cli.options import AsJson, Debug, Inputs, Model, Preprocessing, Shapes, Threads
from dhc.cli.output import Output, Progress
from dhc.errors import DhcError, UsageError

if TYPE_CHECKING:
    from dhc.cli.difference import Difference, Tolerance
    from dhc.ir.graph import Graph, Node

_SHOWN = 20


def compare(
    model: Model,
    backend: Annotated[str, typer.Option("--backend", help="The backend to examine.")] = "cpu",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="What is taken as right: reference, onnxruntime, or another backend. "
            "Default: onnxruntime for ONNX models where it is installed, else reference.",
        ),
    ] = None,
    inputs: Inputs = [],  # noqa: B006 - Typer reads the default and never changes it
    pre: Preprocessing = "none",
    shape: Shapes = [],  # noqa: B006
    threads: Threads = None,
    reduce: Annotated[
        Path | None, typer.Option("--reduce", metavar="DIR", help="Write the smallest failing part to this folder.")
    ] = None,
    rtol: Annotated[float, typer.Option("--rtol", min=0, help="Allowed difference, relative to the largest.")] = 1e-4,
    atol: Annotated[float, typer.Option("--atol", min=0, help="Allowed absolute difference.")] = 1e-6,
    outputs_only: Annotated[bool, typer.Option("--outputs-only", help="Do not look at intermediate tensors.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of random inputs.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two backends tensor by tensor and name the first node that differs."""
    from dhc.cli.difference import Tolerance
    from dhc.cli.feeds import collect_inputs
    from dhc.cli.samples import assumed_sizes, random_inputs
    from dhc.cli.shapes import parse_shapes

    out = Output(as_json)
    is_onnx = kind_of(model) == ONNX
    right = against or ("onnxruntime" if is_onnx and has_onnxruntime() else "reference")
    tolerance = Tolerance(rtol, atol)
    with out.progress() as progress:
        progress("importing")
        graph = open_graph(model, shape)
        specs = graph_inputs(graph)
        shapes = parse_shapes(shape, [spec.name for spec in specs])
        assumed = [] if inputs else assumed_sizes(specs, shapes)
        feeds = collect_inputs(specs, inputs, pre, shapes, seed) if inputs else random_inputs(specs, shapes, seed)
        found = _differences(
            graph, backend, right, model if is_onnx else None, feeds, threads, tolerance, progress, outputs_only
        )
        wrong = [d for d in found if not d.ok]
        first = wrong[0] if wrong else None
        failed = any(not d.ok for d in found if d.name in graph.output_names)
        reduced = None
        if reduce is not None and first is not None:
            progress("reducing")
            reduced = _reduce(graph, model, first, backend, right, feeds, threads, tolerance, reduce)
    data: dict[str, Any] = {
        "model": model,
        "backend": backend,
        "against": right,
        "equal": not failed,
        "rtol": rtol,
        "atol": atol,
        "assumed_sizes": dict.fromkeys(assumed, 1),
        "first_difference": None if first is None else first.data(),
        "tensors": [d.data() for d in found],
        "reduced": reduced,
    }
    _show(out, data, found, graph)
    if assumed:
        entries = [{"name": s.name, "shape": list(s.shape)} for s in specs]
        out.line(f"sizes {', '.join(assumed)} were taken as 1; others by{shape_words(entries)}")
    if reduced is not None:
        out.line(reduced["said"])
    follow = f"dhc compare {model}{' --against ' + against if against else ''} --reduce failure"
    out.end(data, follow if failed and reduce is None else f"dhc bench {model}")
    if failed:
        raise typer.Exit(1)


def run_engine(
    name: str, graph: Graph, feeds: Mapping[str, Any], threads: int | None, model: str | bytes | None = None
) -> dict[str, Any]:
    """Runs a graph: by the interpreter, by onnxruntime (from ``model``, else exported), or compiled by a backend."""
    if name == "reference":
        from dhc.ir.interpreter import interpret

        return dict(zip(graph.output_names, interpret(graph, feeds)))
    if name == "onnxruntime":
        if model is None:
            from dhc.frontend.onnx import to_onnx

            model = to_onnx(graph).SerializeToString()
        return OnnxRuntime(model, threads).run(feeds)
    import dhc

    with dhc.compile(graph, targets=[name]).session(threads=threads) as session:
        results: dict[str, Any] = session.run(dict(feeds))
        return results


def _differences(
    graph: Graph, backend: str, against: str, model: str | None, feeds: Mapping[str, Any], threads: int | None,
    tolerance: Tolerance, progress: Progress, outputs_only: bool,
) -> list[Difference]:  # fmt: skip
    """Differences of all tensors that both sides name, in the order of the graph, the outputs among them.

    Outputs are compared as users get them: from the graph compiled as it is. Intermediate tensors need a graph that
    returns them, in which less can be fused.
    """
    from dhc.cli.difference import difference

    progress(f"running {backend}")
    mine = run_engine(backend, graph, feeds, threads)
    places = {name: str(value.location) for name, value in zip(graph.output_names, graph.outputs)}
    if outputs_only:
        progress(f"running {against}")
        right = run_engine(against, graph, feeds, threads, model)
        return [difference(n, places[n], mine[n], right[n], tolerance) for n in graph.output_names if n in right]
    from dhc.cli.subgraph import tapped

    taps, makers = tapped(graph)
    progress(f"running {backend} with all tensors")
    inner = run_engine(backend, taps, feeds, threads)
    progress(f"running {against}")
    if against == "onnxruntime" and model is not None:
        right = OnnxRuntime(_with_outputs(model, list(makers)), threads).run(feeds)
    else:
        right = run_engine(against, taps, feeds, threads)
    found = []
    for name, node in makers.items():
        if name in right and name not in mine:
            found.append(difference(name, str(node.location), inner[name], right[name], tolerance))
        elif name in right:
            found.append(difference(name, places[name], mine[name], right[name], tolerance))
    passed = [n for n in graph.output_names if n not in makers and n in right]
    return found + [difference(n, places[n], mine[n], right[n], tolerance) for n in passed]


def _with_outputs(model: str, names: list[str]) -> str | bytes:
    """The model with further outputs; names that it does not know (made during import) are left out."""
    import onnx

    proto = onnx.load(model)
    known = {name for node in proto.graph.node for name in node.output if name}
    present = {o.name for o in proto.graph.output}
    extra = [name for name in names if name in known and name not in present]
    proto.graph.output.extend([onnx.ValueInfoProto(name=name) for name in extra])
    if proto.ByteSize() > 2**31 - 1:
        raise UsageError(
            "the model is too large to add outputs to it", model, "use --outputs-only or --against reference"
        )
    return bytes(proto.SerializeToString())


def _show(out: Output, data: dict[str, Any], found: list[Difference], graph: Graph) -> None:
    outputs = [d for d in found if d.name in graph.output_names]
    inner = sorted((d for d in found if d not in outputs), key=lambda d: d.sqnr)[:_SHOWN]
    columns = ["tensor", ">max abs", ">max rel", ">SQNR dB", ">max value", "", "made by"]
    out.table(columns, [_row(d) for d in outputs], title="outputs")
    hidden = len(found) - len(outputs) - len(inner)
    title = "intermediate tensors" + (f", the {len(inner)} worst of {len(inner) + hidden}" if hidden else "")
    out.table(columns, [_row(d) for d in inner], title=title)
    first = data["first_difference"]
    if first is not None:
        out.line(f"first difference: {first['name']}, made by {first['node']}", "yellow")
    sides = f"{data['backend']} and {data['against']}"
    if data["equal"]:
        out.line(f"{sides} agree within {data['rtol']:g} x the largest value + {data['atol']:g}", "green")
    else:
        out.line(f"{sides} differ", "red")


def _row(d: Difference) -> list[str]:
    verdict = "ok" if d.ok else d.note or "differs"
    return [d.name, f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.sqnr:.1f}", f"{d.scale:.4g}", verdict, d.node]


def _reduce(
    graph: Graph, model: str, first: Difference, backend: str, against: str, feeds: Mapping[str, Any],
    threads: int | None, tolerance: Tolerance, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Writes the smallest part of the graph that fails by itself: ``part.txt`` and ``inputs.npz``."""
    import numpy as np

    from dhc_runtime.safe_write import write_bytes

    from dhc.cli.difference import difference
    from dhc.cli.subgraph import smallest_failure, tapped
    from dhc.ir.interpreter import interpret
    from dhc.ir.text import print_graph

    if graph.symbols() and kind_of(model) == ONNX:
        # A part cannot always tell its sizes from its inputs: with known sizes it need not.
        graph = open_graph(model, [f"{name}={'x'.join(map(str, array.shape))}" for name, array in feeds.items()])
    taps, makers = tapped(graph)
    culprit = makers.get(first.name)
    by_name = dict(zip(taps.output_names, interpret(taps, feeds)))
    values = dict(zip(graph.inputs, (feeds[v.name] for v in graph.inputs)))
    names = _names_of_values(makers, by_name)
    values.update({value: by_name[name] for value, name in names.items()})

    def fails(part: Graph, inputs: dict[str, Any]) -> bool:
        try:
            mine, right = run_engine(backend, part, inputs, threads), _right(against, part, inputs, threads)
        except DhcError:
            return False  # another failure than the one looked for
        return any(n in right and not difference(n, "", mine[n], right[n], tolerance).ok for n in mine)

    found = None if culprit is None else smallest_failure(graph, culprit, values, fails)
    part, inputs = found if found is not None else (graph, dict(feeds))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder: {error.strerror}", folder) from None
    buffer = io.BytesIO()
    np.savez(buffer, **inputs)
    text = folder / "part.txt"
    write_bytes(text, print_graph(part).encode())
    write_bytes(folder / "inputs.npz", buffer.getvalue())
    nodes = sum(1 for node in part if node.op.name != "constant")
    again = f"dhc compare {text} --input {folder / 'inputs.npz'}"
    said = f"wrote {text} ({nodes} nodes) and inputs.npz; see it again with: {again}"
    if found is None:
        said = f"no part fails by itself, so the whole was written: {said}"
    return {
        "graph": str(text),
        "inputs": str(folder / "inputs.npz"),
        "nodes": nodes,
        "whole": found is None,
        "said": said,
    }


def _right(against: str, part: Graph, inputs: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """The answer taken as right; what cannot be exported to onnxruntime is interpreted."""
    try:
        return run_engine(against, part, inputs, threads)
    except DhcError:
        if against != "onnxruntime":
            raise
        return run_engine("reference", part, inputs, threads)


def _names_of_values(makers: Mapping[str, Node], arrays: Mapping[str, Any]) -> dict[Any, str]:
    """Value of the graph -> name of the tensor; `tapped` names the results of a node in order."""
    from dhc.ir.types import TensorType

    result: dict[Any, str] = {}
    pending: dict[Node, list[Any]] = {}
    for name, node in makers.items():
        if node not in pending:
            pending[node] = [v for v in node.results if isinstance(v.type, TensorType) and v.dtype.kind != "s"]
        result[pending[node].pop(0)] = name
    return {value: name for value, name in result.items() if name in arrays}
