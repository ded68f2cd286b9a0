"""The driver: from a graph to an artifact for the named targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import UnsupportedError, UsageError

from dhc.backends.protocol import Blob, CompileOptions
from dhc.backends.registry import get_backend
from dhc.ir.graph import Graph, Node
from dhc.ir.symbols import to_json
from dhc.passes.base import Pass, PassRecord, Refusal, run_passes

if TYPE_CHECKING:
    from dhc_runtime import Session

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CompileReport:
    """What happened during a compilation.

    Attributes:
        seconds: stage -> seconds (passes, lowering, code, packing).
        passes: every pass with its statistics and refusals.
        backend: the backend's figures (kernels, cache hits, bytes).
    """

    seconds: Mapping[str, float]
    passes: Sequence[PassRecord] = field(default=(), repr=False)
    backend: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refusals(self) -> list[Refusal]:
        """Rewrites that almost applied, with reasons."""
        return [r for record in self.passes for r in record.result.refusals]


class Artifact:
    """A compiled model in memory.

    Attributes:
        manifest: signature, targets, versions.
        report: figures about the compilation.
        graph: the graph as it was compiled (after all passes).
    """

    def __init__(self, manifest: dict[str, Any], members: dict[str, Any], report: CompileReport, graph: Graph) -> None:
        self.manifest = manifest
        self.report = report
        self.graph = graph
        self._members = members

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the artifact; the file appears whole or not at all. Equal compilations give equal bytes.

        Raises:
            ResourceError: the disk is full.
            UsageError: the folder does not exist or is not writable.
        """
        from dhc_runtime.container import write_artifact

        write_artifact(path, self.manifest, self._members)

    def to_bytes(self) -> bytes:
        """The bytes that `save` writes."""
        from dhc_runtime.container import write_artifact

        return write_artifact(None, self.manifest, self._members)

    def session(self, **options: Any) -> Session:
        """Opens it in this process; takes the options of `dhc_runtime.load`."""
        from dhc_runtime import load

        return load(self.to_bytes(), **options)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan in the form of ``plan.json`` (see docs/artifact.md)."""
        import json

        plan: dict[str, Any] = json.loads(bytes(self._members["plan.json"]))
        return plan

    def __repr__(self) -> str:
        inputs = ", ".join(f"{i['name']}: {i['dtype']}{i['shape']}" for i in self.manifest["inputs"])
        return f"<Artifact {self.manifest['name']!r} for {'+'.join(self.manifest['targets'])} ({inputs})>"


def compile(  # noqa: A001 (the name users know: dhc.compile)
    graph: Graph,
    targets: Sequence[str] = ("cpu",),
    *,
    cpu: str | None = None,
    threads: int | None = None,
    passes: Sequence[Pass] | None = None,
    verify: bool = False,
    cache: bool = True,
    exact: bool = False,
    precision: str = "fp32",
    tune: float | None = None,
    emit: str | PathLike[str] | None = None,
    max_memory: int | None = None,
    after_pass: Callable[[Pass, Graph], None] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compiles a graph.

    Args:
        graph: not changed.
        targets: devices to compile for.
        cpu: CPU to generate code for: ``host``, ``x86-64-v2``, ``x86-64-v3``, ``x86-64-v4``, ``aarch64``, ...;
            None: what the environment variable ``DHC_CPU`` says, else ``host``.
        threads: number of threads that sessions use by default; None: all that the process may use.
        passes: passes to run instead of the standard pipeline.
        verify: verify the graph after every pass.
        cache: use the kernel cache on disk.
        exact: convolutions as plain sums: none by Winograd's method, which is faster and rounds differently.
        precision: ``bf16`` and ``fp16`` store the weights of convolutions and matrix products in 16 bits where that
            pays, and sum in f32. ``bf16`` rounds the other factor too where the processor multiplies pairs of bf16. The
            report says which layers store and which multiply so, and by how much their weights change.
        tune: seconds for measuring, on this machine and with `threads`, which methods and block sizes suit each
            contraction best. What is found is kept in the cache, so that the next search goes on there; artifacts of
            equal findings are equal. Ctrl-C ends the search and keeps what was found.
        emit: folder that receives the generated kernel sources.
        max_memory: bytes of intermediate and output values that a run may hold. A model that needs more runs patch by
            patch, where its results allow that (`dhc.passes.locality`).
        after_pass: called after every pass.
        progress: called with (stage, done, total).

    Raises:
        UnsupportedError: a target cannot take some nodes, or the model needs more than `max_memory` and cannot be run
            patch by patch; the message lists all of them with reasons.
        UsageError: an unknown target or option.
        CompileError: generating or compiling code failed.
        ResourceError: the model needs more than `max_memory` with the smallest patches too.
    """
    from dhc.passes.pipelines import standard_pipeline

    if len(targets) != 1:
        raise UsageError(
            f"compiling for {len(targets)} targets at once is not supported, got {', '.join(targets) or 'none'}",
            hint="name one target; `dhc check` shows what each can take",
        )
    if max_memory is not None:
        from dhc.tiling import compile_within

        def as_it_is(part: Graph) -> Artifact:
            return compile(
                part, targets, cpu=cpu, threads=threads, passes=passes, verify=verify, cache=cache, exact=exact,
                precision=precision, tune=tune, emit=emit, after_pass=after_pass, progress=progress,
            )  # fmt: skip

        return compile_within(graph, max_memory, threads, as_it_is)
    backend = get_backend(targets[0])
    if tune is not None and (tune <= 0 or not getattr(backend, "tunes", False)):
        reason = "takes a time above 0" if tune <= 0 else f"does nothing for {targets[0]!r}"
        raise UsageError(f"tuning {reason}", hint="give seconds, and the target cpu")
    from dhc_runtime.thread_pool import default_threads

    sources = None if emit is None else str(emit)
    options = CompileOptions(
        cpu=cpu, threads=threads, cache=cache, exact=exact, precision=precision, tune=tune, emit=sources,
        tune_threads=threads or default_threads(), progress=progress,
    )  # fmt: skip
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    working = graph.clone()
    pipeline = standard_pipeline(targets[0]) if passes is None else list(passes)
    advance = progress or (lambda stage, done, total: None)
    finished = 0

    def pass_done(pass_: Pass, edited: Graph) -> None:
        nonlocal finished
        finished += 1
        advance("passes", finished, len(pipeline))
        if after_pass is not None:
            after_pass(pass_, edited)

    advance("passes", 0, len(pipeline))
    records = run_passes(working, pipeline, verify=verify, after=pass_done)
    seconds["passes"] = time.perf_counter() - start
    require_support(working, targets[0])
    start = time.perf_counter()
    advance("lowering", 0, 1)
    blob = backend.compile(working, options)
    seconds.update(blob.report.get("seconds", {}))
    seconds["backend"] = time.perf_counter() - start
    start = time.perf_counter()
    advance("packaging", 0, 1)
    manifest, members = _package(graph, working, targets, blob, threads)
    seconds["packaging"] = time.perf_counter() - start
    return Artifact(manifest, members, CompileReport(seconds, tuple(records), blob.report), working)


