"""The reference interpreter: slow, NumPy, obvious. It is the law that every pass and backend is tested against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError, ResourceError, ShapeError, TypeMismatchError

from dhc.ir import symbols
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Structural
from dhc.ir.op import Call
from dhc.ir.types import OptionalType, SequenceType, TensorType

MAX_RESULT_BYTES = 8 * 2**30
"""Nodes whose results are larger are refused: the interpreter is for checking, not for large work."""

Observer = Callable[[Node, Sequence[Any]], None]


def interpret(graph: Graph, inputs: Mapping[str, Any], observer: Observer | None = None) -> list[Any]:
    """Runs a graph.

    Args:
        graph: the graph.
        inputs: an array per input name; dtype and rank must match exactly, symbols are bound from the shapes.
        observer: called after each node of the outermost graph with its results.

    Returns:
        One array per output (sequences are Python lists, absent optionals None).

    Raises:
        TypeMismatchError: an input is missing, unknown or of another dtype.
        ShapeError: an input's shape contradicts its type, or a result's shape its inferred type.
    """
    missing = [v.name for v in graph.inputs if v.name not in inputs]
    unknown = [n for n in inputs if n not in {v.name for v in graph.inputs}]
    if missing or unknown:
        raise TypeMismatchError(f"graph {graph.name!r}: missing inputs {missing}, unknown inputs {unknown}")
    return run_graph(graph, [inputs[v.name] for v in graph.inputs], {}, observer)


def run_graph(
    graph: Graph, arrays: Sequence[Any], bindings: Mapping[str, int], observer: Observer | None = None
) -> list[Any]:
    """Runs a graph on positional inputs; nested graphs see the symbols bound around them."""
    bound = dict(bindings)
    environment: dict[Value, Any] = {}
    for value, array in zip(graph.inputs, arrays):
        environment[value] = _check_input(graph, value, array)
    bind_symbols(graph, [environment[v] for v in graph.inputs], bound)
    last_use = _last_uses(graph)
    for node in graph:
        results = _run_node(node, [environment[v] for v in node.operands], bound)
        for value, array in zip(node.results, results):
            environment[value] = array
        if observer is not None:
            observer(node, results)
        for operand in node.operands:
            if last_use.get(operand) is node:
                environment.pop(operand, None)
    return [environment[v] for v in graph.outputs]


def check_host_value(type_: Any, value: Any, what: str, where: str | None = None) -> Any:
    """A value of a sequence or optional type; its elements must fit too.

    Raises:
        TypeMismatchError: it does not fit the type.
        ShapeError: the shape of an element does not.
    """
    if isinstance(type_, OptionalType):
        return None if value is None else check_host_value(type_.element, value, what, where)
    if isinstance(type_, SequenceType):
        if not isinstance(value, (list, tuple)):
            raise TypeMismatchError(f"{what} is {type_}, got {type(value).__name__}", where, hint="pass a list")
        return [check_host_value(type_.element, v, f"element {i} of {what}", where) for i, v in enumerate(value)]
    if value is None or isinstance(value, (list, tuple)):
        raise TypeMismatchError(f"{what} is {type_}, got {type(value).__name__}", where, hint="pass an array")
    array = np.asarray(value)
    if type_.dtype.kind == "s" and array.dtype.kind == "U":
        array = array.astype(object)
    if array.dtype != type_.dtype.numpy:
        raise TypeMismatchError(f"{what} is {type_}, got {array.dtype}", where)
    shape = type_.shape
    if shape is None:
        return array
    if len(shape) != array.ndim or any(isinstance(d, int) and d != n for d, n in zip(shape, array.shape)):
        raise ShapeError(f"{what} is {type_}, got shape {array.shape}", where)
    return array


def _last_uses(graph: Graph) -> dict[Value, Node]:
    last: dict[Value, Node] = {}
    for node in graph:
        for operand in node.operands:
            last[operand] = node
    for output in graph.outputs:
        last.pop(output, None)
    return last


def _check_input(graph: Graph, value: Value, array: Any) -> Any:
    if not isinstance(value.type, TensorType):
        return check_host_value(value.type, array, f"input {value.name!r} of graph {graph.name!r}")
    array = np.asarray(array)
    if value.type.dtype.kind == "s" and array.dtype.kind == "U":
        array = array.astype(object)
    if array.dtype != value.type.dtype.numpy:
        raise TypeMismatchError(
            f"input {value.name!r} of graph {graph.name!r} is {value.type.dtype}, got {array.dtype}",
            hint=f"pass an array of dtype {value.type.dtype.numpy}",
        )
    if array.ndim != value.type.rank:
        raise ShapeError(f"input {value.name!r} of graph {graph.name!r} is {value.type}, got shape {array.shape}")
    return array


def bind_symbols(graph: Graph, arrays: Sequence[Any], bound: dict[str, int]) -> None:
    """Binds the symbols of the input types from the arrays' shapes and checks every dim.

    Raises:
        ShapeError: a size contradicts its type.
    """
    pending: list[tuple[Value, int, Any, int]] = []
    for value, array in zip(graph.inputs, arrays):
        if not isinstance(value.type, TensorType):
            continue
        for axis, (dim, size) in enumerate(zip(value.type.shape, array.shape)):
            names = symbols.free_symbols(dim)
            if len(names) == 1 and dim == symbols.sym(names[0]):
                bound.setdefault(names[0], size)
            pending.append((value, axis, dim, size))
    for _, _, dim, size in pending:
        _solve(dim, size, bound)
    for value, axis, dim, size in pending:
        try:
            expected = symbols.evaluate(dim, bound)
        except KeyError as error:
            raise ShapeError(f"cannot find {error.args[0]!r} from the shapes of the inputs of {graph.name!r}") from None
        if expected != size:
            raise ShapeError(
                f"axis {axis} of input {value.name!r} is {symbols.format_dim(dim)} = {expected}, got {size}",
                where=f"graph {graph.name!r}",
            )


def _solve(dim: Any, size: int, bound: dict[str, int]) -> None:
    """Binds the one unknown symbol of a linear expression."""
    unknown = [s for s in symbols.free_symbols(dim) if s not in bound]
    if len(unknown) != 1:
        return
    name = unknown[0]
    at0 = symbols.evaluate(dim, {**bound, name: 0})
    at1 = symbols.evaluate(dim, {**bound, name: 1})
    slope = at1 - at0
    if slope and (size - at0) % slope == 0 and (size - at0) // slope >= 0:
        bound[name] = (size - at0) // slope


def _run_node(node: Node, arrays: Sequence[Any], bound: dict[str, int]) -> tuple[Any, ...]:
    try:
        call = Call.of(node).bind(bound)
    except ValueError as error:  # a size computed from the inputs' sizes is negative
        raise ShapeError(f"{node.op.name}: {error}", where=str(node.location)) from error
    call.run = lambda graph, values: run_graph(graph, values, bound)
    if not node.regions:
        node.op.infer(call)  # sizes that inference took as fitting must do so now that they are known
    _require_memory(call)
    try:
        with np.errstate(all="ignore"):
            results = node.op.reference(call, *arrays)
    except DhcError:
        raise
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise DhcError(f"{node.op.name} failed: {error}", where=str(node.location)) from error
    if len(node.results) != 1 and not isinstance(results, tuple):
        results = tuple(results)
    elif len(node.results) == 1 and not isinstance(results, tuple):
        results = (results,)
    if node.op.kind == Structural("bind"):
        bound.update(zip(node.attrs["names"], (int(n) for n in results[0])))
    checked = []
    for value, result in zip(node.results, results, strict=True):
        checked.append(_check_result(node, value, result, bound))
    return tuple(checked)


def _require_memory(call: Call) -> None:
    """Refuses results that are known to be too large before anything is allocated.

    Raises:
        ResourceError: they are.
    """
    for type_ in call.results:
        if isinstance(type_, TensorType) and isinstance(type_.nbytes, int) and type_.nbytes > MAX_RESULT_BYTES:
            raise ResourceError(
                f"{call.op.name} makes {type_}, which takes {type_.nbytes} bytes; the interpreter allows "
                f"{MAX_RESULT_BYTES}",
                budget=MAX_RESULT_BYTES,
                where=str(call.location),
            )


def _check_result(node: Node, value: Value, result: Any, bound: dict[str, int]) -> Any:
    """Dtype and shape of a result must be the inferred ones; new symbols of the node are bound here."""
    if not isinstance(value.type, TensorType):
        return check_host_value(value.type, result, f"the result of {node.op.name}", str(node.location))
    result = np.asarray(result)
    wanted = value.type.dtype
    if result.dtype != wanted.numpy and not (wanted == as_dtype("str") and result.dtype.kind in "OUS"):
        raise TypeMismatchError(
            f"the reference of {node.op.name} gave {result.dtype}, its type says {value.type}", where=str(node.location)
        )
    if result.ndim != value.type.rank:
        raise ShapeError(
            f"the reference of {node.op.name} gave shape {result.shape}, its type says {value.type}",
            where=str(node.location),
        )
    for dim, size in zip(value.type.shape, result.shape):
        _solve(dim, size, bound)
    expected = tuple(symbols.substitute(d, bound) for d in value.type.shape)
    if expected != result.shape:
        raise ShapeError(
            f"{node.op.name} gave shape {result.shape} where {expected} was inferred", where=str(node.location)
        )
    return result
