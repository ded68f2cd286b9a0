"""ONNX import and export. The `onnx` package is imported when a model is read, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from dhc.ir.graph import Graph

Shapes = Mapping[str, Sequence[Union[int, str]]]


def load_onnx(model: str | PathLike[str] | bytes, shapes: Shapes | None = None) -> Graph:
    """Reads an ONNX model.

    Args:
        model: path of the file, or its bytes (then without external data).
        shapes: input name -> shape; ints fix sizes, strings name symbolic ones. Inputs not named keep the shapes of
            the model, whose unknown sizes stay symbolic.

    Returns:
        A typed graph; every node knows its ONNX node.

    Raises:
        ModelError: the file is not a valid ONNX model.
        UnsupportedError: it uses operators that dhc lacks; the message lists all of them.
        ShapeError: shapes do not fit each other.
    """
    from dhc.frontend.onnx.importer import import_model
    from dhc.frontend.onnx.reader import read_model

    source = read_model(model)
    return import_model(source.proto, shapes or {}, source=source.name, folder=source.folder)
