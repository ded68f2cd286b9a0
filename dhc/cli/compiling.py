"""Figures about a finished compilation, as data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dhc.cli.output import Output, format_bytes, format_seconds

if TYPE_CHECKING:
    from dhc.compiler import Artifact

FILTERED_SHOWN = 20
"""Layers by Winograd's method that people see; JSON has all."""

_STAGES = ("import", "passes", "tuning", "lowering", "code", "packaging", "writing")


def memory_figures(program: Mapping[str, Any], threads: int) -> dict[str, int] | None:
    """Bytes of the arena of a program and the least that liveness allows; None while sizes are open.

    Args:
        program: the plan of an artifact (``plan.json``, entry ``program``).
        threads: number of threads, on which the scratch memory of some kernels depends.
    """
    from dhc_runtime.arena import lower_bound, plan_arena
    from dhc_runtime.dims import evaluate
    from dhc_runtime.errors import DhcError
    from dhc_runtime.session import THREADS

    sizes, first, last = [], [], []
    for buffer in program["buffers"]:
        if buffer["kind"] != "arena":
            continue
        try:
            sizes.append(evaluate(buffer["bytes"], {THREADS: threads}))
        except DhcError:  # the size depends on the inputs
            return None
        first.append(buffer["first"])
        last.append(buffer["last"])
    _, total = plan_arena(sizes, first, last)
    return {"arena": total, "lower_bound": lower_bound(sizes, first, last)}


def plan_of(artifact: Artifact) -> dict[str, Any]:
    """The program of an artifact in memory."""
    plan = artifact.plan
    program: dict[str, Any] = plan["program"]
    return program


def report_data(artifact: Artifact, seconds: Mapping[str, float], threads: int | None) -> dict[str, Any]:
    """The report of a compilation as plain data."""
    backend = dict(artifact.report.backend)
    count = threads or available_cpus()
    return {
        "seconds": {stage: seconds[stage] for stage in _STAGES if stage in seconds},
        "passes": [
            {
                "pass": str(record.pass_),
                "seconds": record.seconds,
                "statistics": record.result.statistics,
            }
            for record in artifact.report.passes
        ],
        **{
            key: backend[key]
            for key in (
                "kernels",
                "compiled",
                "cached",
                "steps",
                "stored_16_bit",
                "winograd",
                "tuning",
                "patches",
                "patch_size",
                "patch_work",
            )
            if key in backend
        },
        "bytes": {
            "code": backend.get("code_bytes"),
            "constants": backend.get("constant_bytes"),
        },
        "memory": memory_figures(plan_of(artifact), count),
        "memory_threads": count,
        "refusals": len(artifact.report.refusals),
    }


def _tuning_words(tuning: Mapping[str, Any]) -> str:
    words = f"{tuning['changed']} of {tuning['layers']} distinct layers changed"
    if tuning["before"] > 0:
        before, after = format_seconds(tuning["before"]), format_seconds(tuning["after"])
        words += f", contractions {before} -> {after} as measured one by one"
    left = [
        f"{tuning[key]} {what}" for key, what in (("unfinished", "unfinished"), ("open", "of open size")) if tuning[key]
    ]
    words += f"; {', '.join(left)}" if left else ""
    return words + ("; interrupted" if tuning["interrupted"] else "")


def _show_filtered(out: Output, layers: Sequence[Mapping[str, Any]]) -> None:
    """Convolutions by Winograd's method with the bounds of their errors, largest first."""
    if not layers:
        return
    said = "largest |input| x sum of |weights| of a channel"
    out.fields([("winograd", f"{len(layers)} layers; error bounds are relative to {said}")])
    rows = sorted(layers, key=lambda layer: -layer["bound"])
    columns = ["node", "tile", ">terms", ">error bound"]
    out.table(columns, [[r["node"], r["tile"], r["terms"], f"{r['bound']:.1e}"] for r in rows[:FILTERED_SHOWN]])
    if len(rows) > FILTERED_SHOWN:
        out.line(f"{len(rows) - FILTERED_SHOWN} more are in --json")


def available_cpus() -> int:
    """How many CPUs this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show_report(out: Output, data: Mapping[str, Any]) -> None:
    """The report for people."""
    total = sum(data["seconds"].values())
    rows = [[stage, format_seconds(value), _share(value, total)] for stage, value in data["seconds"].items()]
    out.table(["stage", ">time", ">share"], [*rows, ["total", format_seconds(total), ""]])
    size = data["bytes"]
    if data.get("whole"):
        out.fields([("kernels", f"{data['kernels']}, with the whole artifact from the cache; {data['steps']} steps")])
    elif "kernels" in data:
        kernels = (
            f"{data['kernels']}, {data['compiled']} compiled, {data['cached']} from the cache; {data['steps']} steps"
        )
        out.fields([("kernels", kernels)])
    if size.get("artifact") is not None:
        code, constants = format_bytes(size["code"] or 0), format_bytes(size["constants"] or 0)
        out.fields([("artifact", f"{format_bytes(size['artifact'])} ({constants} constants, {code} code)")])
    stored = data.get("stored_16_bit")
    if stored:
        saved, largest = sum(w["saved"] for w in stored), max(stored, key=lambda w: w["rounding"])
        pairs = sum(w["multiplied"] for w in stored)
        words = f"of {len(stored)} layers, {format_bytes(saved)} less; {pairs} of them multiply in bf16"
        out.fields([("16-bit weights", words)])
        out.fields([("rounding", f"at most {largest['rounding']:.2g} of the largest weight, at {largest['node']}")])
    if "tuning" in data:
        out.fields([("tuning", _tuning_words(data["tuning"]))])
    _show_filtered(out, data.get("winograd", ()))
    if "patches" in data:
        size = " x ".join(map(str, data["patch_size"]))
        out.fields([("patches", f"{data['patches']} of {size}; {data['patch_work']:.2f} x the work of the whole")])
    memory = data["memory"]
    if memory is None:
        out.fields([("memory", "depends on the sizes of the inputs")])
    elif memory["lower_bound"]:
        ratio = memory["arena"] / memory["lower_bound"]
        bound = format_bytes(memory["lower_bound"])
        out.fields(
            [
                (
                    "memory",
                    f"{format_bytes(memory['arena'])} for {data['memory_threads']} threads, "
                    f"{ratio:.2f} x the bound by liveness ({bound})",
                )
            ]
        )


def _share(value: float, total: float) -> str:
    return f"{value / total:.0%}" if total > 0 else ""