def unsupported_nodes(graph: Graph, target: str) -> list[tuple[Node, str]]:
    """Nodes that a target cannot take, with reasons (nested graphs included)."""
    backend = get_backend(target)
    problems: list[tuple[Node, str]] = []
    for node in graph.walk():
        limitation = backend.supports(node)
        if limitation is not None:
            problems.append((node, str(limitation)))
    return problems


def require_support(graph: Graph, target: str) -> None:
    """Raises when a target cannot take every node: nothing falls back silently.

    Raises:
        UnsupportedError: lists all such nodes with reasons.
    """
    problems = unsupported_nodes(graph, target)
    if not problems:
        return
    lines = [f"{node.op.name} at {node.location}: {reason}" for node, reason in problems]
    hint = "run `dhc check` for the whole table"
    raise UnsupportedError(
        f"target {target!r} cannot take {len(lines)} node{'s' if len(lines) != 1 else ''}", problems=lines, hint=hint
    )


def _package(
    source: Graph, compiled: Graph, targets: Sequence[str], blob: Blob, threads: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    import json

    from dhc_runtime.safetensors import serialize_chunks

    from dhc import __version__
    from dhc.backends.constants import safetensors_of
    from dhc.ir.text import print_graph

    def signature(names: Sequence[str], values: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {"name": n, "dtype": v.dtype.name, "shape": [to_json(d) for d in v.shape]} for n, v in zip(names, values)
        ]

    manifest: dict[str, Any] = {
        "producer": f"dhc {__version__}",
        "name": source.name,
        "inputs": signature([v.name for v in compiled.inputs], compiled.inputs),
        "outputs": signature(compiled.output_names, compiled.outputs),
        "targets": list(targets),
        "devices": {blob.executor or targets[0]: dict(blob.device)},
        "metadata": dict(source.metadata),
    }
    if threads is not None:
        manifest["threads"] = threads
    plan = {"format": 1, "program": blob.program}
    members = {
        "plan.json": json.dumps(plan, separators=(",", ":"), ensure_ascii=True).encode(),
        "graph.txt": print_graph(compiled, constants="elide").encode(),
        "weights.safetensors": list(serialize_chunks(safetensors_of(blob.constants))),
        **blob.members,
    }
    return manifest, members
