"""Sequences and optionals.

A sequence that is made of known values in the same graph is followed at import: what is taken out of it is the value
itself, so that models which only pass through sequences run on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.containers import MAX_PARTS, parts_of
from dhc.frontend.onnx.context import NodeContext, Scope
from dhc.frontend.onnx.families.control import imported_inline
from dhc.frontend.onnx.functions import inline_function, schema_function
from dhc.frontend.onnx.handlers import onnx_op
from dhc.frontend.onnx.tensors import from_onnx_dtype
from dhc.ir.dtypes import boolean, i64
from dhc.ir.graph import Value
from dhc.ir.ops.sequence import open_sizes
from dhc.ir.types import LooseTensorType, OptionalType, SequenceType, Type

MAX_INSERTED = 256
"""Sequences that grow element by element are followed up to this length: every insertion lists all elements anew."""


def _sequence(n: NodeContext, index: int = 0) -> Value:
    value = n.value(index)
    if not isinstance(value.type, SequenceType):
        n.invalid(f"input {index} should be a sequence, it is {value.type}")
    return value


def _position(n: NodeContext, index: int) -> list[Value]:
    """An optional operand that says where; as a list of none or one scalar."""
    if not n.has(index):
        return []
    value = n.value(index)
    return [value if value.type.rank == 0 else n.b.reshape(value, shape=())]


def _require_rank(n: NodeContext, element: Type) -> None:
    if isinstance(element, LooseTensorType) and element.shape is None:
        what = "before the first one is inserted" if element.nothing else "of different or unknown rank"
        n.unsupported(
            f"elements of a sequence are taken out {what}",
            hint="declare the shape of the elements in the model's inputs",
        )


def _known_place(n: NodeContext, index: int, length: int, default: int) -> int | None:
    """A position from 0 on, up to and including `length`, when it is known; None when it is not or is out of range."""
    place = default
    if n.has(index):
        array = n.const(index)
        if array is None or array.size != 1:
            return None
        place = int(array.reshape(-1)[0])
        place = place + length if place < 0 else place
    return place if 0 <= place <= length else None


@onnx_op("SequenceEmpty", since=11)
def sequence_empty(n: NodeContext) -> Value:
    """No elements; float by default."""
    return n.b.sequence_empty(dtype=from_onnx_dtype(n.attr("dtype", 1), str(n.location)))


@onnx_op("SequenceConstruct", since=11)
def sequence_construct(n: NodeContext) -> Value:
    """The operands in a sequence."""
    return n.b.sequence_construct(*n.values())


@onnx_op("SequenceInsert", since=11)
def sequence_insert(n: NodeContext) -> Value:
    """A tensor before a position or at the end."""
    sequence, value = _sequence(n), n.value(1)
    parts = parts_of(sequence)
    if parts is not None and len(parts) < MAX_INSERTED:
        place = _known_place(n, 2, len(parts), len(parts))
        if place is not None:
            return n.b.sequence_construct(*parts[:place], value, *parts[place:])
    return n.b.sequence_insert(sequence, value, *_position(n, 2))


@onnx_op("SequenceErase", since=11)
def sequence_erase(n: NodeContext) -> Value:
    """All but one element."""
    sequence = _sequence(n)
    parts = parts_of(sequence)
    if parts:
        place = _known_place(n, 1, len(parts), len(parts) - 1)
        if place is not None and place < len(parts):
            left = [*parts[:place], *parts[place + 1 :]]
            return n.b.sequence_construct(*left) if left else n.b.sequence_empty(dtype=parts[0].dtype)
    return n.b.sequence_erase(sequence, *_position(n, 1))


@onnx_op("SequenceAt", since=11)
def sequence_at(n: NodeContext) -> Value:
    """One element."""
    sequence = _sequence(n)
    parts = parts_of(sequence)
    place = None if parts is None else _known_place(n, 1, len(parts), 0)
    if parts is not None and place is not None and place < len(parts):
        return parts[place]
    if parts and all(part.type == parts[0].type and part.dtype.kind != "s" for part in parts):
        rows = n.b.concat(*(n.b.reshape(part, shape=(1, *part.shape)) for part in parts), axis=0)
        return n.b.gather(rows, *_position(n, 1), axis=0)
    n.raw(1)
    element = sequence.type.element
    _require_rank(n, element)
    return n.b.sequence_at(sequence, *_position(n, 1), symbols=n.fresh_symbols(open_sizes(element)))


@onnx_op("SequenceLength", since=11)
def sequence_length(n: NodeContext) -> Value:
    """How many elements there are."""
    sequence = _sequence(n)
    parts = parts_of(sequence)
    return n.b.sequence_length(sequence) if parts is None else n.b.constant(len(parts), i64)


@onnx_op("SequenceMap", since=17)
def sequence_map(n: NodeContext) -> Any:
    """A graph applied to every element: written out for known elements, else the loop by which ONNX defines it."""
    parts = [parts_of(n.value(i)) if isinstance(n.value(i).type, SequenceType) else None for i in range(len(n))]
    length = None if not parts or parts[0] is None else len(parts[0])
    if not length or length > MAX_PARTS:
        return _map_by_loop(n)
    body = n.require_attr("body")
    if len(body.input) != len(n):
        n.invalid(f"the body takes {len(body.input)} values, {len(n)} are given")
    results: list[list[Value]] = [[] for _ in body.output]
    for number in range(length):
        scope = Scope(n.scope.graph, n.scope)
        for index, (info, own) in enumerate(zip(body.input, parts)):
            if own is not None and number >= len(own):
                n.invalid("the sequences differ in length")
            if own is None and isinstance(n.value(index).type, SequenceType):
                return _map_by_loop(n)
            scope.names[info.name] = n.value(index) if own is None else own[number]
        for result, found in zip(results, imported_inline(n, body, scope), strict=True):
            result.append(found if isinstance(found, Value) else n.materialize(found))
    return [n.b.sequence_construct(*result) for result in results]


def _map_by_loop(n: NodeContext) -> None:
    from dhc.frontend.onnx.importer import free_names

    function = schema_function(n)
    if function is None:
        n.unsupported("this version of the operator is not supported")
    used = free_names(n.proto) - set(n.proto.input)
    inline_function(n.importer, n.proto, function, n.scope, sorted(used))


@onnx_op("SplitToSequence", since=11)
def split_to_sequence(n: NodeContext) -> Value:
    """Pieces of a tensor; known sizes become slices."""
    x = n.value(0)
    axis = n.axis(n.attr("axis", 0), x.type.rank)
    keepdims = bool(n.attr("keepdims", 1))
    length = x.shape[axis]
    sizes = n.const(1) if n.has(1) else np.array(1, np.int64)
    count = n.type_of(1).shape[0] if n.has(1) and n.type_of(1).rank == 1 else None
    if (sizes is None or not isinstance(length, int)) and isinstance(count, int) and 0 < count <= MAX_PARTS:
        cut = n.b.split(x, axis=axis, sizes=n.dims(1))
        return n.b.sequence_construct(*(cut if isinstance(cut, tuple) else (cut,)))
    if sizes is None or not isinstance(length, int) or length > MAX_PARTS or not length:
        operands = [n.value(1)] if n.has(1) else []
        return n.b.split_to_sequence(x, *operands, axis=axis, keepdims=keepdims)
    if sizes.ndim == 0:
        step = int(sizes)
        if step < 1:
            n.invalid(f"pieces of size {step}")
        ends = [min(end, length) for end in range(step, length + step, step)]
    else:
        ends = [int(e) for e in np.cumsum(sizes)]
        if (sizes < 0).any() or not ends or ends[-1] != length:
            n.invalid(f"pieces of sizes {sizes.tolist()} do not make up {length}")
    cut = n.b.split(x, axis=axis, sizes=tuple(end - start for start, end in zip([0, *ends[:-1]], ends)))
    pieces = list(cut) if isinstance(cut, tuple) else [cut]
    if not n.has(1) and not keepdims:
        pieces = [n.b.reshape(p, shape=(*x.shape[:axis], *x.shape[axis + 1 :])) for p in pieces]
    return n.b.sequence_construct(*pieces)


@onnx_op("ConcatFromSequence", since=11)
def concat_from_sequence(n: NodeContext) -> Value:
    """The elements joined."""
    sequence = _sequence(n)
    parts = parts_of(sequence)
    new_axis = bool(n.attr("new_axis", 0))
    if parts:
        axis = n.axis(n.require_attr("axis"), parts[0].type.rank + int(new_axis))
        if new_axis:
            parts = [n.b.reshape(p, shape=(*p.shape[:axis], 1, *p.shape[axis:])) for p in parts]
        return n.b.concat(*parts, axis=axis)
    element = sequence.type.element
    _require_rank(n, element)
    rank = len(element.shape)
    axis = n.axis(n.require_attr("axis"), rank + int(new_axis))
    sizes = [d if isinstance(d, int) else None for d in element.shape]
    if new_axis:
        sizes.insert(axis, None)
    else:
        sizes[axis] = None
    count = sum(d is None for d in sizes)
    return n.b.concat_from_sequence(sequence, axis=axis, new_axis=new_axis, symbols=n.fresh_symbols(count))


# ---- optionals -------------------------------------------------------------------------------------------------------


@onnx_op("Optional", since=15)
def optional(n: NodeContext) -> Value:
    """A value that may be missing; without an operand it is, and an attribute gives its type."""
    if n.has(0):
        return n.b.optional(n.value(0))
    return n.b.optional_empty(type=n.importer.element_type(n.require_attr("type"), "type"))


@onnx_op("OptionalHasElement", since=15)
def optional_has_element(n: NodeContext) -> Any:
    """False for an empty optional and for an operand that is not given; true for any other value."""
    if not n.has(0):
        return n.b.constant(False, boolean)
    value = n.value(0)
    if not isinstance(value.type, OptionalType):
        return n.b.constant(True, boolean)
    if value.producer is not None and value.producer.op.name in ("optional", "optional_empty"):
        return n.b.constant(value.producer.op.name == "optional", boolean)
    return n.b.optional_has_element(value)


@onnx_op("OptionalGetElement", since=15)
def optional_get_element(n: NodeContext) -> Any:
    """The value; of a value that is no optional, itself."""
    value = n.value(0)
    if not isinstance(value.type, OptionalType):
        return value
    if value.producer is not None and value.producer.op.name == "optional":
        return value.producer.operands[0]
    element = value.type.element
    _require_rank(n, element)
    return n.b.optional_get_element(value, symbols=n.fresh_symbols(open_sizes(element)))
