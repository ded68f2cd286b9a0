"""ONNX import and export. The `onnx` package is imported when a model is read, not before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from dhc.frontend.onnx.reader import ModelSource
    from dhc.ir.graph import Graph

Shapes = Mapping[str, Union[None, Sequence[Any]]]
Values = Mapping[str, Any]


def load_onnx(model: str | PathLike[str] | bytes, shapes: Shapes | None = None, values: Values | None = None) -> Graph:
    """Reads an ONNX model.

    Args:
        model: path of the file, or its bytes (then without external data).
        shapes: input name -> shape; ints fix sizes, strings name symbolic ones. Inputs not named keep the shapes of
            the model, whose unknown sizes stay symbolic. A sequence takes a list with the shape of each element and
            becomes as many inputs, ``x.0``, ``x.1`` and so on; an optional takes a shape, or None when it is missing.
        values: input name -> array; such an input is fixed to the value and no longer an input of the graph. Axes,
            scales and other operands that decide the structure of a graph must be known in this way.

    Returns:
        A typed graph; every node knows its ONNX node.

    Raises:
        ModelError: the file is not a valid ONNX model.
        UnsupportedError: it uses operators that dhc lacks; the message lists all of them.
        ShapeError: shapes do not fit each other.
        ResourceError: it needs more memory than there is, or unfolds without end.
    """
    from dhc.frontend.onnx.reader import read_model

    return import_source(read_model(model), shapes, values)


def import_source(source: ModelSource, shapes: Shapes | None = None, values: Values | None = None) -> Graph:
    """Imports a model that was read already (see `load_onnx`)."""
    from dhc_runtime.errors import DhcError, ModelError, ResourceError

    from dhc.frontend.onnx.importer import import_model

    try:
        return import_model(source.proto, shapes or {}, source=source.name, folder=source.folder, values=values or {})
    except DhcError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{source.name} needs more memory than there is", hint="are its sizes right?") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Damaged files break assumptions in more ways than can be listed; the model is at fault, whatever it was.
        raise ModelError(f"{source.name} is not valid: {error}", hint="check it with onnx.checker") from error


def save_onnx(graph: Graph, path: str | PathLike[str]) -> None:
    """Writes a graph as an ONNX model (opset 21).

    Raises:
        UnsupportedError: ONNX has no operators for parts of the graph; the message lists all of them.
        ResourceError: the model is larger than protobuf allows.
    """
    from dhc.frontend.onnx.export import write_onnx

    write_onnx(graph, path)


def to_onnx(graph: Graph) -> Any:
    """The `onnx.ModelProto` of a graph (see `save_onnx`)."""
    from dhc.frontend.onnx.export import export_graph

    return export_graph(graph)
