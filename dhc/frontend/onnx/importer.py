"""Imports an ONNX graph: names to values, nodes through their handlers, problems collected first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError, ModelError, ResourceError, ShapeError, UnsupportedError, UsageError

from dhc.frontend.onnx.containers import add_container_input, add_container_output
from dhc.frontend.onnx.context import Known, NodeContext, Scope
from dhc.frontend.onnx.functions import (
    function_opsets,
    has_schema,
    has_schema_function,
    inline_function,
    schema_function,
)
from dhc.frontend.onnx.handlers import find_handler, known_operators
from dhc.frontend.onnx.reader import nested_graphs
from dhc.frontend.onnx.shape_math import fold_shapes
from dhc.frontend.onnx.tensors import from_onnx_dtype, to_array
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Value
from dhc.ir.location import Location
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import LooseTensorType, OptionalType, SequenceType, TensorType, Type, loosened

NODE_BUDGET = 20_000
"""How many nodes a small model may unfold to; larger ones may unfold to 16 times their size."""


UNROLLED_BUDGET = 4096
"""How many nodes of a model may come from loops that are written out."""


def import_model(
    model: Any,
    shapes: Mapping[str, Any],
    source: str = "model",
    folder: Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> Graph:
    """Imports a ModelProto (see `dhc.load_onnx`)."""
    importer = Importer(model, source, folder)
    importer.check_operators()
    return importer.run(shapes, values or {})


class Importer:
    """The state of one import.

    Attributes:
        model: the ModelProto.
        source: file name for locations.
        folder: where external data may lie.
        opsets: domain -> version.
        functions: the model's functions by domain and name.
        active: functions that are being inlined, outermost first.
        unrolled_left: how many more nodes loops that are written out may become.
    """

    def __init__(self, model: Any, source: str, folder: Path | None) -> None:
        self.model = model
        self.source = source
        self.folder = folder
        self.opsets = {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import}
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.active: list[tuple[str, str]] = []
        size = sum(len(g.node) for g, _ in nested_graphs(model.graph)) + sum(len(f.node) for f in model.functions)
        self._nodes_left = NODE_BUDGET + UNROLLED_BUDGET + 16 * size
        self.unrolled_left = UNROLLED_BUDGET

    def check_operators(self) -> None:
        """Lists every operator that has no handler.

        Raises:
            UnsupportedError: there is at least one.
        """
        import difflib

        problems: list[str] = []
        known = known_operators()
        for node, opsets in self._all_nodes():
            domain = node.domain or "ai.onnx"
            if find_handler(domain, node.op_type, opsets.get(domain, 1)) is not None and domain in opsets:
                continue
            if has_schema_function(domain, node.op_type, opsets.get(domain, 1)) and domain in opsets:
                continue
            close = difflib.get_close_matches(node.op_type, known, 1, 0.8)
            hint = ""
            if close and domain == "ai.onnx" and not has_schema(domain, node.op_type):
                hint = f" (is {close[0]} meant?)"
            if domain not in opsets:
                hint = f" (the model imports no opset of the domain {domain!r})"
            problems.append(f"{domain}.{node.op_type} at {self.location(node)}{hint}")
        if problems:
            raise UnsupportedError(
                f"{self.source} uses {len(problems)} nodes that dhc does not support", problems=problems,
                hint="see docs/support.md; write a handler as CONTRIBUTING.md shows, or replace them in the exporter",
            )  # fmt: skip

    def _all_nodes(self) -> Iterator[tuple[Any, Mapping[str, int]]]:
        """Every node that will be imported, also those of functions that are called, with the opsets that hold."""
        pending: list[tuple[Any, Mapping[str, int]]] = [(self.model.graph, self.opsets)]
        seen: set[tuple[str, str]] = set()
        while pending:
            graph, opsets = pending.pop()
            for nested, _ in nested_graphs(graph):
                for node in nested.node:
                    key = (node.domain, node.op_type)
                    function = self.functions.get(key)
                    if function is None:
                        yield node, opsets
                    elif key not in seen:
                        seen.add(key)
                        pending.append((function, function_opsets(function, self.opsets)))

    def location(self, node: Any) -> Location:
        """Where a NodeProto is."""
        name = node.name or (node.output[0] if node.output else "")
        return Location(source=self.source, node=name, op=node.op_type)

    def run(self, shapes: Mapping[str, Any], values: Mapping[str, Any]) -> Graph:
        """Imports the main graph."""
        proto = self.model.graph
        graph = Graph(_symbol(proto.name) or "main")
        graph.metadata["source"] = self.source
        graph.metadata["opset"] = ", ".join(f"{d} {v}" for d, v in sorted(self.opsets.items()))
        if self.model.producer_name:
            graph.metadata["producer"] = self.model.producer_name
        scope = Scope(graph)
        self.import_initializers(proto, scope)
        names = [v.name for v in proto.input if v.name not in scope.names]
        unknown = sorted((set(shapes) | set(values)) - set(names))
        if unknown:
            raise UsageError(f"the model has no input {unknown}; its inputs are {names}", where=self.source)
        constants = set(scope.names)
        for info in proto.input:
            if info.name in constants:
                continue  # before IR version 4 initializers are listed as inputs too
            if info.name in scope.names:
                raise ModelError(f"input {info.name!r} is defined twice", where=self.source)
            type_ = self.convert_type(info.type, graph, info.name)
            if info.name in shapes and not isinstance(type_, TensorType):
                b = Builder(graph, Location(source=self.source, node=info.name, op="input"))
                given = shapes[info.name]
                scope.names[info.name] = add_container_input(b, info.name, type_, given, self.source)
                continue
            if info.name in shapes:
                type_ = self._given_type(info, type_, shapes[info.name])
            if info.name in values:
                scope.names[info.name] = self._fixed_input(info.name, type_, values[info.name])
            else:
                scope.names[info.name] = self.add_input(graph, info.name, type_)
        self.import_nodes(proto, scope)
        self.import_outputs(proto, scope)
        return graph

    def import_nodes(self, proto: Any, scope: Scope) -> None:
        """Imports the nodes of a GraphProto into a scope, in topological order whatever their order in the file.

        Raises:
            ModelError: names are defined twice or nodes form a cycle.
        """
        for node in self._ordered(proto, scope):
            self._import_node(node, scope)

    def add_input(self, graph: Graph, name: str, type_: Type) -> Value:
        """Adds an input to a graph.

        Raises:
            ModelError: its name is empty or taken.
        """
        if not name or any(v.name == name for v in graph.inputs):
            raise ModelError(f"input {name!r} is unnamed or defined twice", where=self.source)
        return graph.add_input(name, type_)

    def _fixed_input(self, name: str, type_: Type, value: Any) -> np.ndarray:
        """An input that the caller fixes to a value.

        Raises:
            UsageError: the value does not fit the input's type.
        """
        array = np.asarray(value)
        if not isinstance(type_, TensorType):
            raise UsageError(f"input {name!r} is {type_}: it cannot be fixed to a value", where=self.source)
        fits = array.ndim == type_.rank and all(
            isinstance(d, SymExpr) or d == size for d, size in zip(type_.shape, array.shape)
        )
        if array.dtype != type_.dtype.numpy or not fits:
            raise UsageError(
                f"input {name!r} is {type_}; the value is {array.dtype}{list(array.shape)}", where=self.source
            )
        return array

    def _ordered(self, proto: Any, scope: Scope) -> list[Any]:
        defined: dict[str, int] = {}
        for i, node in enumerate(proto.node):
            for name in node.output:
                if name and (name in defined or name in scope.names):
                    raise ModelError(f"the name {name!r} is defined twice", where=str(self.location(node)))
                if name:
                    defined[name] = i
        needs = [sorted({defined[n] for n in free_names(node) if n in defined}) for node in proto.node]
        order: list[int] = []
        state = [0] * len(proto.node)  # 0 new, 1 open, 2 done
        for start in range(len(proto.node)):
            if state[start] == 2:
                continue
            stack = [(start, iter(needs[start]))]
            state[start] = 1
            while stack:
                current, pending = stack[-1]
                following = next(pending, None)
                if following is None:
                    state[current] = 2
                    order.append(current)
                    stack.pop()
                elif state[following] == 1:
                    raise ModelError("the nodes form a cycle", where=str(self.location(proto.node[following])))
                elif state[following] == 0:
                    state[following] = 1
                    stack.append((following, iter(needs[following])))
        return [proto.node[i] for i in order]

    def _import_node(self, node: Any, scope: Scope) -> None:
        location = self.location(node)
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise ResourceError(
                f"{self.source} grows beyond all proportion when its functions and loops are unfolded",
                where=str(location), hint="functions that call each other many times are refused",
            )  # fmt: skip
        function = self.functions.get((node.domain, node.op_type))
        if function is not None:
            inline_function(self, node, function, scope)
            return
        domain = node.domain or "ai.onnx"
        opset = self.opsets.get(domain, 1)
        context = NodeContext(node, scope, opset, location, self.folder, self)
        folded = fold_shapes(context)
        if folded is not None:
            scope.names[node.output[0]] = folded
            return
        handler = find_handler(domain, node.op_type, opset)
        if handler is None:
            function = schema_function(context)
            if function is None:
                raise UnsupportedError(f"{domain}.{node.op_type} is not supported", where=str(location))
            inline_function(self, node, function, scope)
            return
        try:
            results = handler(context)
        except DhcError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{node.op_type} is not valid: {error}", where=str(location)) from error
        listed = [results] if isinstance(results, (Value, Known, np.ndarray)) or results is None else list(results)
        for name, result in zip(node.output, listed):
            if not name or result is None:
                continue
            if isinstance(result, Value) and not result.name:
                result.name = name
            scope.names[name] = result

    def import_initializers(self, proto: Any, scope: Scope) -> None:
        """Makes the initializers of a GraphProto known in a scope."""
        for tensor in proto.initializer:
            if not tensor.name or tensor.name in scope.names:
                raise ModelError(f"initializer {tensor.name!r} is unnamed or defined twice", where=self.source)
            scope.names[tensor.name] = to_array(tensor, self.folder)
        for sparse in proto.sparse_initializer:
            from dhc.frontend.onnx.sparse import to_dense

            name = sparse.values.name
            if not name or name in scope.names:
                raise ModelError(f"sparse initializer {name!r} is unnamed or defined twice", where=self.source)
            scope.names[name] = to_dense(sparse, self.folder)

    def _given_type(self, info: Any, type_: TensorType, given: Sequence[int | str]) -> TensorType:
        dims = tuple(symbols.parse_dim(d) if isinstance(d, str) else int(d) for d in given)
        declared = info.type.tensor_type.HasField("shape")
        if declared and len(dims) != type_.rank:
            raise ShapeError(
                f"input {info.name!r} is {type_}; the shape {list(given)} has another rank", where=self.source
            )
        for axis, (old, new) in enumerate(zip(type_.shape, dims)):
            if isinstance(old, int) and old != new:
                raise ShapeError(f"axis {axis} of input {info.name!r} is fixed to {old}, not {new}", where=self.source)
        return type_.with_shape(dims)

    def convert_type(self, proto: Any, graph: Graph, name: str) -> Type:
        """A TypeProto as a type; sizes without a value become symbols.

        Raises:
            ModelError: the type is missing or has no rank.
        """
        kind = proto.WhichOneof("value")
        if kind == "tensor_type":
            dtype = from_onnx_dtype(proto.tensor_type.elem_type, f"value {name!r} of {self.source}")
            dims: list[Dim] = []
            for axis, dim in enumerate(proto.tensor_type.shape.dim):
                if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
                    dims.append(int(dim.dim_value))
                else:
                    text = _symbol(dim.dim_param) or _symbol(f"{name}_{axis}") or graph.fresh_symbol("d")
                    dims.append(symbols.sym(text))
            return TensorType(dtype, tuple(dims))
        if kind == "sequence_type":
            return SequenceType(self.element_type(proto.sequence_type.elem_type, name))
        if kind == "optional_type":
            return OptionalType(self.element_type(proto.optional_type.elem_type, name))
        raise ModelError(f"value {name!r} has no type that dhc knows", where=self.source)

    def element_type(self, proto: Any, name: str) -> Type:
        """A TypeProto as the type of elements: sizes without a value, and a rank not given, are left open.

        Raises:
            ModelError: the type is missing.
        """
        kind = proto.WhichOneof("value")
        if kind != "tensor_type":
            return self.convert_type(proto, Graph(), name)
        dtype = from_onnx_dtype(proto.tensor_type.elem_type, f"value {name!r} of {self.source}")
        if not proto.tensor_type.HasField("shape"):
            return LooseTensorType(dtype)
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in proto.tensor_type.shape.dim]
        shape = tuple(None if d is None or d < 0 else int(d) for d in sizes)
        return loosened(LooseTensorType(dtype, shape))

    def import_outputs(self, proto: Any, scope: Scope) -> None:
        """Returns the outputs of a GraphProto from the graph of a scope."""
        taken: set[str] = set()
        for info in proto.output:
            if scope.parent is None and info.name in taken:
                raise ModelError(f"output {info.name!r} is listed twice", where=self.source)
            taken.add(info.name)
            found = scope.find(info.name)
            if found is None:
                raise ModelError(f"output {info.name!r} is not defined", where=self.source)
            if not isinstance(found, Value):
                context = NodeContext(_Nameless, scope, 1, Location(self.source, node=info.name), self.folder, self)
                found = context.materialize(found, info.name)
            if scope.parent is None and add_container_output(
                scope.graph, info.name, found, [i.name for i in proto.output]
            ):
                continue
            scope.graph.output(found, names=(info.name,))


def free_names(node: Any) -> set[str]:
    """Names that a node reads from its surroundings, also inside its nested graphs."""
    names = {n for n in node.input if n}
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            own.update(o for inner in graph.node for o in inner.output)
            for inner in graph.node:
                names.update(free_names(inner) - own)
            names.update(o.name for o in graph.output if o.name not in own)
    return names


class _Nameless:
    """Stands in for a NodeProto where a constant is returned directly."""

    op_type = "output"
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    attribute: tuple[Any, ...] = ()


def _symbol(text: str) -> str:
    """A symbol name made of an ONNX name; empty when nothing is left."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", text).strip("_")
    if not cleaned:
        return ""
    if cleaned in symbols.FUNCTIONS or not (cleaned[0].isalpha() or cleaned[0] == "_"):
        cleaned = f"d_{cleaned}"
    return cleaned
