"""Whole models in bf16: dhc's ``--precision bf16`` beside OpenVINO, whose default that is on processors that have it.

    python -m bench models_bf16                                          the suite
    python -m bench models_bf16 --only resnet18,vgg16 --threads 1 --quick

Errors are those against onnxruntime in float32: the root of the mean square, as a share of that of the answers, and the
largest as a share of the largest value. Rows measured before on the same machine stay in the JSON file.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.entries import Entry, chosen
from bench.machine import machine
from bench.measuring import QUICK, Effort, difference, take_turns
from bench.models import installed, reference
from bench.peers import adapter

TITLE = "Whole models in bf16: dhc beside OpenVINO (ms of a run, median of rounds in turns; errors against float32)"

ENGINES = {"dhc": "dhc_bf16", "dhc fp32": "dhc", "openvino": "openvino_bf16"}
"""Columns, and the adapters behind them."""
_LARGEST_ERROR = 0.1  # what is further off computes something else

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line of this measurement."""
    parser.add_argument("--only", default="suite", help="models or groups, by commas")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, by commas")
    parser.add_argument("--quick", action="store_true", help="few rounds")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report: rows of times and errors, the geometric means.

    Raises:
        SystemExit: OpenVINO or onnxruntime is not installed, or none of the models is here.
    """
    _, absent = installed(["onnxruntime", *ENGINES.values()])
    if absent:
        raise SystemExit("; ".join(f"{row['engine']} is {row['reason']}" for row in absent))
    rows: list[Row] = []
    for entry in chosen(options.only):
        try:
            entry.file()
        except FileNotFoundError as error:
            print(f"    {entry.name}: left out, {error}", flush=True)
            continue
        rows += measure(entry, [int(text) for text in options.threads.split(",")], QUICK if options.quick else Effort())
    if not rows:
        raise SystemExit("none of the models is here")
    wrong = [row["model"] for row in rows if row["dhc error"] > _LARGEST_ERROR]
    rows = _merged(rows)
    report = {"title": TITLE, "machine": machine(), "notes": _notes(rows), "rows": rows}
    if wrong:
        report["failure"] = "dhc's answers are not those of the model: " + ", ".join(dict.fromkeys(wrong))
    return report


def measure(entry: Entry, threads: list[int], effort: Effort) -> list[Row]:
    """Rows of one model."""
    model, signature = entry.file(), entry.signature()
    feeds = entry.feeds(signature)
    wanted = reference(model, signature, feeds)
    assert wanted is not None
    prepared = {name: adapter(engine).prepare(model, signature) for name, engine in ENGINES.items()}
    rows = []
    for count in threads:
        runs: dict[str, Callable[[], Any]] = {}
        row: Row = {"model": entry.name, "threads": count, **dict.fromkeys(ENGINES), "ratio": None}
        for name, engine in ENGINES.items():
            opened = adapter(engine).load(prepared[name], count, signature)
            answers = opened(feeds)
            if name != "dhc fp32":
                row[f"{name} error"] = error(answers, wanted)
                row[f"{name} largest error"] = difference(answers, wanted)
            runs[name] = partial(opened, feeds)
        times = take_turns(runs, effort)
        for name in ENGINES:
            row[name] = times.median(name)
        row["ratio"] = row["openvino"] / row["dhc"]
        row["ratio of quickest"] = times.least("openvino") / times.least("dhc")
        row["rounds"] = times.rounds
        rows.append(row)
        print(f"    {_line(row)}", flush=True)
        del runs, opened
        gc.collect()
    return rows


def error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The root mean square of the differences as a share of that of the values; the worst of all outputs."""
    shares = []
    for got, right in zip(found, wanted, strict=True):
        off = np.asarray(got, np.float64) - np.asarray(right, np.float64)
        shares.append(float(np.linalg.norm(off) / max(float(np.linalg.norm(right)), 1e-30)))
    return max(shares)


def _line(row: Row) -> str:
    return (
        f"{row['model']} {row['threads']}t: dhc {row['dhc']:.2f} (fp32 {row['dhc fp32']:.2f})  "
        f"openvino {row['openvino']:.2f}  ratio {row['ratio']:.2f}, of quickest runs {row['ratio of quickest']:.2f}  "
        f"errors {row['dhc error']:.1e} and {row['openvino error']:.1e}"
    )


def _merged(rows: list[Row]) -> list[Row]:
    """The new rows, and those of other models that an earlier run on this machine has stored."""
    path = Path(__file__).parent / "results" / "models_bf16.json"
    kept: list[Row] = []
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old.get("machine") == machine() and list(old["rows"][0]) == list(rows[0]):
            new = {(row["model"], row["threads"]) for row in rows}
            kept = [row for row in old["rows"] if (row["model"], row["threads"]) not in new]
    order = {entry.name: number for number, entry in enumerate(chosen(""))}
    return sorted([*kept, *rows], key=lambda row: (order.get(row["model"], -1), row["threads"]))


def _notes(rows: list[Row]) -> list[str]:
    notes = [", ".join(f"{name} {adapter(name).version()}" for name in ("openvino_bf16", "onnxruntime"))]
    suite = {entry.name for entry in chosen("suite")}
    for threads in sorted({row["threads"] for row in rows}):
        part = [row for row in rows if row["threads"] == threads and row["model"] in suite]
        if not part:
            continue
        mean = math.exp(sum(math.log(row["ratio"]) for row in part) / len(part))
        shares = [max(row["dhc error"], 1e-9) / max(row["openvino error"], 1e-9) for row in part]
        share = math.exp(sum(map(math.log, shares)) / len(part))
        worse = [row["model"] for row, one in zip(part, shares, strict=True) if one > 1.1]
        plural = "s" if threads > 1 else ""
        notes.append(
            f"{threads} thread{plural}: geometric mean of the ratios to OpenVINO over {len(part)} models of the suite: "
            f"{mean:.3f}; dhc's errors are {share:.2f} of OpenVINO's (geometric mean), "
            f"larger by a tenth or more for {', '.join(worse) or 'none'}"
        )
    for note in notes[1:]:
        print(f"    {note}", flush=True)
    return notes
