"""``dhc bench``: how long a model takes, beside onnxruntime in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from dhc.cli.engine import OnnxRuntime, Opened, has_onnxruntime, open_session
from dhc.cli.models import ARTIFACT, ONNX, kind_of, shape_words
from dhc.cli.options import AsJson, Cpu, Debug, Inputs, NoCache, Preprocessing, Runnable, Shapes, Threads
from dhc.cli.output import Output, Progress, format_seconds
from dhc.errors import UsageError

_PERCENTILES = (50, 95, 99)


def bench(
    file: Runnable,
    shape: Shapes = [],  # noqa: B006 - Typer reads the default and never changes it
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100_000, help="Measured runs of each engine.")] = 50,
    warmup: Annotated[int, typer.Option("--warmup", min=0, max=1000, help="Runs before measuring.")] = 5,
    against: Annotated[
        str | None,
        typer.Option("--against", help="onnxruntime or none. Default: onnxruntime where it is installed."),
    ] = None,
    inputs: Inputs = [],  # noqa: B006
    pre: Preprocessing = "none",
    cpu: Cpu = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of random inputs.")] = 0,
    by_layer: Annotated[
        bool,
        typer.Option("--layers", help="Show each step's time against what the machine could do, most lost time first."),
    ] = False,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure latency, interleaved with onnxruntime where it is installed."""
    from dhc.cli.feeds import collect_inputs
    from dhc.cli.samples import assumed_sizes, random_inputs
    from dhc.cli.shapes import parse_shapes

    out = Output(as_json)
    is_onnx = kind_of(file) == ONNX
    if against not in (None, "onnxruntime", "none"):
        raise UsageError(f"--against {against} is neither onnxruntime nor none")
    if against == "onnxruntime" and not is_onnx:
        raise UsageError("onnxruntime takes ONNX models alone", file, "give the ONNX model instead of the artifact")
    with out.progress() as progress:
        opened = open_session(file, progress, shape, threads, cpu, not no_cache)
        if by_layer and opened.compiled is None:
            raise UsageError("--layers needs the model", file, "give the ONNX model or IR text instead of the artifact")
        session = opened.session
        shapes = parse_shapes(shape, [spec.name for spec in opened.inputs])
        assumed = [] if inputs else assumed_sizes(opened.inputs, shapes)
        feeds = (
            collect_inputs(opened.inputs, inputs, pre, shapes, seed)
            if inputs
            else random_inputs(opened.inputs, shapes, seed)
        )
        if by_layer:
            _bench_layers(out, opened, feeds, rounds, file, progress)
            return
        engines: dict[str, Callable[[], dict[str, Any]]] = {"dhc": lambda: session.run(feeds)}
        ready: dict[str, dict[str, float]] = {"dhc": opened.seconds}
        other: OnnxRuntime | None = None
        if is_onnx and (against == "onnxruntime" or (against is None and has_onnxruntime())):
            progress("opening onnxruntime")
            other = OnnxRuntime(file, session.threads)
            engines["onnxruntime"] = lambda: other.run(feeds)
            ready["onnxruntime"] = {"load": other.seconds}
        times, answers = measure(engines, rounds, warmup, progress)
    figures = {name: {**_figures(values), "ready_seconds": ready[name]} for name, values in times.items()}
    data: dict[str, Any] = {
        "file": file,
        "threads": session.threads,
        "rounds": rounds,
        "warmup": warmup,
        "inputs": {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in feeds.items()},
        "assumed_sizes": dict.fromkeys(assumed, 1),
        "engines": figures,
        "ratio": None,
        "answers": None,
    }
    if other is not None:
        data["ratio"] = figures["onnxruntime"]["p50_ms"] / figures["dhc"]["p50_ms"]
        data["answers"] = _agreement(answers["dhc"], answers["onnxruntime"])
        data["onnxruntime"] = other.version
    _show(out, data)
    if assumed:
        entries = [{"name": s.name, "shape": list(s.shape)} for s in opened.inputs]
        out.line(f"sizes {', '.join(assumed)} were taken as 1; others by{shape_words(entries)}")
    session.close()
    out.end(data, f"dhc run {file} --input {'random' if len(feeds) == 1 else 'x=FILE'} --profile")


