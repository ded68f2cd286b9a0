"""Sessions for commands that run something: from an artifact, or compiled on the spot from a model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import DhcError, MissingExtraError, UsageError

from dhc.cli.models import ARTIFACT, kind_of, open_graph
from dhc.cli.output import Progress
from dhc.cli.reuse import reuse_of

if TYPE_CHECKING:
    from dhc.ir.graph import Graph


@dataclass(frozen=True)
class InputSpec:
    """What an input takes.

    Attributes:
        name: its name.
        dtype: short name of the element type.
        shape: sizes, or texts for sizes that are open.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass
class Opened:
    """A session and where it came from.

    Attributes:
        session: a `dhc_runtime.Session`.
        graph: the imported graph; None when an artifact was given.
        compiled: the graph after all passes; None when an artifact was given.
        seconds: stage -> seconds.
    """

    session: Any
    graph: Graph | None
    seconds: dict[str, float] = field(default_factory=dict)
    compiled: Graph | None = None

    @property
    def inputs(self) -> list[InputSpec]:
        """What a run takes."""
        return [InputSpec(i.name, i.dtype, tuple(i.shape)) for i in self.session.inputs]


def open_session(
    path: str,
    progress: Progress,
    shapes: Sequence[str] = (),
    threads: int | None = None,
    cpu: str | None = None,
    cache: bool = True,
    reuse: bool = False,
) -> Opened:
    """Opens an artifact, or compiles a model and opens that; ``shapes`` matter to models alone.

    With `reuse`, the artifact of a model that was compiled before comes whole from the cache, without a graph.

    Raises:
        DhcError: what importing, compiling or loading reports.
    """
    import dhc_runtime

    seconds: dict[str, float] = {}
    if kind_of(path) == ARTIFACT:
        progress("loading")
        start = time.perf_counter()
        session = dhc_runtime.load(path, threads=threads)
        return Opened(session, None, {"load": time.perf_counter() - start})
    start = time.perf_counter()
    kept = reuse_of(path, cpu, shapes) if cache and reuse else None
    entry = None if kept is None else kept.find()
    if entry is not None:
        progress("loading")
        with contextlib.suppress(DhcError):  # a damaged entry: the model is compiled again
            session = dhc_runtime.load(str(entry.path), threads=threads)
            return Opened(session, None, {"load": time.perf_counter() - start})
    import dhc

    progress("importing")
    start = time.perf_counter()
    graph = open_graph(path, shapes)
    seconds["import"] = time.perf_counter() - start
    progress("compiling")
    start = time.perf_counter()
    artifact = dhc.compile(graph, targets=["cpu"], cpu=cpu, cache=cache, progress=progress)
    seconds["compile"] = time.perf_counter() - start
    start = time.perf_counter()
    entry = None if kept is None else kept.keep_new(artifact, graph, seconds)
    session = artifact.session(threads=threads) if entry is None else dhc_runtime.load(str(entry.path), threads=threads)
    seconds["load"] = time.perf_counter() - start
    return Opened(session, graph, seconds, artifact.graph)


def graph_inputs(graph: Graph) -> list[InputSpec]:
    """What a graph takes.

    Raises:
        UsageError: an input is no tensor of numbers.
    """
    from dhc.cli.models import graph_signature
    from dhc.ir.dtypes import ALL

    specs = []
    for entry in graph_signature(graph)["inputs"]:
        if entry["dtype"] not in ALL or ALL[entry["dtype"]].kind == "s":
            raise UsageError(f"input {entry['name']!r} is {entry['dtype']}, which the command line cannot give")
        specs.append(InputSpec(entry["name"], entry["dtype"], tuple(entry["shape"])))
    return specs


class OnnxRuntime:
    """A model in onnxruntime, with the settings that make it comparable: same threads, all optimisations.

    Args:
        model: a path or the bytes of a model.
        threads: number of threads; None for its own choice.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        UsageError: onnxruntime does not take the model.
    """

    def __init__(self, model: str | bytes, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("bench", "comparing with onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        start = time.perf_counter()
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a family of errors of its own, without a common public base
            raise UsageError(f"onnxruntime does not take the model: {_first_line(error)}") from None
        self.seconds = time.perf_counter() - start
        self.version = str(onnxruntime.__version__)
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name; the elements of a sequence have numbers, as the importer names them: ``s.0``, ``s.1``.

        Raises:
            UsageError: onnxruntime fails on these inputs.
        """
        try:
            found = dict(zip(self._names, self._session.run(None, dict(feeds))))
        except Exception as error:  # as above
            raise UsageError(f"onnxruntime fails on these inputs: {_first_line(error)}") from None
        arrays: dict[str, Any] = {}
        for name, value in found.items():
            if isinstance(value, list):
                arrays.update((f"{name}.{i}", element) for i, element in enumerate(value))
            else:
                arrays[name] = value
        return arrays


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def has_onnxruntime() -> bool:
    """True when onnxruntime is installed (it is not imported)."""
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None
