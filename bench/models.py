"""Whole models, dhc beside the other engines, taking turns on the same input; a wrong answer ends with status 1.

    python -m bench models                                          everything
    python -m bench models --only resnet18,vgg16 --threads 1,2 --peers onnxruntime,openvino
    python -m bench models --only suite --quick                     few rounds, no fresh processes

``DHC_BENCH_MODELS`` is the default of ``--only``. Rows measured before on the same machine stay in the JSON file, so
that the suite can be measured in pieces. A share of the peak may exceed 100 %: operations are counted as in a direct
convolution, and Winograd's algorithm needs fewer.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.entries import Entry, chosen
from bench.fresh import in_a_process
from bench.machine import machine
from bench.measuring import QUICK, Effort, difference, take_turns
from bench.peers import ON_DEMAND, PEERS, adapter
from bench.signature import Signature

TITLE = "Whole models in float32: dhc beside other engines (ms of a run, median of rounds in turns)"

_PEERS_MAY_DIFFER = 2e-2
"""Peers whose Winograd loses digits still count; what differs by more computes something else."""

_FAR_BEHIND, _LONG_RUN = 10, 2.0
"""An engine is left out where a run takes more than this many times the quickest one's, and these seconds."""

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this measurement."""
    parser.add_argument("--only", default=os.environ.get("DHC_BENCH_MODELS", ""), help="models or groups, by commas")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, by commas")
    parser.add_argument("--peers", default=",".join(PEERS), help="engines to compare with, by commas")
    parser.add_argument("--quick", action="store_true", help="few rounds, no fresh processes")


def run(options: argparse.Namespace | None = None) -> dict[str, Any]:
    """The report: rows of times, tables of fixed costs and of refusals, the geometric means."""
    if options is None:
        parser = argparse.ArgumentParser()
        add_options(parser)
        options = parser.parse_args([])
    threads = [int(text) for text in options.threads.split(",")]
    peers, absent = installed([name for name in options.peers.split(",") if name])
    tables: dict[str, list[Row]] = {"rows": [], "costs": [], "refused": absent}
    for entry in chosen(options.only):
        try:
            entry.file()
        except FileNotFoundError as error:
            print(f"    {entry.name}: left out, {error}", flush=True)
            continue
        for name, rows in measure(entry, threads, peers, QUICK if options.quick else Effort(), options.quick).items():
            tables[name] += rows
    if not tables["rows"]:
        raise SystemExit("none of the models is here")
    wrong = [f"{row['model']} ({row['difference']:.2g})" for row in tables["rows"] if row["wrong"]]
    for row in tables["rows"]:
        del row["wrong"]
    report = _report(_merged(tables), {name: adapter(name).version() for name in peers})
    if wrong:
        report["failure"] = "dhc's answers differ: " + ", ".join(dict.fromkeys(wrong))
    return report


def installed(names: list[str]) -> tuple[list[str], list[Row]]:
    """The engines that are here, and rows for those that are not."""
    found, absent = [], []
    for name in names:
        try:
            adapter(name).version()
            found.append(name)
        except ImportError as error:
            absent.append({"model": "all", "engine": name, "reason": f"not installed: {error}"})
    return found, absent


def measure(
    entry: Entry, threads: list[int], peers: list[str], effort: Effort, quick: bool = False
) -> dict[str, list[Row]]:
    """Rows of one model."""
    model, signature = entry.file(), entry.signature()
    feeds = entry.feeds(signature)
    tables: dict[str, list[Row]] = {"rows": [], "costs": [], "refused": []}
    prepared: dict[str, Path] = {}
    for name in ("dhc", *peers):
        try:
            prepared[name] = adapter(name).prepare(model, signature)
        except Exception as error:
            if name == "dhc":
                raise
            tables["refused"].append({"model": entry.name, "engine": name, "reason": _reason(error)})
    operations = _operations(model)
    wanted = reference(model, signature, feeds)
    refused: set[str] = set()
    best_of: dict[int, Row] = {}
    for count in threads:
        runs: dict[str, Callable[[], Any]] = {}
        differs = {}
        for name in [n for n in prepared if n not in refused]:
            try:
                opened = adapter(name).load(prepared[name], count, signature)
                differs[name] = difference(opened(feeds), wanted) if wanted is not None else math.nan
                if name != "dhc" and differs[name] > max(_PEERS_MAY_DIFFER, entry.allowed):
                    raise ValueError(f"wrong answers, off by {differs[name]:.2g} of the largest value")
                runs[name] = partial(opened, feeds)
            except Exception as error:
                if name == "dhc":
                    raise
                refused.add(name)
                tables["refused"].append({"model": entry.name, "engine": name, "reason": _reason(error)})
        for name, reason in far_behind(runs).items():
            refused.add(name)
            del runs[name]
            tables["refused"].append({"model": entry.name, "engine": name, "reason": f"{count} threads: {reason}"})
        times = take_turns(runs, effort)
        row = _row(entry, count, {name: times.median(name) for name in runs}, operations, times.rounds)
        quickest = min((times.least(name) for name in runs if name != "dhc"), default=None)
        row["ratio of quickest"] = quickest / times.least("dhc") if quickest is not None else None
        row["difference"] = differs["dhc"]
        row["wrong"] = differs["dhc"] > entry.allowed
        best_of[count] = row
        tables["rows"].append(row)
        print(f"    {_line(row)}", flush=True)
        del runs, opened
        gc.collect()
    if 1 in best_of and 2 in best_of:
        best_of[2]["efficiency"] = best_of[1]["dhc"] / (2 * best_of[2]["dhc"])
    if not quick:
        for name in [n for n in prepared if n not in refused]:
            try:
                tables["costs"].append(_costs(entry.name, name, prepared[name], max(threads), signature))
            except RuntimeError as error:
                if name == "dhc":
                    raise
                tables["refused"].append({"model": entry.name, "engine": name, "reason": _reason(error)})
    return tables


def far_behind(runs: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Engines whose runs would take most of the time of the measurement, with what they took; never dhc."""
    seconds = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    quickest = min(seconds.values())
    return {
        name: f"a run takes {taken:.1f} s, {taken / quickest:.0f} times as long as the quickest engine's"
        for name, taken in seconds.items()
        if name != "dhc" and taken > _LONG_RUN and taken > _FAR_BEHIND * quickest
    }


