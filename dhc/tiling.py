"""Compiling within a limit of memory: as a whole where that fits, else patch by patch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import ResourceError, UnsupportedError, UsageError
from dhc_runtime.thread_pool import default_threads

from dhc.backends.patches import Patches, cut, plan_entry
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

_SHRINK = 0.8


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
    size = list(found.space)
    smallest = least
    while True:
        shrunk = _shrunk(found, local, size)
        if shrunk is None:
            raise ResourceError(
                f"a run needs {smallest:,} bytes with the smallest patches, more than the limit of {limit:,}",
                smallest,
                hint="raise the limit of memory, or use a smaller input",
            )
        size = list(shrunk.size)
        part = with_space(local, found, size)
        around = outputs + sum(int(v.type.nbytes) for v in (*part.inputs, *part.outputs))
        smallest = min(smallest, _estimate(part) + around)
        if _estimate(part) + around > limit:
            continue
        artifact = compile_one(part)
        needed = _arena(artifact, threads) + around
        smallest = min(smallest, needed)
        if needed <= limit:
            return _tiled(artifact, found, shrunk, local)


def _shrunk(found: Locality, whole: Graph, size: Sequence[int]) -> Patches | None:
    """The next smaller patches: the longest axis that can be is cut shorter; None when there is none."""
    for i in sorted(range(len(size)), key=lambda i: -size[i]):
        unit, space = found.alignment[i], found.space[i]
        fewer = max(1, -(-int(size[i] * (1 - _SHRINK)) // unit)) * unit
        for less in dict.fromkeys((fewer, unit)):
            patches = cut(found, whole, [*size[:i], size[i] - less, *size[i + 1 :]]) if size[i] > less else None
            if patches is not None:
                assert (space - patches.size[i]) % unit == 0
                return patches
    return None


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
