"""``dhc run``: an artifact or a model on real inputs."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dhc.cli.engine import open_session
from dhc.cli.models import ARTIFACT, kind_of
from dhc.cli.options import AsJson, Cpu, Debug, Inputs, NoCache, Preprocessing, Runnable, Shapes, Threads
from dhc.cli.output import Output, format_seconds, format_shape, require_folder
from dhc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_SHOWN_STEPS = 30


def run(
    file: Runnable = "",
    inputs: Inputs = [],  # noqa: B006 - Typer reads the default and never changes it
    pre: Preprocessing = "none",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs: .npy (one output) or .npz.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Show the largest class scores.")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Names of the classes, one a line.")] = None,
    shape: Shapes = [],  # noqa: B006
    threads: Threads = None,
    cpu: Cpu = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show the time of every step.")] = False,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write the steps as a trace for Perfetto; implies --profile.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of random inputs.")] = 0,
    no_cache: NoCache = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run an artifact or a model on files and show or write the outputs."""
    out = Output(as_json)
    if pre == "list":
        _list_preprocessing(out)
        return
    if not file:
        raise UsageError("Missing argument 'FILE'", hint="`dhc run --help` shows what it takes")
    from dhc.cli.feeds import collect_inputs
    from dhc.cli.preprocessing import find_preprocessing
    from dhc.cli.shapes import parse_shapes

    find_preprocessing(pre)
    if output is not None and output.suffix.lower() not in (".npy", ".npz"):
        raise UsageError(f"outputs are written as .npy or .npz, not {output.suffix or 'without a suffix'!r}")
    require_folder(output)
    require_folder(trace)
    profile = profile or trace is not None
    with out.progress() as progress:
        opened = open_session(file, progress, shape, threads, cpu, not no_cache, reuse=True)
        session = opened.session
        names = [spec.name for spec in opened.inputs]
        if output is not None and output.suffix.lower() == ".npy" and len(session.outputs) != 1:
            listed = ", ".join(info.name for info in session.outputs)
            raise UsageError(
                f"there are {len(session.outputs)} outputs ({listed}) and .npy holds one array",
                hint="write -o out.npz",
            )
        progress("reading inputs")
        feeds = collect_inputs(opened.inputs, inputs, pre, parse_shapes(shape, names), seed)
        if profile:
            session.run(feeds)  # the first run also plans memory: the profiled one is an ordinary one
        progress("running")
        start = time.perf_counter()
        results = session.run(feeds, profile=profile)
        opened.seconds["run"] = time.perf_counter() - start
    data: dict[str, Any] = {"file": file, "threads": session.threads, "seconds": opened.seconds}
    data["inputs"] = [_summary(name, array) for name, array in feeds.items()]
    data["outputs"] = [_summary(name, array) for name, array in results.items()]
    _show_tensors(out, data)
    if top_k is not None or labels is not None:
        data["top"] = _show_top(out, results, top_k or 5, labels)
    if profile:
        data["steps"] = _show_steps(out, session)
    if trace is not None:
        _write_json(trace, session.trace())
        out.line(f"wrote {trace}; open it in https://ui.perfetto.dev")
        data["trace"] = str(trace)
    if output is not None:
        _write_arrays(output, results)
        out.line(f"wrote {output}")
        data["output"] = str(output)
    times = ", ".join(f"{stage} {format_seconds(value)}" for stage, value in opened.seconds.items())
    out.line(f"{times}, {session.threads} thread{'' if session.threads == 1 else 's'}")
    session.close()
    out.end(data, f"dhc bench {file}" if kind_of(file) == ARTIFACT else f"dhc compile {file} -o {Path(file).stem}.dhc")


def _summary(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    import numpy as np

    entry: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and (array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"):
        wide = array.astype(np.float64)
        with np.errstate(all="ignore"):
            entry.update(min=float(wide.min()), max=float(wide.max()), mean=float(wide.mean()))
        entry["non_finite"] = int(np.count_nonzero(~np.isfinite(wide)))
    return entry


def _show_tensors(out: Output, data: dict[str, Any]) -> None:
    rows = []
    for side in ("inputs", "outputs"):
        for entry in data[side]:
            figures = [f"{entry[key]:.6g}" if key in entry else "" for key in ("min", "max", "mean")]
            note = f"{entry['non_finite']} not finite" if entry.get("non_finite") else ""
            rows.append([side[:-1], entry["name"], f"{entry['dtype']}{format_shape(entry['shape'])}", *figures, note])
    columns = ["", "name", "type", ">min", ">max", ">mean"]
    if any(row[-1] for row in rows):
        out.table([*columns, "note"], rows)
    else:
        out.table(columns, [row[:-1] for row in rows])


def _show_top(out: Output, results: dict[str, Any], count: int, labels: Path | None) -> list[dict[str, Any]]:
    from dhc.cli.classes import read_labels, top_classes

    names = None if labels is None else read_labels(labels)
    found = top_classes(results, count, names)
    several = len({entry["image"] for entry in found}) > 1
    rows = [
        [
            entry["image"] if several else "",
            entry["rank"],
            entry["class"],
            entry["label"] or "",
            f"{entry['score']:.6g}",
        ]
        for entry in found
    ]
    out.table([">image" if several else "", ">rank", ">class", "label", ">score"], rows)
    return found


def _show_steps(out: Output, session: Any) -> list[dict[str, Any]]:
    steps = [step._asdict() for step in session.profile()]
    total = sum(step["microseconds"] for step in steps)
    slowest = sorted(steps, key=lambda step: -step["microseconds"])[:_SHOWN_STEPS]
    rows = [
        [step["op"], f"{step['microseconds']:.1f}", f"{step['microseconds'] / total:.1%}", step["node"], step["symbol"]]
        for step in slowest
    ]
    out.table(["op", ">us", ">share", "node", "kernel"], rows)
    more = f", of which the {len(slowest)} slowest are shown" if len(slowest) < len(steps) else ""
    out.line(f"{len(steps)} steps, {total / 1e3:.3f} ms in total{more}")
    return steps


def _write_arrays(path: Path, results: dict[str, Any]) -> None:
    import numpy as np

    from dhc_runtime.safe_write import write_bytes

    buffer = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez(buffer, **results)
    else:
        (array,) = results.values()
        np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def _write_json(path: Path, data: Any) -> None:
    from dhc_runtime.safe_write import write_bytes

    write_bytes(path, json.dumps(data).encode())


def _list_preprocessing(out: Output) -> None:
    from dhc.cli.preprocessing import PREPROCESSING

    entries = [{"name": p.name, "doc": p.doc} for p in PREPROCESSING.values()]
    out.table(["name", "what it does"], [[e["name"], e["doc"]] for e in entries])
    out.end({"preprocessing": entries}, "dhc run model.dhc --input image.png --pre unit --top-k 5")
