"""Sequences and optionals that are written out: made, where they are used, of values that are known one by one.

What is taken out of such a container is the value itself, so devices, which hold tensors only, never see it. Where
containers enter or leave a graph, the tensors in them do instead: a `Layout` tells how they make up the container.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dhc_runtime.errors import ShapeError, UsageError

from dhc.frontend.onnx.constants import inputs_behind
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Value
from dhc.ir.types import OptionalType, SequenceType, TensorType, Type, accepts

MAX_PARTS = 1024
"""Sequences with more elements are not followed."""

METADATA = "containers"
"""Key of the graph's metadata that tells, in JSON, which tensors make up a sequence or an optional of the model: by
its name a list of names, one name, or null for an optional that holds nothing."""

DECIDING = {
    "if": (0,),
    "loop": (0, 1),
    "sequence_at": (1,),
    "sequence_erase": (1,),
    "sequence_insert": (2,),
    "split_to_sequence": (1,),
}
"""Operands that decide how a container is made up, by op."""


@dataclass(frozen=True)
class Layout:
    """How tensors make up a value.

    Attributes:
        kind: ``tensor``, ``sequence`` or ``optional``.
        parts: what is in a sequence, or in an optional that holds something.
        empty: without parts: element type of the sequence, type of what the optional might hold.
    """

    kind: str
    parts: tuple[Layout, ...] = ()
    empty: Any = None

    def names(self, name: str) -> Any:
        """Names of the tensors of a value called `name`, nested as they are."""
        if self.kind == "tensor":
            return name
        if self.kind == "optional":
            return self.parts[0].names(name) if self.parts else None
        return [part.names(f"{name}.{i}") for i, part in enumerate(self.parts)]


TENSOR = Layout("tensor")


def parts_of(sequence: Value) -> list[Value] | None:
    """The elements of a sequence that is written out; None for any other."""
    producer = sequence.producer
    if producer is None or producer.op.name not in ("sequence_construct", "sequence_empty"):
        return None
    return list(producer.operands)


def take_apart(value: Value) -> tuple[Layout, list[Value]] | None:
    """The tensors that make up a value; None when it is a container that is not written out."""
    if isinstance(value.type, TensorType):
        return TENSOR, [value]
    producer = value.producer
    if producer is None or len(producer.operands) > MAX_PARTS:
        return None
    if producer.op.name == "optional_empty":
        return Layout("optional", empty=producer.attrs["type"]), []
    if producer.op.name == "sequence_empty":
        return Layout("sequence", empty=producer.attrs["dtype"]), []
    if producer.op.name not in ("optional", "sequence_construct"):
        return None
    layouts, leaves = [], []
    for operand in producer.operands:
        inner = take_apart(operand)
        if inner is None:
            return None
        layouts.append(inner[0])
        leaves.extend(inner[1])
    return Layout("optional" if producer.op.name == "optional" else "sequence", tuple(layouts)), leaves


def put_together(b: Builder, layout: Layout, leaves: Iterator[Value]) -> Value:
    """The value that tensors make up."""
    made: Value
    if layout.kind == "tensor":
        return next(leaves)
    if layout.kind == "optional":
        made = (
            b.optional(put_together(b, layout.parts[0], leaves))
            if layout.parts
            else b.optional_empty(type=layout.empty)
        )
    elif layout.parts:
        made = b.sequence_construct(*(put_together(b, part, leaves) for part in layout.parts))
    else:
        made = b.sequence_empty(dtype=layout.empty)
    return made


# ---- inputs and outputs of a model -----------------------------------------------------------------------------------


def add_container_input(b: Builder, name: str, type_: Type, given: Any, where: str) -> Value:
    """Adds the tensors of a container as inputs of the graph, and makes the container of them.

    Args:
        b: builder of the graph.
        name: of the model's input.
        type_: its type.
        given: the shapes of what is in it: one for each element of a sequence, None for an optional without value.
        where: for messages.

    Raises:
        UsageError: `given` does not fit the type.
        ShapeError: a shape does not fit the declared one.
    """
    layout, shapes = _layout(name, type_, given, where)
    names = _flat(layout.names(name))
    taken = {v.name for v in b.graph.inputs}
    if taken & set(names):
        raise UsageError(f"the elements of input {name!r} would be named like another input", where=where)
    leaves = [b.graph.add_input(leaf, leaf_type) for leaf, leaf_type in zip(names, shapes, strict=True)]
    _note(b.graph, name, layout)
    return put_together(b, layout, iter(leaves))


def _layout(name: str, type_: Any, given: Any, where: str) -> tuple[Layout, list[TensorType]]:
    if isinstance(type_, OptionalType):
        if given is None:
            return Layout("optional", empty=type_.element), []
        inner, types = _layout(name, type_.element, given, where)
        return Layout("optional", (inner,)), types
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        what = "a list with the shape of each element" if isinstance(type_, SequenceType) else "a shape"
        raise UsageError(f"input {name!r} holds {type_} and takes {what}, not {given!r}", where=where)
    if not isinstance(type_, SequenceType):
        dims = tuple(symbols.parse_dim(d) if isinstance(d, str) else int(d) for d in given)
        found = TensorType(type_.dtype, dims)
        if not accepts(type_, found):
            raise ShapeError(f"input {name!r} holds {type_}; the shape {list(given)} does not fit", where=where)
        return TENSOR, [found]
    if len(given) > MAX_PARTS:
        raise UsageError(f"input {name!r} would have {len(given)} elements; {MAX_PARTS} are the limit", where=where)
    if not given and isinstance(type_.element, (SequenceType, OptionalType)):
        raise UsageError(f"input {name!r} holds {type_}: without elements it is not supported", where=where)
    if not given:
        return Layout("sequence", empty=type_.element.dtype), []
    pairs = [_layout(name, type_.element, shape, where) for shape in given]
    return Layout("sequence", tuple(inner for inner, _ in pairs)), [t for _, types in pairs for t in types]


def add_container_output(graph: Graph, name: str, value: Value, declared: Sequence[str]) -> bool:
    """Returns the tensors of a container instead of it.

    Args:
        graph: the graph.
        name: of the model's output.
        value: what it stands for.
        declared: names of all outputs of the model.

    Returns:
        False when the container is not written out; then nothing is returned.
    """
    found = None if isinstance(value.type, TensorType) else take_apart(value)
    if found is None:
        return False
    layout, leaves = found
    names = _flat(layout.names(name))
    if (set(declared) - {name}) & set(names) or len(set(names)) != len(names):
        return False
    graph.output(*leaves, names=names)
    _note(graph, name, layout)
    return True


def _flat(names: Any) -> list[str]:
    if isinstance(names, list):
        return [leaf for part in names for leaf in _flat(part)]
    return [] if names is None else [names]


def _note(graph: Graph, name: str, layout: Layout) -> None:
    known = json.loads(graph.metadata.get(METADATA, "{}"))
    graph.metadata[METADATA] = json.dumps({**known, name: layout.names(name)})


def containers_of(graph: Graph) -> dict[str, Any]:
    """Names of the tensors that make up the model's sequences and optionals, by the names of these."""
    found: dict[str, Any] = json.loads(graph.metadata.get(METADATA, "{}"))
    return found


def tensors_of(names: Any, value: Any) -> dict[str, Any]:
    """The tensors of a container's value, by name (see `METADATA`)."""
    if names is None:
        return {}
    if isinstance(names, str):
        return {names: value}
    return {leaf: array for inner, part in zip(names, value) for leaf, array in tensors_of(inner, part).items()}


def value_of(names: Any, tensors: Mapping[str, Any]) -> Any:
    """A container's value: a list, an array or None."""
    if names is None or isinstance(names, str):
        return None if names is None else tensors[names]
    return [value_of(inner, tensors) for inner in names]


def deciding_inputs(graph: Graph) -> list[str]:
    """Inputs whose values decide how the containers of a graph are made up, sorted.

    Once they are known (``values`` of `dhc.load_onnx`), loops that collect are unrolled and sequences written out.
    """
    found: set[str] = set()
    for node in graph:
        if all(isinstance(v.type, TensorType) for v in (*node.operands, *node.results)):
            continue
        for index in DECIDING.get(node.op.name, ()):
            if index < len(node.operands):
                found.update(inputs_behind(node.operands[index], None))
    return sorted(found)
