"""What a handler sees of an ONNX node, and the scopes of names that nodes live in.

Sizes are values in ONNX (Shape, Gather, Concat, Reshape, ...) and attributes in dhc. The importer therefore follows
small integer tensors symbolically: a `Known` is an array of dims that becomes a real tensor only when an operator
other than shape arithmetic wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.frontend.onnx.constants import constant_of, evaluate_constant, inputs_behind
from dhc.frontend.onnx.containers import put_together, take_apart
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType, i64
from dhc.ir.graph import Graph, Value
from dhc.ir.location import Location
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import TensorType

KNOWN_LIMIT = 4096
"""Constants with more elements are not followed symbolically."""

MAX_RANK = 64
"""NumPy's and the artifact's limit."""


@dataclass(frozen=True)
class Known:
    """An integer tensor whose elements are dims: an object array of ints and SymExprs."""

    array: np.ndarray
    dtype: DType = i64

    @property
    def is_static(self) -> bool:
        """True when no element is symbolic."""
        return all(isinstance(d, (int, np.integer, np.bool_)) for d in self.array.flat)

    def numpy(self) -> np.ndarray:
        """The elements as an ordinary array (static only)."""
        return self.array.astype(self.dtype.numpy)


def known_array(found: Value | Known | np.ndarray) -> np.ndarray | None:
    """What a name stands for as an array when it is known at import, else None."""
    if isinstance(found, np.ndarray):
        return found
    if isinstance(found, Known):
        return found.numpy() if found.is_static else None
    return evaluate_constant(found)


class Scope:
    """Names of one ONNX graph and what they stand for.

    A nested graph looks names up in the graphs around it; a value found there becomes an input of the nested graph
    and is noted in `captures`. Constants are repeated inside instead, and of containers that are written out the
    elements are captured.
    """

    def __init__(self, graph: Graph, parent: Scope | None = None) -> None:
        self.graph = graph
        self.parent = parent
        self.names: dict[str, Value | Known | np.ndarray] = {}
        self.captures: dict[str, Value] = {}  # name of the input of this graph -> the value around it

    def find(self, name: str) -> Value | Known | np.ndarray | None:
        """What a name stands for: a value, known dims, or a constant array not yet made a node."""
        if name in self.names:
            return self.names[name]
        if self.parent is None:
            return None
        outer = self.parent.find(name)
        if outer is None or isinstance(outer, (Known, np.ndarray)):
            return outer
        array = constant_of(outer)
        if array is not None:
            return array
        if outer.graph is self.graph:
            return outer
        self.names[name] = self._captured(name, outer)
        return self.names[name]

    def _captured(self, name: str, outer: Value) -> Value:
        found = None if isinstance(outer.type, TensorType) else take_apart(outer)
        if found is None:
            return self._capture(name, outer)
        layout, leaves = found
        inner = [self._capture(f"{name}.{i}", leaf) for i, leaf in enumerate(leaves)]
        return put_together(Builder(self.graph, outer.location), layout, iter(inner))

    def _capture(self, name: str, outer: Value) -> Value:
        array = constant_of(outer)
        if array is not None:
            made: Value = Builder(self.graph, outer.location).constant(array, outer.dtype, name=name)
            return made
        for value in self.graph.inputs:
            if self.captures.get(value.name) is outer:
                return value  # known by several names
        while any(v.name == name for v in self.graph.inputs):
            name += "_"
        self.captures[name] = outer
        return self.graph.add_input(name, outer.type)


_KINDS = {float: 1, int: 2, str: 3}
"""Type of an attribute's default -> AttributeProto.AttributeType."""


class NeedsValueError(UnsupportedError):
    """An operand decides the structure of the graph, but depends on inputs.

    Attributes:
        inputs: names of the model's inputs that would have to be known (see `values` of `dhc.load_onnx`).
    """

    inputs: tuple[str, ...] = ()


