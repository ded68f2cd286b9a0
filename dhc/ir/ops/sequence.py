"""Sequences: lists of tensors. The interpreter holds them as Python lists; devices never see them.

Positions count from the end when negative. A tensor taken out of a sequence whose elements differ in size gets new
symbols, named in the attribute `symbols`; `open_sizes` tells how many are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from dhc.ir.dtypes import ANY, INDEX, i64
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import Dim, sym
from dhc.ir.types import LooseTensorType, SequenceType, TensorType, Type, joined, loosened

HOST = Structural("host")
SYMBOLS = Attr("symbols", "strs", (), "new symbols for sizes that only run time knows, in order of the axes")
_SEQUENCE = Operand("sequence", frozenset(ANY), sequence=True)
_POSITION = Operand("position", INDEX)
_NO_GRADIENT = NotDifferentiable("sequences are held by the interpreter only")


def open_sizes(element: Type) -> int:
    """How many symbols a tensor of an element type needs."""
    if isinstance(element, LooseTensorType) and element.shape is not None:
        return sum(d is None for d in element.shape)
    return 0


def taken_type(call: Call, element: Type) -> Type:
    """The type of a value that was an element.

    Raises:
        ShapeError: its rank is not known, or too few symbols are given.
    """
    if not isinstance(element, LooseTensorType):
        return element
    if element.shape is None:
        reason = "there is none yet" if element.nothing else "their ranks differ or are not known"
        call.fail(f"the elements are {element}: {reason}")
    names = iter(call.attrs.symbols)
    shape: list[Dim] = []
    for size in element.shape:
        name = "" if size is not None else next(names, "")
        if size is None and not name:
            call.fail(f"elements are {element}, but only {len(call.attrs.symbols)} new symbols are given")
        shape.append(size if size is not None else sym(name))
    return TensorType(element.dtype, tuple(shape))


def _sequence(call: Call, index: int = 0) -> SequenceType:
    type_ = call.types[index]
    if not isinstance(type_, SequenceType):
        call.fail_type(f"operand {index} is a sequence, got {type_}")
    return type_


def _join(call: Call, types: Sequence[Any]) -> Type:
    def both(a: Any, b: Any) -> Any:
        common = joined(a, b)
        if common is None:
            call.fail_type(f"{a} and {b} cannot be elements of one sequence")
        return common

    return reduce(both, [loosened(t) for t in types])


def place(position: Any, length: int, what: str = "sequence") -> int:
    """A position from 0 on.

    Raises:
        IndexError: it is out of range.
    """
    wanted = int(position)
    if not -length <= wanted < length:
        raise IndexError(f"position {wanted} is out of range for a {what} of {length}")
    return wanted % length


def _op(
    name: str,
    doc: str,
    operands: tuple[Operand, ...],
    infer: Callable[[Call], Sequence[Type]],
    reference: Callable[..., Any],
    source: str,
    attrs: tuple[Attr, ...] = (),
    examples: Callable[[], Any] | None = None,
) -> OpDef:
    return register(
        OpDef(
            name=name,
            doc=doc,
            operands=operands,
            attrs=attrs,
            infer=infer,
            reference=reference,
            kind=HOST,
            grad=_NO_GRADIENT,
            examples=examples,
            source=source,
        )
    )


_op(
    "sequence_empty",
    "A sequence without elements.",
    (),
    lambda call: [SequenceType(LooseTensorType(call.attrs.dtype, nothing=True))],
    lambda call: ([],),
    "ONNX SequenceEmpty",
    (Attr("dtype", "dtype", doc="element type of the tensors it may get"),),
    lambda: [([], {"dtype": "f32"})],
)


def _construct_type(call: Call) -> list[Type]:
    if not call.types:
        call.fail_type("needs at least one tensor", hint="sequence_empty makes one without elements")
    return [SequenceType(_join(call, call.types))]


_op(
    "sequence_construct",
    "The sequence of the operands.",
    (Operand("values", ANY, variadic=True),),
    _construct_type,
    lambda call, *values: (list(values),),
    "ONNX SequenceConstruct",
    examples=lambda: [([np.array([1, 2], np.float32), np.array([3, 4], np.float32)], {})],
)


def _insert_type(call: Call) -> list[Type]:
    element = _sequence(call).element
    if len(call.types) > 2:
        require_rank(call, 2, 0)
    return [SequenceType(_join(call, [element, call.types[1]]))]


def _insert(call: Call, sequence: list[Any], value: Any, position: Any = None) -> tuple[list[Any]]:
    at = len(sequence) if position is None else int(position)
    if not -len(sequence) <= at <= len(sequence):
        raise IndexError(f"position {at} is out of range for a sequence of {len(sequence)}")
    at = at + len(sequence) if at < 0 else at
    return ([*sequence[:at], value, *sequence[at:]],)


_op(
    "sequence_insert",
    "The sequence with a tensor inserted before a position, at the end by default.",
    (_SEQUENCE, Operand("value", ANY), Operand("position", INDEX, optional=True)),
    _insert_type,
    _insert,
    "ONNX SequenceInsert",
)


def _erase_type(call: Call) -> list[Type]:
    sequence = _sequence(call)
    if len(call.types) > 1:
        require_rank(call, 1, 0)
    return [SequenceType(loosened(sequence.element))]


def _erase(call: Call, sequence: list[Any], position: Any = -1) -> tuple[list[Any]]:
    at = place(position, len(sequence))
    return ([*sequence[:at], *sequence[at + 1 :]],)


_op(
    "sequence_erase",
    "The sequence without the element at a position, the last by default.",
    (_SEQUENCE, Operand("position", INDEX, optional=True)),
    _erase_type,
    _erase,
    "ONNX SequenceErase",
)


def _at_type(call: Call) -> list[Type]:
    require_rank(call, 1, 0)
    return [taken_type(call, _sequence(call).element)]


_op(
    "sequence_at",
    "The element at a position of a sequence.",
    (_SEQUENCE, _POSITION),
    _at_type,
    lambda call, sequence, position: (sequence[place(position, len(sequence))],),
    "ONNX SequenceAt",
    (SYMBOLS,),
)


def _length_type(call: Call) -> list[Type]:
    _sequence(call)
    return [TensorType(i64, ())]


_op(
    "sequence_length",
    "The number of elements of a sequence.",
    (_SEQUENCE,),
    _length_type,
    lambda call, sequence: np.array(len(sequence), np.int64),
    "ONNX SequenceLength",
)


# ---- tensors cut into sequences and back -----------------------------------------------------------------------------


def _split_type(call: Call) -> list[Type]:
    x = call.types[0]
    axis = call.axis(call.attrs.axis)
    if len(call.types) > 1 and call.types[1].rank > 1:
        call.fail(f"the sizes are a number or a vector, got {call.types[1]}")
    sizes: list[Any] = [d if isinstance(d, int) else None for d in x.shape]
    sizes[axis] = 1 if len(call.types) == 1 else None
    if len(call.types) == 1 and not call.attrs.keepdims:
        del sizes[axis]
    return [SequenceType(_join(call, [LooseTensorType(x.dtype, tuple(sizes))]))]


def _split(call: Call, x: Any, sizes: Any = None) -> tuple[list[Any]]:
    axis = call.axis(call.attrs.axis)
    length = x.shape[axis]
    if sizes is None:
        whole = [np.take(x, i, axis=axis) for i in range(length)]
        return ([np.expand_dims(w, axis) for w in whole] if call.attrs.keepdims else whole,)
    if sizes.ndim == 0:
        step = int(sizes)
        if step < 1:
            raise ValueError(f"pieces of size {step}")
        starts = list(range(0, length, step))
        ends = [*starts[1:], length]
    else:
        if (sizes < 0).any() or int(sizes.sum()) != length:
            raise ValueError(f"pieces of sizes {sizes.tolist()} do not make up {length}")
        ends = [int(e) for e in np.cumsum(sizes)]
        starts = [0, *ends[:-1]]
    head = (slice(None),) * axis
    return ([x[(*head, slice(a, b))] for a, b in zip(starts, ends)],)


_op(
    "split_to_sequence",
    "Cuts a tensor along an axis into pieces of size one, of one size, or of given sizes.",
    (Operand("x", ANY), Operand("sizes", INDEX, optional=True)),
    _split_type,
    _split,
    "ONNX SplitToSequence",
    (
        Attr("axis", "int", 0, "the axis to cut"),
        Attr("keepdims", "bool", True, "without sizes: keep the axis, of size 1"),
    ),
    lambda: [
        ([np.arange(6, dtype=np.float32).reshape(3, 2)], {"keepdims": False}),
        ([np.arange(6, dtype=np.float32).reshape(3, 2), np.array([1, 2])], {}),
    ],
)


def _concat_type(call: Call) -> list[Type]:
    element = _sequence(call).element
    dtype = element.dtype if isinstance(element, (TensorType, LooseTensorType)) else None
    if dtype is None or element.shape is None:  # type: ignore[union-attr]
        call.fail(f"the elements are {element}: their rank must be known")
    sizes: list[int | None] = [d if isinstance(d, int) else None for d in element.shape]  # type: ignore[union-attr]
    axis = call.axis(call.attrs.axis, len(sizes) + int(call.attrs.new_axis))
    if call.attrs.new_axis:
        sizes.insert(axis, None)
    else:
        sizes[axis] = None
    return [taken_type(call, LooseTensorType(dtype, tuple(sizes)))]


def _concat(call: Call, sequence: list[Any]) -> tuple[Any]:
    join: Any = np.stack if call.attrs.new_axis else np.concatenate
    return (join(sequence, axis=call.attrs.axis),)


_op(
    "concat_from_sequence",
    "Joins the elements of a sequence along one of their axes or along a new one.",
    (_SEQUENCE,),
    _concat_type,
    _concat,
    "ONNX ConcatFromSequence",
    (
        Attr("axis", "int", doc="axis of the result"),
        Attr("new_axis", "bool", False, "stack along a new axis"),
        SYMBOLS,
    ),
)
