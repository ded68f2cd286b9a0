"""Functions: those of the model (FunctionProto) and those by which ONNX itself defines operators.

A call is inlined: the function's nodes are imported where the call stands, formal names in a scope of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import ModelError

from dhc.frontend.onnx.context import Known, NodeContext, Scope
from dhc.frontend.onnx.tensors import to_onnx_dtype
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Value
from dhc.ir.symbols import format_dim
from dhc.ir.types import OptionalType, SequenceType, TensorType, Type

if TYPE_CHECKING:
    from dhc.frontend.onnx.importer import Importer

MAX_CALL_DEPTH = 32


def function_opsets(function: Any, around: Mapping[str, int]) -> dict[str, int]:
    """Domain -> version inside of a function; what it does not import itself holds as around it."""
    return {**around, **{e.domain or "ai.onnx": int(e.version) for e in function.opset_import}}


def inline_function(importer: Importer, node: Any, function: Any, scope: Scope, outer: Iterable[str] = ()) -> None:
    """Imports the body of a function in place of a call.

    Args:
        importer: the import.
        node: the call.
        function: the FunctionProto.
        scope: names around the call.
        outer: names of the scope that the function sees besides its inputs (those that nested graphs of the call use).

    Raises:
        ModelError: the function calls itself, or the call does not fit its signature.
    """
    where = str(importer.location(node))
    key = (function.domain, function.name)
    if key in importer.active or len(importer.active) >= MAX_CALL_DEPTH:
        raise ModelError(f"function {function.name!r} calls itself or nests too deeply", where=where)
    if len(node.input) > len(function.input) or len(node.output) > len(function.output):
        raise ModelError(
            f"function {function.name!r} has {len(function.input)} inputs and {len(function.output)} outputs, "
            f"the call {len(node.input)} and {len(node.output)}",
            where=where,
        )
    inner = Scope(scope.graph)
    for formal, actual in zip(function.input, node.input):
        if not actual:
            continue
        found = scope.find(actual)
        if found is None:
            raise ModelError(f"input {actual!r} is not defined before it is used", where=where)
        inner.names[formal] = found
    missing = {name for name in function.input if name not in inner.names}
    for name in outer:
        found = scope.find(name)
        if found is not None and name in function.input:
            raise ModelError(f"the name {name!r} is taken by {function.name!r}", where=where, hint="rename the value")
        if found is not None:
            inner.names[name] = found
    body = _bound(function, node, missing)
    outer_opsets = importer.opsets
    importer.opsets = function_opsets(function, outer_opsets)
    importer.active.append(key)
    try:
        importer.import_nodes(body, inner)
    finally:
        importer.active.pop()
        importer.opsets = outer_opsets
    for formal, actual in zip(function.output, node.output):
        if not actual:
            continue
        if formal not in inner.names:
            raise ModelError(f"function {function.name!r} does not define its output {formal!r}", where=where)
        result = inner.names[formal]
        if isinstance(result, Value) and result.producer is not None and formal not in function.input:
            result.name = actual
        scope.names[actual] = result


def _bound(function: Any, call: Any, missing: set[str]) -> Any:
    """A copy of the function with its attribute references replaced by the call's attributes."""
    body = type(function)()
    body.CopyFrom(function)
    given = {a.name: a for a in function.attribute_proto}
    given.update({a.name: a for a in call.attribute})
    _resolve(body, given, missing)
    return body


def _resolve(body: Any, given: Mapping[str, Any], missing: set[str]) -> None:
    for node in body.node:
        for position, name in enumerate(node.input):
            if name in missing:
                node.input[position] = ""
        while node.input and not node.input[-1]:
            del node.input[-1]
        kept = []
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                actual = given.get(attribute.ref_attr_name)
                if actual is None:
                    continue  # not given and without a default: absent in the node too
                replaced = type(attribute)()
                replaced.CopyFrom(actual)
                replaced.name = attribute.name
                kept.append(replaced)
                continue
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _resolve(graph, given, missing)
            kept.append(attribute)
        copies = [a.SerializeToString() for a in kept]
        kinds = [type(a) for a in kept]
        del node.attribute[:]
        for kind, data in zip(kinds, copies):
            made = kind()
            made.ParseFromString(data)
            node.attribute.append(made)


# ---- operators that ONNX defines by functions ------------------------------------------------------------------------


def _schema(domain: str, name: str, opset: int) -> Any:
    from onnx import defs

    try:
        return defs.get_schema(name, opset, "" if domain == "ai.onnx" else domain)
    except defs.SchemaError:
        return None


def has_schema(domain: str, name: str) -> bool:
    """True when ONNX knows the operator at all."""
    from onnx import defs

    return _schema(domain, name, defs.onnx_opset_version()) is not None


def has_schema_function(domain: str, name: str, opset: int) -> bool:
    """True when ONNX defines the operator by other operators."""
    schema = _schema(domain, name, opset)
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def schema_function(n: NodeContext) -> Any:
    """The FunctionProto that ONNX gives for a node; None when there is none."""
    from onnx import FunctionProto

    domain = n.proto.domain or "ai.onnx"
    schema = _schema(domain, n.proto.op_type, n.opset)
    if schema is None:
        return None
    version = n.importer.opsets.get("ai.onnx", n.opset)
    function = FunctionProto()
    if schema.has_function:
        fitting = [v for v in schema.function_opset_versions if v <= version]
        if not fitting:
            return None
        data = schema.get_function_with_opset_version(max(fitting))
    elif schema.has_context_dependent_function:
        fitting = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if not fitting:
            return None
        types = [_type_bytes(n, index) for index in range(len(n))]
        data = schema.get_context_dependent_function_with_opset_version(
            max(fitting), n.proto.SerializeToString(), types
        )
    else:
        return None
    function.ParseFromString(data)
    attributes = {a.name for a in function.attribute_proto}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name and name not in attributes:
            function.attribute_proto.append(attribute.default_value)
    return function


def _type_bytes(n: NodeContext, index: int) -> bytes:
    """The TypeProto of an input, which ONNX wants in order to choose the function's body."""
    from onnx import TypeProto

    proto = TypeProto()
    if n.has(index):
        found = n.raw(index)
        if isinstance(found, Value):
            type_ = found.type
        elif isinstance(found, Known):
            type_ = TensorType(found.dtype, found.array.shape)
        else:
            type_ = TensorType(as_dtype(found.dtype), found.shape)
        _fill_type(proto, type_)
    return bytes(proto.SerializeToString())


def _fill_type(proto: Any, type_: Type) -> None:
    """Writes a type into a TypeProto."""
    if isinstance(type_, SequenceType):
        _fill_type(proto.sequence_type.elem_type, type_.element)
        return
    if isinstance(type_, OptionalType):
        _fill_type(proto.optional_type.elem_type, type_.element)
        return
    proto.tensor_type.elem_type = to_onnx_dtype(type_.dtype)
    if type_.shape is None:
        return
    proto.tensor_type.shape.SetInParent()
    for dim in type_.shape:
        entry = proto.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
        elif dim is not None:
            entry.dim_param = format_dim(dim)
