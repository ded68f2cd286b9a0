"""Compiling within a limit of memory: as a whole where that fits, else patch by patch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import ResourceError, UnsupportedError, UsageError
from dhc_runtime.thread_pool import default_threads

from dhc.backends.patches import Patches, cheapest, cut, plan_entry
from dhc.ir.graph import Graph
from dhc.passes.base import run_passes
from dhc.passes.decompose import Decompose
from dhc.passes.fold_batch_norm import FoldBatchNorm
from dhc.passes.fuse import Fuse
from dhc.passes.locality import Locality, locality, with_space
from dhc.passes.memory import Memory
from dhc.passes.pipelines import clean_up

if TYPE_CHECKING:
    from dhc.compiler import Artifact

_LESS = 0.9
"""Share of the positions that the next smaller patches may have."""


def compile_within(graph: Graph, limit: int, threads: int | None, compile_one: Callable[[Graph], Artifact]) -> Artifact:
    """Compiles a graph so that a run holds at most `limit` bytes of intermediate and output values.

    Args:
        graph: all its sizes are known.
        limit: bytes.
        threads: number of threads that scratch memory is counted for; None: all CPUs of this process.
        compile_one: compiles a graph as it is.

    Raises:
        UsageError: a size is open.
        UnsupportedError: it does not fit as a whole and cannot be run patch by patch; the reasons are listed.
        ResourceError: it does not fit, however small the patches are.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
        raise UsageError(f"max_memory must be a positive number of bytes, not {limit!r}")
    threads = threads or default_threads()
    if graph.symbols():
        raise UsageError(
            f"a limit of memory needs known sizes, and {', '.join(graph.symbols())} is open",
            hint="give the shapes of the inputs (--shape x=1x1x128x128x128)",
        )
    outputs = sum(int(v.type.nbytes) for v in graph.outputs)
    least = _estimate(graph) + outputs
    if least <= limit:
        artifact = compile_one(graph)
        least = _arena(artifact, threads) + outputs
        if least <= limit:
            return artifact
    try:
        # What must not be merged into constants of a fixed size is: the graph is local after that, or never.
        local = graph.clone()
        run_passes(local, [*clean_up(), FoldBatchNorm(), Decompose(), *clean_up()])
        found = locality(local)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"a run needs {least:,} bytes, more than the limit of {limit:,}, and the model cannot be run by patches",
            problems=error.problems,
            hint="raise the limit of memory, or use a smaller input",
        ) from error
    whole = math.prod(found.space)
    ends = sum(int(v.type.nbytes) for v in (*local.inputs, *local.outputs))
    positions = whole * (limit - outputs) / (_estimate(local) + ends)
    smallest = least
    while True:
        size = cheapest(found, min(positions, whole - 1))
        patches = None if size is None else cut(found, local, size)
        if size is None or patches is None:
            raise ResourceError(
                f"a run needs {smallest:,} bytes with small patches, more than the limit of {limit:,}",
                smallest,
                hint="raise the limit of memory, or use a smaller input",
            )
        part = with_space(local, found, size)
        around = outputs + sum(int(v.type.nbytes) for v in (*part.inputs, *part.outputs))
        needed = _estimate(part) + around
        if needed <= limit:
            artifact = compile_one(part)
            needed = _arena(artifact, threads) + around
            if needed <= limit:
                return _tiled(artifact, found, patches, local)
        smallest = min(smallest, needed)
        positions = _LESS * math.prod(size)


def _estimate(graph: Graph) -> int:
    """Bytes of intermediate values when a graph runs fused, without the scratch memory of kernels."""
    fused = graph.clone()
    run_passes(fused, [*clean_up(), FoldBatchNorm(), Decompose(), *clean_up(), Fuse()])
    return Memory().run(fused).statistics["peak_bytes"]


def _arena(artifact: Artifact, threads: int) -> int:
    from dhc_runtime.arena import plan_arena
    from dhc_runtime.dims import evaluate
    from dhc_runtime.session import THREADS

    arena = [b for b in artifact.plan["program"]["buffers"] if b["kind"] == "arena"]
    sizes = [evaluate(b["bytes"], {THREADS: threads}) for b in arena]
    return plan_arena(sizes, [b["first"] for b in arena], [b["last"] for b in arena])[1]


def _tiled(artifact: Artifact, found: Locality, patches: Patches, whole: Graph) -> Artifact:
    from dhc.compiler import Artifact, CompileReport

    entry = plan_entry(found, patches, whole)
    plan = {**artifact.plan, "tiles": entry}
    members = {
        **artifact._members,
        "plan.json": json.dumps(plan, separators=(",", ":"), ensure_ascii=True).encode(),
    }
    manifest: dict[str, Any] = dict(artifact.manifest)
    for side in ("inputs", "outputs"):
        manifest[side] = [{**old, "shape": new["shape"]} for old, new in zip(manifest[side], entry[side])]
    figures = {
        "patches": patches.count,
        "patch_size": list(patches.size),
        "patch_work": patches.work(found.space),
    }
    report = CompileReport(artifact.report.seconds, artifact.report.passes, {**artifact.report.backend, **figures})
    return Artifact(manifest, members, report, artifact.graph)
