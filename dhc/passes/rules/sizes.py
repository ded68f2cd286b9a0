"""Sizes that turn out to be known: their symbols are replaced everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dhc_runtime.errors import DhcError

from dhc.ir import symbols
from dhc.ir.agreement import type_difference
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.op import infer_types
from dhc.ir.symbols import Dim, SymExpr, is_nonnegative
from dhc.ir.types import TensorType, free_symbols, substitute
from dhc.ir.verifier import used_symbols
from dhc.passes.base import Refusal
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of

LARGEST_SIZE = 2**31
"""Sizes beyond are left to fail at run time."""


def replace_symbols(graph: Graph, bindings: Mapping[str, Dim]) -> str | None:
    """Replaces symbols in every type and attribute of a graph and the graphs nested in it.

    Returns:
        None when it did; else why it cannot be done (a size contradicts an op), and nothing has changed.
    """
    nodes = [n for n in graph.walk() if _mentions(n, bindings)]
    values = [v for v in _values(graph) if not bindings.keys().isdisjoint(free_symbols(v.type))]
    attrs = [(n, n.attrs) for n in nodes]
    types = [(v, v.type) for v in values]
    try:
        for node in nodes:
            for spec in node.op.attrs:
                node.set_attr(spec.name, _bound(node.attrs[spec.name], bindings))
        for value in values:
            graph.retype(value, substitute(value.type, bindings))
        for node in [n for n in graph.walk() if n in set(nodes) or _touches(n, set(values))]:
            inferred = infer_types(node.op, node.types, node.attrs, node.regions, node.location)
            for result, type_ in zip(node.results, inferred):
                problem = type_difference(result.type, type_)
                if problem is not None:
                    raise DhcError(problem)
    except (DhcError, ValueError) as error:
        for node, old in attrs:
            node.attrs = old
        for value, before in types:
            graph.retype(value, before)
        return str(error).partition("\n")[0]
    return None


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.results
        for region in node.regions:
            yield from _values(region)


def _mentions(node: Node, bindings: Mapping[str, Dim]) -> bool:
    return any(not bindings.keys().isdisjoint(used_symbols(value)) for value in node.attrs.values())


def _touches(node: Node, values: set[Value]) -> bool:
    return any(v in values for v in (*node.operands, *node.results))


def _bound(value: Any, bindings: Mapping[str, Dim]) -> Any:
    if isinstance(value, SymExpr):
        return symbols.substitute(value, bindings)
    if isinstance(value, tuple):
        return tuple(_bound(v, bindings) for v in value)
    return substitute(value, bindings) if isinstance(value, TensorType) else value


@rule("sizes_known", "read_dims")
def _sizes_known(b: Builder, node: Node) -> Rewritten:
    """The symbols of `read_dims` are replaced when it reads a constant or the vector of sizes that `dims` makes."""
    producer = node.operands[0].producer
    array = constant_of(node.operands[0])
    if array is not None:
        sizes: list[Dim] = [int(n) for n in array.reshape(-1)]
    elif producer is not None and producer.op.name == "dims":
        sizes = list(producer.attrs["values"])
    else:
        return None
    if any(not is_nonnegative(n) or (isinstance(n, int) and n >= LARGEST_SIZE) for n in sizes):
        return Refusal.at("sizes_known", node, "a size may be negative or is too large")
    problem = replace_symbols(b.graph, dict(zip(node.attrs["names"], sizes)))
    if problem is not None:
        return Refusal.at("sizes_known", node, problem)
    return node.operands[0]


SIZES = (_sizes_known,)