def _bench_layers(
    out: Output, opened: Opened, feeds: Mapping[str, Any], rounds: int, file: str, progress: Progress
) -> None:
    """The table of ``--layers``."""
    from functools import partial

    from dhc.backends.cpu.limits import peak_gflops, reading_speed
    from dhc.cli.layers import Limits, input_sizes, layers, profile_runs, show

    session, graph = opened.session, opened.compiled
    assert graph is not None
    progress("measuring the machine's limits")
    limits = Limits(peak_gflops(session.threads), partial(reading_speed, threads=session.threads))
    progress("measuring")
    found = layers(graph, profile_runs(session, feeds, rounds), input_sizes(graph, feeds), limits)
    show(out, found, limits, session.threads)
    data = {
        "file": file,
        "threads": session.threads,
        "rounds": rounds,
        "peak_gflops": limits.gflops,
        "memory_gigabytes_per_second": limits.gigabytes(1 << 28),
        "layers": [layer.as_json() for layer in found],
    }
    session.close()
    out.end(data, f"dhc bench {file}")


def measure(
    engines: Mapping[str, Callable[[], dict[str, Any]]], rounds: int, warmup: int, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Seconds of every run by engine, which take turns so that they see the same machine, and the last answers."""
    answers: dict[str, dict[str, Any]] = {}
    for _ in range(warmup):
        for run in engines.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds):
        progress("measuring", number, rounds)
        # Who begins changes, so that neither always finds the caches as the other left them.
        order = list(engines.items())[:: 1 if number % 2 == 0 else -1]
        for name, run in order:
            start = time.perf_counter()
            answers[name] = run()
            times[name].append(time.perf_counter() - start)
    return times, answers


def _figures(seconds: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    milliseconds = np.asarray(seconds) * 1e3
    figures: dict[str, Any] = {f"p{p}_ms": float(np.percentile(milliseconds, p)) for p in _PERCENTILES}
    figures.update(min_ms=float(milliseconds.min()), mean_ms=float(milliseconds.mean()))
    return figures


def _agreement(mine: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    from dhc.cli.difference import Tolerance, difference

    found = [difference(name, "", mine[name], right[name], Tolerance()) for name in mine if name in right]
    return {"equal": all(d.ok for d in found), "max_abs": max((d.max_abs for d in found), default=0.0)}


def _show(out: Output, data: dict[str, Any]) -> None:
    rows = []
    for name, figures in data["engines"].items():
        ready = ", ".join(f"{stage} {format_seconds(s)}" for stage, s in figures["ready_seconds"].items())
        rows.append([name, *(f"{figures[f'p{p}_ms']:.3f}" for p in _PERCENTILES), f"{figures['min_ms']:.3f}", ready])
    out.table(["engine", *(f">p{p} ms" for p in _PERCENTILES), ">min ms", "before"], rows)
    shapes = ", ".join(f"{name} {'x'.join(map(str, entry['shape']))}" for name, entry in data["inputs"].items())
    plural = "" if data["threads"] == 1 else "s"
    out.line(f"{data['threads']} thread{plural}, {data['rounds']} rounds in turns after {data['warmup']}; {shapes}")
    if data["ratio"] is not None:
        ratio = data["ratio"]
        words = f"{ratio:.2f} x as fast as" if ratio >= 1 else f"{1 / ratio:.2f} x slower than"
        out.line(f"dhc is {words} onnxruntime {data['onnxruntime']} (p50)")
        answers = data["answers"]
        verdict = "agree" if answers["equal"] else "DIFFER: run `dhc compare`"
        out.line(f"answers {verdict}, largest difference {answers['max_abs']:.3g}")
    elif kind_of(data["file"]) == ARTIFACT:
        out.line("give the ONNX model instead of the artifact to compare with onnxruntime")
    elif not has_onnxruntime():
        out.line("onnxruntime is not installed, so nothing to compare with: pip install 'dhc[bench]'")
