"""Opening what a command is given: an ONNX model, IR text or an artifact, told apart by content."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import UsageError

from dhc.cli.shapes import parse_shapes

if TYPE_CHECKING:
    from dhc.ir.graph import Graph

ARTIFACT, IR, ONNX = "artifact", "ir", "onnx"
_MAX_TEXT = 1 << 31


def kind_of(path: str) -> str:
    """What a file is: ``artifact``, ``ir`` or ``onnx`` (everything that is neither of the others).

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    if path == "-":
        return IR
    head = _head(Path(path))
    if head.startswith(b"PK\x03\x04"):
        return ARTIFACT
    return IR if _looks_like_ir(head) else ONNX


def _looks_like_ir(head: bytes) -> bool:
    for line in head.split(b"\n"):
        words = line.strip()
        if words and not words.startswith((b"//", b"#")):
            return words.startswith(b"graph ")
    return False


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder", hint=_neighbours(path / "x.onnx", "it holds"))
        with path.open("rb") as stream:
            return stream.read(4096)
    except PermissionError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror}", hint=f"change its permissions (ls -l {path})"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror}", hint=_neighbours(path, "did you mean") or "check the path"
        ) from None


def _neighbours(path: Path, words: str) -> str | None:
    """Files of the same folder whose names are close."""
    import difflib

    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.is_file())
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, 2, 0.6)
    return f"{words} {' or '.join(str(path.parent / name) for name in close)}?" if close else None


def open_graph(path: str, shapes: Sequence[str] = ()) -> Graph:
    """The graph of a model file.

    Args:
        path: an ONNX model or IR text, ``-`` for IR text on standard input.
        shapes: values of ``--shape``.

    Raises:
        UsageError: no such file, an artifact, or shapes that do not belong to it.
        DhcError: what reading the model reports.
    """
    kind = kind_of(path)
    if kind == ARTIFACT:
        raise UsageError(f"{path!r} is an artifact, and this command takes a model", hint="give the ONNX file")
    if kind == ONNX:
        return _open_onnx(path, shapes)
    return _open_text(path, shapes)


def _open_onnx(path: str, shapes: Sequence[str]) -> Graph:
    import dhc

    if not shapes:
        return dhc.load_onnx(path)
    from dhc.frontend.onnx import import_source
    from dhc.frontend.onnx.reader import read_model

    source = read_model(path)
    weights = {t.name for t in source.proto.graph.initializer}
    names = [v.name for v in source.proto.graph.input if v.name not in weights]
    return import_source(source, parse_shapes(shapes, names))


def _open_text(path: str, shapes: Sequence[str]) -> Graph:
    from dhc.ir.symbols import free_symbols
    from dhc.ir.text import parse_graph

    if path == "-":
        name, data = "standard input", sys.stdin.buffer.read(_MAX_TEXT)
    else:
        name, data = Path(path).name, Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not text: {error.reason} at byte {error.start}") from None
    graph = parse_graph(text, where=name)
    for wanted, dims in parse_shapes(shapes, [v.name for v in graph.inputs]).items():
        (value,) = [v for v in graph.inputs if v.name == wanted]
        fits = len(dims) == len(value.shape) and all(
            free_symbols(have) or have == give for have, give in zip(value.shape, dims)
        )
        if not fits:
            raise UsageError(
                f"input {wanted!r} of {name} is {value.type}, which --shape cannot change",
                hint="change the type in the text; --shape decides shapes of ONNX models",
            )
    return graph


def signature(values: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Inputs or outputs as plain data: name, dtype, shape."""
    from dhc.ir.symbols import format_dim
    from dhc.ir.types import TensorType

    entries = []
    for value, name in zip(values, names):
        if isinstance(value.type, TensorType):
            shape = [d if isinstance(d, int) else format_dim(d) for d in value.shape]
            entries.append({"name": name, "dtype": value.dtype.name, "shape": shape})
        else:
            entries.append({"name": name, "dtype": str(value.type), "shape": []})
    return entries


def graph_signature(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of a graph as plain data."""
    return {
        "inputs": signature(graph.inputs, [v.name for v in graph.inputs]),
        "outputs": signature(graph.outputs, graph.output_names),
    }


def shape_words(inputs: Sequence[dict[str, Any]]) -> str:
    """Options that would fix the open sizes of inputs, for hints; empty when all are known."""
    words = []
    for entry in inputs:
        if any(not isinstance(d, int) for d in entry["shape"]):
            words.append(f" --shape {entry['name']}=" + "x".join(str(d) for d in entry["shape"]))
    return "".join(words)
