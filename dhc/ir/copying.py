"""Copies of nodes and graphs."""

from __future__ import annotations

from collections.abc import Iterable

from dhc.ir.graph import Graph, Node, Value


def clone(graph: Graph, name: str) -> Graph:
    """A deep copy under a name: nodes, regions and values are new, constants' arrays are shared."""
    copy = Graph(name)
    copy.metadata = dict(graph.metadata)
    copy._fresh = graph._fresh
    mapping: dict[Value, Value] = {v: copy.add_input(v.name, v.type) for v in graph.inputs}
    for node in graph:
        copy_node(node, copy, mapping)
    copy.output(*(mapping[v] for v in graph.outputs), names=graph.output_names)
    return copy


def copy_node(node: Node, target: Graph, mapping: dict[Value, Value]) -> Node:
    """Copies a node into `target`, its operands taken from `mapping`, its results added to it."""
    copied = Node(
        target,
        node.op,
        [mapping[v] for v in node.operands],
        node.attrs,
        [region.clone() for region in node.regions],
        [r.type for r in node.results],
        node.location,
        [r.name for r in node.results],
    )
    for region in copied.regions:
        region.parent = target
    copied.device = node.device
    target._link(copied, target._anchor)
    for old, new in zip(node.results, copied.results):
        mapping[old] = new
    return copied


def inline(graph: Graph, target: Graph, operands: Iterable[Value]) -> list[Value]:
    """Copies the body of `graph` into `target` at its insertion point and returns the values of its outputs."""
    mapping = dict(zip(graph.inputs, operands))
    for node in graph:
        copy_node(node, target, mapping)
    return [mapping[v] for v in graph.outputs]
