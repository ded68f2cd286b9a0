"""Finished artifacts of models that were compiled before with the same options: what `compile` and `run` take first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import DhcError

from dhc.cli.compiling import report_data
from dhc.cli.models import ONNX, graph_signature, kind_of

if TYPE_CHECKING:
    from dhc.artifact_cache import ArtifactCache, Entry
    from dhc.compiler import Artifact
    from dhc.ir.graph import Graph


@dataclass(frozen=True)
class Reuse:
    """Where the artifact of a model with certain options is kept.

    Attributes:
        cache: the cache.
        key: its key.
        model: the model.
        seen: size and time of change of the model when the key was made.
    """

    cache: ArtifactCache
    key: str
    model: Path
    seen: tuple[int, int]

    def find(self) -> Entry | None:
        """The entry, when there is one."""
        return self.cache.find(self.key)

    def keep(self, artifact: Path, report: Mapping[str, Any]) -> None:
        """Keeps a new artifact, unless the model changed meanwhile or has weights in other files."""
        from dhc.artifact_cache import is_whole

        if is_whole(self.model) and _state(self.model) == self.seen:
            self.cache.add(self.key, artifact, _found_again(report))

    def keep_new(self, artifact: Artifact, graph: Graph, seconds: Mapping[str, float]) -> Entry | None:
        """Keeps an artifact that has no file yet; None when that is impossible."""
        self.cache.folder.mkdir(parents=True, exist_ok=True)
        path = self.cache.folder / f"{self.key}-{os.getpid()}.new"
        try:
            artifact.save(path)
            self.keep(path, compile_report(artifact, graph, seconds, None, path))
        except DhcError:
            return None
        finally:
            path.unlink(missing_ok=True)
        return self.find()


def compile_report(
    artifact: Artifact, graph: Graph, seconds: Mapping[str, float], threads: int | None, path: Path
) -> dict[str, Any]:
    """What is told about a compilation and its file `path`."""
    report: dict[str, Any] = {"cpu": artifact.report.backend.get("cpu")}
    report.update(graph_signature(graph))
    report.update(report_data(artifact, seconds, threads))
    report["bytes"]["artifact"] = path.stat().st_size
    return report


def _found_again(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report for those who find the finished artifact: nothing is compiled then."""
    kept = {key: value for key, value in report.items() if key not in ("seconds", "passes")}
    kept.update(compiled=0, cached=kept["kernels"], passes=[], whole=True)
    return kept


def reuse_of(
    model: str,
    cpu: str | None,
    shapes: Sequence[str] = (),
    threads: int | None = None,
    max_memory: int | None = None,
    precision: str = "fp32",
    exact: bool = False,
) -> Reuse | None:
    """How the artifact of a model for the CPU is found again; None when it is not kept.

    Args:
        model: the path that the user gave.
        cpu: the CPU target.
        shapes: values of ``--shape``.
        threads: as for `dhc.compile`, like the arguments behind it.
        max_memory: bytes.
        precision: of stored weights.
        exact: without Winograd's method.
    """
    from dhc.artifact_cache import artifact_cache, model_key

    cache = artifact_cache()
    if cache is None or kind_of(model) != ONNX:
        return None
    path = Path(model)
    seen = _state(path)
    options = {"shapes": list(shapes), "threads": threads, "max_memory": max_memory, "precision": precision}
    key = model_key(path, {**options, "exact": exact}, cpu)
    return None if key is None or seen is None else Reuse(cache, key, path, seen)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
