"""Builds nodes: one method per registered op, derived from its record.

``Builder(graph).add(x, 1.0)`` appends an `add` node and returns its result. Python numbers and NumPy arrays become
constants of the dtype that the other operands ask for. Errors name the line of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dhc_runtime.errors import DhcError, TypeMismatchError

from dhc.ir import registry
from dhc.ir.dtypes import SUB_BYTE, DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Graph, Value
from dhc.ir.location import Location, caller_location
from dhc.ir.op import OpDef
from dhc.ir.types import TensorType

if TYPE_CHECKING:
    from dhc.ir.symbols import Dim


class Builder:
    """Writes nodes into a graph at its insertion point.

    Attributes:
        graph: where nodes go.
        location: origin given to every node; None: the caller's file and line.
    """

    def __init__(self, graph: Graph, location: Location | None = None) -> None:
        self.graph = graph
        self.location = location

    def constant(self, value: Any, dtype: DType | str | None = None, name: str = "") -> Value:
        """A constant tensor; `dtype` defaults to the array's own (Python floats: f32, ints: i64).

        Arrays are converted as NumPy does; of Python numbers nothing may be lost but digits of floats.

        Raises:
            TypeMismatchError: the value is no tensor, or does not fit the dtype.
        """
        try:
            array, kind = _array_of(value, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeMismatchError(
                f"the constant cannot be made: {error}", where=str(self.location or caller_location())
            ) from None
        names = (name,) if name else ()
        result: Value = self.call("constant", attrs={"value": array, "dtype": kind}, names=names)
        return result

    def call(
        self,
        op: str | OpDef,
        *operands: Any,
        attrs: dict[str, Any] | None = None,
        regions: Sequence[Graph] = (),
        names: Sequence[str] = (),
        location: Location | None = None,
    ) -> Any:
        """Appends a node of any op; returns its result, or a tuple when it has several."""
        record = registry.get(op) if isinstance(op, str) else op
        where = location or self.location or caller_location()
        values = self._as_values(record, operands, where)
        node = self.graph.create(record, values, attrs, regions, where, names)
        return node.results[0] if len(node.results) == 1 else node.results

    def _as_values(self, record: OpDef, operands: Sequence[Any], where: Location) -> list[Value]:
        anchor = next((o for o in operands if isinstance(o, Value) and isinstance(o.type, TensorType)), None)
        values: list[Value] = []
        for index, operand in enumerate(operands):
            if isinstance(operand, Value):
                values.append(operand)
                continue
            spec = record.operand_spec(index)
            if spec is None or operand is None:
                raise TypeMismatchError(f"{record.name}: operand {index} cannot be {operand!r}", where=str(where))
            dtype: DType | None = None
            if not isinstance(operand, (np.ndarray, np.generic)) and anchor is not None and anchor.dtype in spec.dtypes:
                dtype = anchor.dtype
            try:
                _array_of(operand, dtype)
                values.append(Builder(self.graph, where).constant(operand, dtype))
            except (TypeError, ValueError, OverflowError) as error:
                raise TypeMismatchError(
                    f"{record.name}: operand {index} is neither a value of the graph nor a number or array: {error}",
                    where=str(where),
                ) from None
        return values

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        record = registry.get(name[:-1] if name.endswith("_") else name)

        def method(*operands: Any, **attrs: Any) -> Any:
            regions = attrs.pop("regions", ())
            name_hint = attrs.pop("name", "")
            return self.call(record, *operands, attrs=attrs, regions=regions, names=(name_hint,) if name_hint else ())

        method.__name__ = record.name
        method.__doc__ = record.doc
        return method

    # ---- conveniences over the registry, used by decompositions, gradients and frontends -------------------------

    def full(self, shape: Sequence[Dim], value: Any, dtype: DType | str) -> Value:
        """A tensor filled with one number; dims may be symbolic."""
        scalar = self.constant(value, dtype)
        return scalar if not shape else self.broadcast_to(scalar, shape=tuple(shape))

    def like(self, value: Any, other: Value) -> Value:
        """A scalar constant of the dtype of `other`."""
        return self.constant(value, other.dtype)

    def zeros_like(self, other: Value) -> Value:
        """Zeros of the type of `other`."""
        return self.full(other.shape, 0, other.dtype)


def _array_of(value: Any, dtype: DType | str | None) -> tuple[np.ndarray[Any, Any], DType]:
    """The elements of a constant, and their dtype.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is ragged, or a number does not fit the dtype.
    """
    array = np.asarray(value)
    if array.dtype.kind == "O" and not all(isinstance(item, (str, bytes)) for item in array.flat):
        raise TypeError(f"{value!r} is neither a number nor a string of a known type")
    python = not isinstance(value, (np.ndarray, np.generic))
    if dtype is None:
        default = {"f": "f32", "i": "i64", "b": "bool"}.get(array.dtype.kind) if python else None
        kind = as_dtype(array.dtype if default is None else default)
    else:
        kind = as_dtype(dtype)
        if python or kind in SUB_BYTE:
            _check_fits(value, kind)
    return array if array.dtype == kind.numpy else array.astype(kind.numpy), kind


def _check_fits(number: Any, dtype: DType) -> None:
    """A Python number takes a dtype only when nothing of it is lost but float digits."""
    array = np.asarray(number)
    if not dtype.is_integer or array.size == 0 or array.dtype.kind not in "fiu":
        return
    if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
        raise ValueError(f"{number} is no {dtype}; cast the other operand or round")
    if array.min() < dtype.min or array.max() > dtype.max:
        raise ValueError(f"{number} does not fit {dtype}")


def builder_of(*operands: Any) -> Builder:
    """A builder for the graph that the given values belong to.

    Raises:
        DhcError: no operand is a value, or they belong to different graphs.
    """
    graphs: list[Graph] = list(dict.fromkeys(o.graph for o in operands if isinstance(o, Value)))
    if len(graphs) != 1:
        what = "no operand is a value of a graph" if not graphs else "the operands belong to different graphs"
        raise DhcError(what, where=str(caller_location()), hint="make inputs with graph.input(name, dtype, shape)")
    return Builder(graphs[0])