class NodeContext:
    """An ONNX node during import.

    Attributes:
        proto: the NodeProto.
        scope: names of the graph it is in.
        opset: version of the operator's domain.
        b: a builder whose nodes carry this node's location.
        folder: where external data may lie.
        importer: function that imports a nested GraphProto (see importer.py).
    """

    def __init__(
        self, proto: Any, scope: Scope, opset: int, location: Location, folder: Path | None, importer: Any
    ) -> None:
        self.proto = proto
        self.scope = scope
        self.opset = opset
        self.location = location
        self.folder = folder
        self.importer = importer
        self.b = Builder(scope.graph, location)
        self._attributes = {a.name: a for a in proto.attribute}

    # ---- inputs --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.proto.input)

    def has(self, index: int) -> bool:
        """True when input `index` is given."""
        return index < len(self.proto.input) and self.proto.input[index] != ""

    def raw(self, index: int) -> Value | Known | np.ndarray:
        """Input `index` without making it a node.

        Raises:
            ModelError: the input is missing or its name is not defined.
        """
        if not self.has(index):
            self.invalid(f"input {index} is missing")
        found = self.scope.find(self.proto.input[index])
        if found is None:
            self.invalid(f"input {self.proto.input[index]!r} is not defined before it is used")
        return found

    def value(self, index: int) -> Value:
        """Input `index` as a value of the graph."""
        name = self.proto.input[index] if index < len(self.proto.input) else ""
        found = self.raw(index)
        if isinstance(found, Value):
            return found
        made = self.materialize(found, name)
        self.scope.names[name] = made
        return made

    def optional(self, index: int) -> Value | None:
        """Input `index`, or None when it is not given."""
        return self.value(index) if self.has(index) else None

    def values(self) -> list[Value]:
        """All inputs (which must all be given)."""
        return [self.value(i) for i in range(len(self.proto.input))]

    def materialize(self, found: Known | np.ndarray, name: str = "") -> Value:
        """Makes known dims or a constant array a value."""
        if isinstance(found, np.ndarray):
            made: Value = self.b.constant(found, name=name)
            return made
        if found.is_static:
            return self.b.constant(found.numpy(), found.dtype, name=name)
        if any(not isinstance(d, (int, SymExpr)) for d in found.array.flat):
            return self._scaled_sizes(found)
        made = self.b.dims(values=tuple(found.array.reshape(-1)))
        if found.array.ndim != 1:
            made = self.b.reshape(made, shape=found.array.shape)
        return made if found.dtype == i64 else self.b.cast(made, dtype=found.dtype)

    def _scaled_sizes(self, found: Known) -> Value:
        """Sizes times fractions that are used as numbers after all."""
        whole = np.empty(found.array.shape, object)
        factors = np.ones(found.array.shape)
        for index in np.ndindex(whole.shape):
            entry = found.array[index]
            whole[index] = getattr(entry, "dim", entry)
            factors[index] = float(getattr(entry, "factor", 1))
        sizes = self.materialize(Known(whole, found.dtype))
        return self.b.mul(sizes, self.b.constant(factors, found.dtype))

    def number(self, size: Dim) -> Value:
        """A size as an i64 scalar."""
        made: Value = self.b.reshape(self.b.dims(values=(size,)), shape=())
        return made

    def const(self, index: int) -> np.ndarray | None:
        """Input `index` as an array when it is known at import, else None."""
        return known_array(self.raw(index))

    def require_const(self, index: int, what: str) -> np.ndarray:
        """Input `index`, which must be known at import.

        Raises:
            NeedsValueError: it depends on the inputs of the model.
        """
        array = self.const(index)
        if array is None:
            self.needs(index, f"{what} must be known when the model is compiled")
        return array

    def needs(self, index: int, message: str) -> NoReturn:
        """Refuses an operand that is not known when the model is imported.

        Raises:
            NeedsValueError: always; it names the inputs of the model behind the operand.
        """
        found = self.raw(index)
        self._refuse(message, inputs_behind(found, self.scope) if isinstance(found, Value) else [])

    def needs_sizes(self, dims: Sequence[Dim], message: str) -> NoReturn:
        """Refuses sizes that are not known when the model is imported.

        Raises:
            NeedsValueError: always; it names the inputs of the model whose values give the sizes.
        """
        wanted = {name for dim in dims for name in symbols.free_symbols(dim)}
        found: set[str] = set()
        for node in self.scope.graph:
            if node.op.name == "read_dims" and wanted & set(node.attrs["names"]):
                found.update(inputs_behind(node.operands[0], self.scope))
        self._refuse(message, sorted(found))

    def _refuse(self, message: str, inputs: list[str]) -> NoReturn:
        hint = "fix the shapes of the inputs, or make it a constant"
        if inputs:
            hint += f", or fix the inputs {inputs} to values"
        error = NeedsValueError(f"{self.proto.op_type}: {message}", where=str(self.location), hint=hint)
        error.inputs = tuple(inputs)
        raise error

    def known(self, index: int) -> np.ndarray | None:
        """Input `index` as an object array of dims when it is followed symbolically, else None."""
        found = self.raw(index)
        if isinstance(found, Known):
            return found.array
        if isinstance(found, Value) and (not isinstance(found.type, TensorType) or found.dtype.kind not in "iub"):
            return None
        array = found if isinstance(found, np.ndarray) else evaluate_constant(found)
        if array is None or array.dtype.kind not in "iub" or array.size > KNOWN_LIMIT:
            return None
        result = np.empty(array.shape, object)
        result[...] = array.astype(object)
        return result

    def dims(self, index: int) -> tuple[Dim, ...]:
        """Input `index`, a vector of sizes, as dims. Sizes that depend on data become new symbols bound at run time."""
        array = self.known(index)
        if array is not None:
            return tuple(array.reshape(-1))
        value = self.value(index)
        if value.type.rank > 1:
            self.invalid(f"input {index} should be a vector of sizes, it is {value.type}")
        if value.type.rank == 0:
            value = self.b.reshape(value, shape=(1,))
        (length,) = value.shape
        if not isinstance(length, int):
            self.needs(index, "the number of sizes must be known when the model is compiled")
        if length > MAX_RANK:
            self.invalid(f"input {index} asks for {length} sizes; tensors have at most {MAX_RANK}")
        if value.dtype != i64:
            value = self.b.cast(value, dtype=i64)
        return self.bound(value, length)

    def bound(self, sizes: Value, count: int) -> tuple[Dim, ...]:
        """The `count` elements of an i64 vector as sizes that only run time knows: new symbols."""
        names = self.fresh_symbols(count)
        self.b.read_dims(sizes, names=names)
        return tuple(symbols.sym(name) for name in names)

    def fresh_symbols(self, count: int) -> tuple[str, ...]:
        """Names of new symbols."""
        return tuple(self.scope.graph.fresh_symbol("u") for _ in range(count))

    # ---- attributes ----------------------------------------------------------------------------------------------

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute as int, float, str, list, array or GraphProto; `default` when it is not given."""
        from onnx import AttributeProto

        from dhc.frontend.onnx.tensors import to_array

        a = self._attributes.get(name)
        if a is None:
            return default
        kind = a.type
        wanted = _KINDS.get(type(default))
        if wanted is not None and kind != wanted:
            self.invalid(f"attribute {name!r} has the wrong kind, {AttributeProto.AttributeType.Name(kind)}")
        if kind == AttributeProto.INT:
            return int(a.i)
        if kind == AttributeProto.FLOAT:
            return float(a.f)
        if kind == AttributeProto.STRING:
            return a.s.decode("utf-8", "replace")
        if kind == AttributeProto.INTS:
            return [int(i) for i in a.ints]
        if kind == AttributeProto.FLOATS:
            return [float(f) for f in a.floats]
        if kind == AttributeProto.STRINGS:
            return [s.decode("utf-8", "replace") for s in a.strings]
        if kind == AttributeProto.TENSOR:
            return to_array(a.t, self.folder)
        if kind == AttributeProto.GRAPH:
            return a.g
        if kind == AttributeProto.TYPE_PROTO:
            return a.tp
        return self.unsupported(f"attribute {name!r} is of a kind that is not supported")

    def require_attr(self, name: str) -> Any:
        """An attribute that ONNX demands.

        Raises:
            ModelError: it is not given.
        """
        found = self.attr(name)
        if found is None:
            self.invalid(f"attribute {name!r} is missing")
        return found

    def axis(self, axis: int, rank: int) -> int:
        """A non-negative axis.

        Raises:
            ModelError: it is out of range.
        """
        if not -rank <= axis < rank:
            self.invalid(f"axis {axis} is out of range for rank {rank}")
        return axis % rank

    # ---- outputs and errors --------------------------------------------------------------------------------------

    @property
    def output_count(self) -> int:
        """Number of outputs that the node names."""
        return len(self.proto.output)

    def wants(self, index: int) -> bool:
        """True when output `index` is named."""
        return index < len(self.proto.output) and self.proto.output[index] != ""

    def type_of(self, index: int) -> TensorType:
        """Type of input `index`."""
        found: TensorType = self.value(index).type
        return found

    def invalid(self, message: str, hint: str | None = None) -> NoReturn:
        """The model breaks ONNX's rules."""
        raise ModelError(f"{self.proto.op_type}: {message}", where=str(self.location), hint=hint)

    def unsupported(self, message: str, hint: str | None = None) -> NoReturn:
        """The model is valid but dhc cannot take it."""
        raise UnsupportedError(f"{self.proto.op_type}: {message}", where=str(self.location), hint=hint)


def as_known(array: Sequence[Dim] | np.ndarray, dtype: DType = i64) -> Known:
    """Dims as a `Known`."""
    if isinstance(array, np.ndarray) and array.dtype == object:
        return Known(array, dtype)
    result = np.empty(len(array), object)
    result[:] = list(array)
    return Known(result, dtype)