def reference(model: Path, signature: Signature, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """onnxruntime's answers, which all others must equal; None where it is not installed."""
    try:
        return list(adapter("onnxruntime").load(model, 1, signature)(feeds))
    except ImportError:
        return None


def _row(entry: Entry, threads: int, taken: dict[str, float], operations: int, rounds: int) -> Row:
    from dhc.backends.cpu.limits import peak_gflops

    others = {name: ms for name, ms in taken.items() if name != "dhc"}
    best = min(others, key=lambda name: others[name], default="")
    gflops = operations / taken["dhc"] / 1e6
    return {
        "model": entry.name,
        "threads": threads,
        "dhc": taken["dhc"],
        **{name: others.get(name) for name in (*PEERS, *ON_DEMAND)},
        "best peer": best,
        "ratio": others[best] / taken["dhc"] if best else None,
        "ratio of quickest": None,
        "GFLOP/s": gflops,
        "% of peak": 100 * gflops / peak_gflops(threads),
        "efficiency": None,
        "difference": 0.0,
        "rounds": rounds,
    }


def _costs(model: str, engine: str, prepared: Path, threads: int, signature: Signature) -> Row:
    """Fixed costs, in a process of its own."""
    row: Row = {"model": model, "engine": engine, "compile s": None}
    if engine == "dhc":
        row["compile s"] = adapter("dhc").compile_seconds[prepared.stem]
    return {**row, **in_a_process(engine, prepared, threads, signature)}


def _operations(model: Path) -> int:
    """Arithmetic operations of a run, counted on the graph as it was imported: convolutions count as direct ones."""
    import dhc
    from dhc.backends.cost import operations

    return sum(operations(node) for node in dhc.load_onnx(model))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__


def _line(row: Row) -> str:
    peers = "  ".join(f"{name} {row[name]:.2f}" for name in (*PEERS, *ON_DEMAND) if row.get(name) is not None)
    ratio = ""
    if row["ratio"] is not None:
        ratio = f"  ratio {row['ratio']:.2f} to {row['best peer']}, of quickest runs {row['ratio of quickest']:.2f}"
    return f"{row['model']} {row['threads']}t: dhc {row['dhc']:.2f}  {peers}{ratio}  diff {row['difference']:.1e}"


# ---- the report ------------------------------------------------------------------------------------------------------


def _merged(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The new rows, and those of other models that an earlier run on this machine has stored."""
    path = Path(__file__).parent / "results" / "models.json"
    if not path.is_file():
        return tables
    old = json.loads(path.read_text(encoding="utf-8"))
    if old.get("machine") != machine() or "costs" not in old.get("tables", {}):
        return tables
    if list(old["rows"][0]) != list(tables["rows"][0]):  # of another version of this file
        return tables
    kept = {"rows": old["rows"], **{name: old["tables"][name] for name in ("costs", "refused")}}
    new_models = {row["model"] for row in tables["rows"]}
    new_rows = {(row["model"], row["threads"]) for row in tables["rows"]}
    merged = {
        "rows": [row for row in kept["rows"] if (row["model"], row["threads"]) not in new_rows],
        "refused": [row for row in kept["refused"] if row["model"] not in {*new_models, "all"}],
        "costs": [row for row in kept["costs"] if row["model"] not in new_models or not tables["costs"]],
    }
    for name, rows in merged.items():
        rows += tables[name]
    order = {entry.name: number for number, entry in enumerate(chosen(""))}
    for rows in merged.values():
        rows.sort(key=lambda row: (order.get(row["model"], -1), row.get("threads", 0)))
    return merged


def _report(tables: dict[str, list[Row]], versions: dict[str, str]) -> dict[str, Any]:
    suite = {entry.name for entry in chosen("suite")}
    notes = [", ".join(f"{name} {version}" for name, version in versions.items())]
    for threads in sorted({row["threads"] for row in tables["rows"]}):
        ratios = {r["model"]: r["ratio"] for r in tables["rows"] if r["threads"] == threads and r["ratio"]}
        part = [ratio for model, ratio in ratios.items() if model in suite]
        if part:
            mean = math.exp(sum(map(math.log, part)) / len(part))
            behind = sorted(model for model, ratio in ratios.items() if model in suite and ratio < 1)
            words = f"behind on {len(behind)}: {', '.join(behind)}" if behind else "behind on none"
            plural = "s" if threads > 1 else ""
            notes.append(
                f"{threads} thread{plural}: geometric mean of the ratio to each model's fastest peer over "
                f"{len(part)} models of the suite: {mean:.3f}; {words}"
            )
    for note in notes[1:]:
        print(f"    {note}", file=sys.stdout, flush=True)
    rows = tables.pop("rows")
    return {"title": TITLE, "machine": machine(), "notes": notes, "rows": rows, "tables": tables}
