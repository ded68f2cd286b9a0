"""Writes a graph as a GraphProto: names, constants, nodes, nested graphs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from dhc_runtime.errors import UnsupportedError

from dhc.frontend.onnx.export.registry import find_exporter
from dhc.frontend.onnx.export.sizes import Source, is_symbol, write_dim
from dhc.frontend.onnx.tensors import from_array, onnx_type_name, to_onnx_dtype
from dhc.ir import dtypes
from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Composite
from dhc.ir.op import Call
from dhc.ir.symbols import Dim, SymExpr, format_dim
from dhc.ir.types import TensorType

OPSET = 21
"""Version of ai.onnx that is written unless an operator needs a newer one."""

_NEWER = frozenset({dtypes.f4e2m1, dtypes.f8e8m0, dtypes.i2, dtypes.u2})
"""Element types that ONNX has only since opsets 23 to 25."""


class Names:
    """Hands out names that are unique in the whole model, nested graphs included."""

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken = set(reserved)
        self._next: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        """A new name like `hint`."""
        base = re.sub(r"[^A-Za-z0-9_.:/-]", "_", hint) or "v"
        name = base
        while name in self._taken:
            number = self._next.get(base, 1)
            self._next[base] = number + 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


class GraphWriter:
    """Writes one graph.

    Attributes:
        graph: the graph being written.
        names: names taken in the model.
        parent: writer of the graph around it.
        problems: what cannot be written, gathered over the whole model.
        proto: the GraphProto so far.
        values: value -> its ONNX name.
        sources: symbol -> where its size can be read.
    """

    def __init__(self, graph: Graph, names: Names, parent: GraphWriter | None, problems: list[str]) -> None:
        from onnx import GraphProto

        self.graph = graph
        self.names = names
        self.parent = parent
        self.problems = problems
        self.proto = GraphProto(name=names.fresh(graph.name or "graph") if parent is not None else graph.name)
        self.values: dict[Value, str] = {}
        self.sources: dict[str, Source] = {}
        self.dims: dict[Dim, str] = {}
        self.opset = 0  # what an operator demands beyond the usual version
        self._constants: dict[Any, str] = {}
        self._node_names = Names(())
        self._wanted: dict[Value, str] = {}
        self.pinned: set[str] = set()  # names that other nodes may use already: they stay as they are
        if parent is None:
            for value in graph.inputs:
                self.values[value] = value.name
                self.pinned.add(value.name)
            for value, name in zip(graph.outputs, graph.output_names):
                made_here = value.producer is not None and value.producer.op.name != "constant"
                if made_here and value not in self._wanted and name not in self.pinned:
                    self._wanted[value] = name

    # ---- names ---------------------------------------------------------------------------------------------------

    def __getitem__(self, value: Value) -> str:
        return self.values[value]

    def operands(self, node: Node) -> list[str]:
        """ONNX names of a node's operands."""
        return [self.values[v] for v in node.operands]

    def find_source(self, symbol: str) -> Source | None:
        """Where the size that a symbol stands for can be read, here or in a graph around."""
        writer: GraphWriter | None = self
        while writer is not None:
            if symbol in writer.sources:
                return writer.sources[symbol]
            writer = writer.parent
        return None

    def find_dim(self, dim: Dim) -> str | None:
        """The name of a size that was already written, here or in a graph around."""
        writer: GraphWriter | None = self
        while writer is not None:
            if dim in writer.dims:
                return writer.dims[dim]
            writer = writer.parent
        return None

    # ---- writing -------------------------------------------------------------------------------------------------

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, hint: str = "", **attributes: Any) -> Any:
        """Appends a node; returns the name of its output, or a list when there are several.

        Trailing empty inputs are dropped, attributes that are None left out.
        """
        from onnx import helper

        listed = list(inputs)
        while listed and not listed[-1]:
            listed.pop()
        made = [self.names.fresh(hint or op.lower()) for _ in range(outputs)]
        given = {k: v for k, v in attributes.items() if v is not None}
        proto = helper.make_node(op, listed, made, **given)
        proto.name = self._node_names.fresh(f"{self.proto.name}.{op}" if self.parent is not None else op)
        self.proto.node.append(proto)
        return made[0] if outputs == 1 else made

    def constant(self, value: Any, dtype: DType | str | np.dtype[Any] | None = None, hint: str = "c") -> str:
        """An initializer; equal small ones are shared."""
        kind = as_dtype(dtype) if dtype is not None else as_dtype(np.asarray(value).dtype)
        array = np.asarray(value) if kind.kind == "s" else np.asarray(value).astype(kind.numpy, copy=False)
        key = (kind.name, array.shape, array.tobytes()) if array.size <= 64 and kind.kind != "s" else None
        writer: GraphWriter | None = self
        while key is not None and writer is not None:
            if key in writer._constants:
                return writer._constants[key]
            writer = writer.parent
        name = self.names.fresh(hint)
        self.proto.initializer.append(from_array(array, kind, name))
        if key is not None:
            self._constants[key] = name
        return name

    def like(self, value: Any, other: Value) -> str:
        """A scalar of the dtype of another value."""
        return self.constant(value, other.dtype)

    def cast(self, name: str, dtype: DType | str, saturate: bool = True) -> str:
        """A Cast node; only small floats may do without saturation."""
        wanted = as_dtype(dtype)
        loose = {} if saturate or wanted not in dtypes.MINIFLOATS else {"saturate": 0}
        return str(self.node("Cast", [name], to=to_onnx_dtype(wanted), **loose))

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant(np.array(values, np.int64))

    def dim(self, dim: Dim) -> str:
        """A size as an int64 vector of one element."""
        return write_dim(self, dim)

    def shape(self, dims: Sequence[Dim]) -> str:
        """Sizes as an int64 vector."""
        if all(isinstance(d, int) for d in dims):
            return self.ints(*(int(d) for d in dims))  # type: ignore[arg-type]
        parts = [self.dim(d) for d in dims]
        return parts[0] if len(parts) == 1 else str(self.node("Concat", parts, axis=0, hint="shape"))

    def reshape(self, name: str, dims: Sequence[Dim]) -> str:
        """A Reshape node; one unknown size is left to it."""
        symbolic = [axis for axis, d in enumerate(dims) if isinstance(d, SymExpr)]
        if len(symbolic) == 1 and all(d != 0 for d in dims):
            static = [int(d) if axis not in symbolic else -1 for axis, d in enumerate(dims)]  # type: ignore[arg-type]
            return str(self.node("Reshape", [name, self.ints(*static)]))
        allow = 1 if any(isinstance(d, int) and d == 0 for d in dims) or symbolic else None
        return str(self.node("Reshape", [name, self.shape(dims)], allowzero=allow))

    def need_opset(self, version: int) -> None:
        """The model must declare at least this version of ai.onnx."""
        writer: GraphWriter | None = self
        while writer is not None:
            writer.opset = max(writer.opset, version)
            writer = writer.parent

    def unsupported(self, message: str) -> NoReturn:
        """Refuses the node being written; the writer goes on with the next and lists all at the end."""
        raise UnsupportedError(message)

    # ---- the graph -----------------------------------------------------------------------------------------------

    def write_nodes(self) -> None:
        """Writes all nodes in order."""
        for node in self.graph:
            self.write_node(node)

    def write_node(self, node: Node) -> None:
        """Writes one node and learns the names of its results."""
        first = len(self.proto.node)
        try:
            made = self._export(node)
            self._check_dtypes(node, first)
        except UnsupportedError as error:
            self.problems.append(f"{node.op.name} at {node.location}: {error.message}")
            made = [self.names.fresh("unsupported") for _ in node.results]
        for value, name in zip(node.results, [made] if isinstance(made, str) else made):
            self.define(value, name)

    def takes(self, op: str, dtype: DType) -> bool:
        """True when the first operand of an ONNX operator may have this element type."""
        from onnx import defs

        allowed = defs.get_schema(op, max(self.opset, OPSET), "").inputs[0].types
        return f"tensor({onnx_type_name(dtype)})" in allowed

    def _check_dtypes(self, node: Node, first: int) -> None:
        """Operators of ONNX take fewer element types than ops of dhc.

        Raises:
            UnsupportedError: an operand is of a type that the operator written for it does not take.
        """
        from onnx import defs

        dtypes = {self.values[v]: v.dtype for v in node.operands if isinstance(v.type, TensorType)}
        for proto in self.proto.node[first:]:
            formal = defs.get_schema(proto.op_type, max(self.opset, OPSET), "").inputs
            for position, name in enumerate(proto.input):
                if name not in dtypes or not formal:
                    continue
                allowed = formal[min(position, len(formal) - 1)].types
                wanted = f"tensor({onnx_type_name(dtypes[name])})"
                if allowed and wanted not in allowed:
                    self.unsupported(f"{proto.op_type} of ONNX takes no {dtypes[name]}")

    def _export(self, node: Node) -> Any:
        newer = {v.type.dtype.name for v in (*node.operands, *node.results) if getattr(v.type, "dtype", None) in _NEWER}
        if newer:
            self.unsupported(f"the opset of the export has no element type {', '.join(sorted(newer))}")
        exporter = find_exporter(node.op.name)
        if exporter is not None:
            return exporter(self, node)
        if isinstance(node.op.kind, Composite):
            return self.export_parts(node)
        return self.unsupported("there is no ONNX operator for it")

    def export_parts(self, node: Node) -> list[str]:
        """Writes the parts of a composite that ONNX lacks as a whole."""
        assert isinstance(node.op.kind, Composite)
        parts = Graph("parts", parent=self.graph)
        inner = [parts.add_input(f"operand{i}", v.type) for i, v in enumerate(node.operands)]
        built: Any = node.op.kind.build(Builder(parts, node.location), inner, Call.of(node))
        results = [built] if isinstance(built, Value) else list(built)
        for formal, actual in zip(inner, node.operands):
            self.values[formal] = self.values[actual]
        for part in parts:
            self.write_node(part)
        return [self.values[v] for v in results]

    def define(self, value: Value, name: str) -> None:
        """Notes the name of a value, renames it to what the user called it, and learns its symbols."""
        self.values[value] = self._renamed(value, name)
        self.pinned.add(self.values[value])
        if isinstance(value.type, TensorType):
            for axis, dim in enumerate(value.type.shape):
                symbol = is_symbol(dim)
                if symbol is not None and self.find_source(symbol) is None:
                    self.sources[symbol] = Source(self.values[value], axis)

    def _renamed(self, value: Value, name: str) -> str:
        """The last node's output takes the name of the graph's output, or of the value, when it is its own."""
        wanted = self._wanted.get(value)
        owner = self.proto.node[-1] if self.proto.node else None
        if owner is None or name not in owner.output or name in self.pinned:
            return name
        new = wanted if wanted is not None else self.names.fresh(value.name) if value.name else name
        for position, output in enumerate(owner.output):
            if output == name:
                owner.output[position] = new
        return new

    def write_inputs(self, proto: Any) -> None:
        """Declares the inputs of the main graph."""
        for value in self.graph.inputs:
            proto.input.append(self.value_info(value.name, value.type))

    def write_outputs(self, names: Sequence[str]) -> None:
        """Declares the outputs, each under its own name and defined in this graph."""
        produced = {o for node in self.proto.node for o in node.output}
        if self.parent is None:
            produced.update(v.name for v in self.graph.inputs)  # an input may be returned as it is
        taken: set[str] = set()
        for value, name in zip(self.graph.outputs, names):
            current = self.values[value]
            if current != name or name in taken or current not in produced:
                target = name if name not in taken and name not in produced else self.names.fresh(name)
                node = self.proto.node.add(op_type="Identity", name=self._node_names.fresh("Identity"))
                node.input.append(current)
                node.output.append(target)
                produced.add(target)
                current = target
            taken.add(current)
            self.proto.output.append(self.value_info(current, value.type))

    def value_info(self, name: str, type_: Any) -> Any:
        """The declaration of a value."""
        from onnx import ValueInfoProto

        info = ValueInfoProto(name=name)
        if not isinstance(type_, TensorType):
            self.problems.append(f"{name}: values of type {type_} are not written")
            return info
        info.type.tensor_type.elem_type = to_onnx_dtype(type_.dtype)
        info.type.tensor_type.shape.SetInParent()
        for dim in type_.shape:
            entry = info.type.tensor_type.shape.dim.add()
            if isinstance(dim, int):
                entry.dim_value = dim
            else:
                entry.dim_param = format_dim(dim)
        return info
