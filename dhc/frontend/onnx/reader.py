"""Reads ONNX files as hostile input: sizes first, then structure, then contents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from dhc_runtime.errors import ModelError, ResourceError

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit on a message."""
MAX_DEPTH = 24
"""Nested graphs deeper than this are refused."""
MIN_OPSET = 6


@dataclass(frozen=True)
class ModelSource:
    """A parsed model.

    Attributes:
        proto: the `onnx.ModelProto`.
        name: file name for messages.
        folder: where external data may lie; None when the model came as bytes.
    """

    proto: Any
    name: str
    folder: Path | None


def read_model(model: str | PathLike[str] | bytes) -> ModelSource:
    """Reads and checks the structure of a model.

    Raises:
        ModelError: no such file, not ONNX, a broken structure, or an opset that dhc does not know.
        ResourceError: the file is larger than protobuf allows.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        data, name, folder = bytes(model), "model", None
    else:
        path = Path(model)
        data, name, folder = _read_file(path), path.name, path.resolve().parent
    proto = _parse(data, name)
    _check_structure(proto, name)
    return ModelSource(proto, name, folder)


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}", hint="check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{str(path)!r} is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ResourceError(f"{path.name} has {status.st_size} bytes, more than protobuf's limit of 2 GiB",
                            hint="export the model with external data")  # fmt: skip
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _parse(data: bytes, name: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not data:
        raise ModelError(f"{name} is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RuntimeError):
        raise ModelError(
            f"{name} is not an ONNX model, is damaged, or nests graphs too deeply",
            hint="export or download it again",
        ) from None
    return proto


def _check_structure(proto: Any, name: str) -> None:
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{name} holds no graph", hint="is it an ONNX model?")
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    if not versions:
        raise ModelError(f"{name} declares no opset", hint="export it again with a current exporter")
    if not 1 <= versions.get("ai.onnx", 0) < MIN_OPSET or not _means_the_same(proto, versions["ai.onnx"]):
        check_opset(versions, name)
    if not isinstance(proto.producer_name, str):
        raise ModelError(f"{name} has names that are not UTF-8", hint="it is damaged; export it again")
    for graph, depth in nested_graphs(proto.graph):
        if depth > MAX_DEPTH:
            raise ModelError(f"{name} nests graphs more than {MAX_DEPTH} deep")
        # Protobuf gives text that is not UTF-8 as bytes.
        if not all(isinstance(text, str) for text in _names(graph)):
            raise ModelError(f"{name} has names that are not UTF-8", hint="it is damaged; export it again")


def _names(graph: Any) -> Iterator[Any]:
    """All names that a graph gives or reads."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        for dim in value.type.tensor_type.shape.dim:
            yield dim.dim_param
    for tensor in graph.initializer:
        yield tensor.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _means_the_same(proto: Any, version: int) -> bool:
    """True when every operator of an old model has the meaning that it has at the oldest opset that dhc reads."""
    from onnx import defs

    names = {node.op_type for graph, _ in nested_graphs(proto.graph) for node in graph.node if not node.domain}
    try:
        return not proto.functions and all(
            defs.get_schema(name, version).since_version == defs.get_schema(name, MIN_OPSET).since_version
            for name in names
        )
    except defs.SchemaError:
        return False


def check_opset(versions: dict[str, int], name: str) -> None:
    """Refuses opsets older or newer than the importer knows.

    Raises:
        ModelError: the version of ai.onnx is out of range.
    """
    from onnx import defs

    newest = defs.onnx_opset_version()
    version = versions.get("ai.onnx")
    if version is None:
        return
    if not MIN_OPSET <= version <= newest:
        raise ModelError(
            f"{name} uses opset {version} of ai.onnx; dhc reads {MIN_OPSET} to {newest}",
            hint="convert it with onnx.version_converter" if version < MIN_OPSET else "install a newer onnx package",
        )


def nested_graphs(graph: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """The graph and all graphs inside it, with their depth (iterative: hostile models nest deeply)."""
    pending = [(graph, depth)]
    while pending:
        current, level = pending.pop()
        yield current, level
        if level > MAX_DEPTH:
            continue
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append((attribute.g, level + 1))
                pending.extend((g, level + 1) for g in attribute.graphs)


def open_external(folder: Path | None, location: str, name: str) -> int:
    """Opens an external-data file safely and returns its descriptor.

    The file lies directly in the model's folder, is a regular file, is reached without symbolic links and has no
    other hard link, so that a model cannot read what does not belong to it.

    Raises:
        ModelError: any of that does not hold.
    """
    hint = "external data must be a regular file in the model's own folder"
    if folder is None:
        raise ModelError(f"tensor {name!r} has external data, but the model was given as bytes", hint="pass a path")
    if not location or location in (".", "..") or "/" in location or "\\" in location or "\0" in location:
        raise ModelError(f"tensor {name!r} points to external data at {location!r}", hint=hint)
    directory = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        # Not blocking: a named pipe would otherwise wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(location, flags, dir_fd=directory)
    except OSError as error:
        message = f"cannot open the external data {location!r} of tensor {name!r}: {error.strerror}"
        raise ModelError(message, hint=hint) from None
    finally:
        os.close(directory)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise ModelError(
            f"the external data {location!r} of tensor {name!r} is a link or not a regular file", hint=hint
        )
    return descriptor
