"""Values that are known while a model is imported: small computations on constants, and what stands behind a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir.graph import Node, Value
from dhc.ir.interpreter import run_graph
from dhc.ir.types import TensorType

if TYPE_CHECKING:
    from dhc.frontend.onnx.context import Scope

MAX_ELEMENTS = 4096
"""Intermediate results with more elements are not computed at import."""
MAX_NODES = 400


def constant_of(value: Value) -> np.ndarray | None:
    """The array of a constant node's result."""
    if value.producer is not None and value.producer.op.name == "constant":
        array: np.ndarray = value.producer.attrs["value"]
        return array
    return None


def evaluate_constant(value: Value) -> np.ndarray | None:
    """The elements of a value that follows from constants by little work; else None."""
    direct = constant_of(value)
    if direct is not None:
        return direct
    nodes = _constant_nodes(value)
    if nodes is None:
        return None
    from dhc.ir.copying import copy_node
    from dhc.ir.graph import Graph

    graph = Graph("constant")
    mapping: dict[Value, Value] = {}
    for node in nodes:
        copy_node(node, graph, mapping)
    graph.output(mapping[value])
    try:
        (array,) = run_graph(graph, [], {})
    except DhcError:
        return None  # the error shows when the graph runs
    return array if isinstance(array, np.ndarray) else None


def _constant_nodes(value: Value) -> list[Node] | None:
    """The nodes behind a value in order, when all are small, pure and start from constants."""
    order: list[Node] = []
    done: set[Node] = set()
    stack: list[tuple[Value, bool]] = [(value, False)]
    while stack:
        current, ready = stack.pop()
        node = current.producer
        if node is None:
            return None
        if ready:
            if node not in done:
                done.add(node)
                order.append(node)
            continue
        if node in done:
            continue
        if not _is_foldable(node) or len(done) + len(stack) > MAX_NODES:
            return None
        stack.append((current, True))
        stack.extend((operand, False) for operand in reversed(node.operands))
    return order


def _is_foldable(node: Node) -> bool:
    if node.regions or not node.op.pure or node.op.name.startswith("random"):
        return False
    types = [*node.types, *(r.type for r in node.results)]
    small = all(isinstance(t, TensorType) and isinstance(t.numel, int) and t.numel <= MAX_ELEMENTS for t in types)
    return small and not any(_is_symbolic(v) for v in node.attrs.values())


def _is_symbolic(value: Any) -> bool:
    from dhc.ir.symbols import SymExpr

    return isinstance(value, SymExpr) or isinstance(value, tuple) and any(_is_symbolic(v) for v in value)


def inputs_behind(value: Value, scope: Scope | None) -> list[str]:
    """Names of the model's inputs that a value depends on, sorted."""
    found: set[str] = set()
    seen: set[Value] = set()
    pending: list[tuple[Value, Scope | None]] = [(value, scope)]
    while pending:
        current, where = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.producer is not None:
            pending.extend((operand, where) for operand in current.producer.operands)
            continue
        outer, captured = _captured(current, where)
        if captured is not None:
            pending.append((captured, outer))
        elif current.graph.parent is None:
            found.add(current.name)
    return sorted(found)


def _captured(value: Value, scope: Scope | None) -> tuple[Scope | None, Value | None]:
    """The value around a nested graph that one of its inputs stands for."""
    while scope is not None:
        if scope.graph is value.graph and value.name in scope.captures:
            return scope.parent, scope.captures[value.name]
        scope = scope.parent
    return None, None
