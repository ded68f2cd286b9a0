"""Structural comparison: whether two graphs say the same, the first difference in words, and a stable hash."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from dhc.ir.graph import Graph, Node, Value
from dhc.ir.text.dense import array_hash
from dhc.ir.text.formats import format_attr, format_type


def structurally_equal(a: Graph, b: Graph, names: bool = True, locations: bool = False) -> bool:
    """True when two graphs have the same inputs, nodes in the same order, attributes, types, devices and outputs.

    Args:
        a: a graph.
        b: another one.
        names: also the names of inputs and outputs must agree (names of other values never matter).
        locations: also where nodes came from.
    """
    return difference(a, b, names, locations) is None


def difference(a: Graph, b: Graph, names: bool = True, locations: bool = False) -> str | None:
    """The first difference of two graphs in words; None when `structurally_equal`."""
    if len(a.inputs) != len(b.inputs):
        return f"{len(a.inputs)} inputs against {len(b.inputs)}"
    place: dict[Value, tuple[int, int]] = {}
    for index, (x, y) in enumerate(zip(a.inputs, b.inputs)):
        if x.type != y.type:
            return f"input {index}: type {x.type} against {y.type}"
        if names and x.name != y.name:
            return f"input {index}: name {x.name!r} against {y.name!r}"
        place[x] = place[y] = (-1, index)
    for index, (m, n) in enumerate(zip(a, b)):
        found = _node_difference(m, n, place, names, locations)
        if found is not None:
            return f"node {index}: {found}"
        for number, (x, y) in enumerate(zip(m.results, n.results)):
            place[x] = place[y] = (index, number)
    if len(a) != len(b):
        return f"{len(a)} nodes against {len(b)}"
    if [place[v] for v in a.outputs] != [place[v] for v in b.outputs]:
        return f"outputs {[f'%{v.name}' for v in a.outputs]} against {[f'%{v.name}' for v in b.outputs]}"
    if names and a.output_names != b.output_names:
        return f"output names {a.output_names} against {b.output_names}"
    return None


def _node_difference(
    a: Node, b: Node, place: Mapping[Value, tuple[int, int]], names: bool, locations: bool
) -> str | None:
    if a.op is not b.op:
        return f"{a.op.name} against {b.op.name}"
    if [place[v] for v in a.operands] != [place[v] for v in b.operands]:
        return f"operands of {a!r} against those of {b!r}"
    for spec in a.op.attrs:
        left, right = a.attrs[spec.name], b.attrs[spec.name]
        if _attr_key(a, spec.name) != _attr_key(b, spec.name):
            return f"attribute {spec.name!r} of {a.op.name}: {left!r} against {right!r}"
    if [r.type for r in a.results] != [r.type for r in b.results]:
        return f"types of {a!r} against {b!r}"
    if a.device != b.device:
        return f"device of {a!r}: {a.device!r} against {b.device!r}"
    if locations and a.location != b.location:
        return f"location of {a!r}: {a.location} against {b.location}"
    if len(a.regions) != len(b.regions):
        return f"{len(a.regions)} regions against {len(b.regions)}"
    for index, (x, y) in enumerate(zip(a.regions, b.regions)):
        found = difference(x, y, names, locations)
        if found is not None:
            return f"region {index} of {a.op.name}: {found}"
    return None


def _attr_key(node: Node, name: str) -> Hashable:
    spec = node.op.attr(name)
    assert spec is not None
    value = node.attrs[name]
    if value is None:
        return None
    if spec.kind != "tensor":
        return format_attr(spec, value)  # text, because nan != nan and 0.0 == -0.0 would both be wrong here
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return (array.shape, tuple(str(v) for v in array.reshape(-1)))
    return array_hash(array)


def node_key(node: Node) -> Hashable:
    """What a node computes: equal keys of pure nodes of one graph mean equal results (operands count by identity).

    The symbols that a node defines are part of the key: two nodes that name their sizes differently are different.
    """
    attrs = tuple(_attr_key(node, spec.name) for spec in node.op.attrs)
    regions = tuple(structural_hash(region) for region in node.regions)
    types = tuple(format_type(r.type) for r in node.results)
    return (node.op.name, node.operands, attrs, regions, types, node.device)


def structural_hash(graph: Graph, names: bool = False) -> str:
    """SHA-256 of what `structurally_equal` compares: the same in every process."""
    digest = hashlib.sha256()

    def write(*parts: Any) -> None:
        digest.update(repr(parts).encode())

    place: dict[Value, tuple[int, int]] = {}
    for index, value in enumerate(graph.inputs):
        place[value] = (-1, index)
        write("input", format_type(value.type), value.name if names else "")
    for index, node in enumerate(graph):
        write(
            node.op.name,
            [place[v] for v in node.operands],
            [(spec.name, _attr_key(node, spec.name)) for spec in node.op.attrs],
            [format_type(r.type) for r in node.results],
            node.device,
            [structural_hash(region, names) for region in node.regions],
        )
        for number, result in enumerate(node.results):
            place[result] = (index, number)
    write("outputs", [place[v] for v in graph.outputs], graph.output_names if names else [])
    return digest.hexdigest()
