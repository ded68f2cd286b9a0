"""Writes a graph as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc_runtime.errors import UsageError

from dhc.ir.graph import Graph, Node, Value
from dhc.ir.op import REQUIRED, Attr
from dhc.ir.text.dense import format_dense
from dhc.ir.text.formats import format_attr, format_location, format_name, format_string, format_type

MODES = ("full", "inline", "elide")


def print_graph(
    graph: Graph, locations: bool = True, constants: str = "full", collect: dict[str, np.ndarray] | None = None
) -> str:
    """Text of a graph.

    Args:
        graph: the graph; it need not be valid.
        locations: write where nodes came from.
        constants: ``full``: up to 16 elements as nested lists, more as little-endian bytes. ``inline``: all as
            nested lists. ``elide``: more than 16 elements as a SHA-256 only; the parser then needs `collect`.
        collect: receives the elided arrays by hash.

    Returns:
        Text that ends with a newline; `parse_graph` reads it.
    """
    if constants not in MODES:
        raise UsageError(f"constants={constants!r} is not one of {', '.join(MODES)}")
    printer = _Printer(locations, constants, collect)
    printer.graph(graph, "")
    return "\n".join(printer.lines) + "\n"


class _Names:
    """Unique printed names within one graph: hints where possible, numbers for values without one."""

    def __init__(self, graph: Graph) -> None:
        self._printed: dict[Value, str] = {}
        self._plain: dict[Value, str] = {}
        self._taken: set[str] = set()
        for value in graph.inputs:
            self._define(value)
        for node in graph:
            for result in node.results:
                self._define(result)

    def _define(self, value: Value) -> None:
        if not value.name:
            self._printed[value] = f"%{len(self._printed) - len(self._plain)}"
            return
        name, n = value.name, 1
        while name in self._taken:
            name, n = f"{value.name}_{n}", n + 1
        self._taken.add(name)
        self._plain[value] = name
        self._printed[value] = "%" + format_name(name)

    def __getitem__(self, value: Value) -> str:
        # A value of another graph makes the graph invalid, but a message must still be able to show it.
        return self._printed.get(value) or f"%<{format_string(value.name)} of another graph>"

    def plain(self, value: Value) -> str | None:
        """The name that the parser will give the value; None for values without one."""
        return self._plain.get(value)


class _Printer:
    def __init__(self, locations: bool, constants: str, collect: dict[str, np.ndarray] | None) -> None:
        self.lines: list[str] = []
        self._locations = locations
        self._constants = constants
        self._collect = collect

    def graph(self, graph: Graph, indent: str) -> None:
        names = _Names(graph)
        inputs = ", ".join(f"{names[v]}: {format_type(v.type)}" for v in graph.inputs)
        outputs = ", ".join(
            f"{names[v]}: {format_type(v.type)}{self._output_name(names, v, name)}"
            for v, name in zip(graph.outputs, graph.output_names)
        )
        self.lines.append(f"{indent}graph @{format_name(graph.name)}({inputs}) -> ({outputs}) {{")
        for key, text in graph.metadata.items():
            self.lines.append(f"{indent}  metadata {format_string(key)} = {format_string(text)}")
        for node in graph:
            self._node(node, names, indent + "  ")
        returned = ", ".join(names[v] for v in graph.outputs)
        self.lines.append(f"{indent}  return {returned}".rstrip())
        self.lines.append(f"{indent}}}")

    def _output_name(self, names: _Names, value: Value, name: str) -> str:
        return "" if names.plain(value) == name else f" as {format_string(name)}"

    def _node(self, node: Node, names: _Names, indent: str) -> None:
        line = indent
        if node.results:
            line += ", ".join(names[r] for r in node.results) + " = "
        line += f"{node.op.name}({', '.join(names[v] for v in node.operands)})"
        attrs = [
            f"{spec.name} = {self._attr(spec, node.attrs[spec.name])}"
            for spec in node.op.attrs
            if not is_default(node, spec)
        ]
        if attrs:
            line += f" {{{', '.join(attrs)}}}"
        if node.results:
            line += " : " + ", ".join(format_type(r.type) for r in node.results)
        if node.device:
            line += f" @{format_name(node.device)}"
        location = format_location(node.location) if self._locations else ""
        if location:
            line += f"  {location}"
        if not node.regions:
            self.lines.append(line)
            return
        self.lines.append(line + " {")
        for region in node.regions:
            self.graph(region, indent + "  ")
        self.lines.append(indent + "}")

    def _attr(self, spec: Attr, value: Any) -> str:
        if spec.kind == "tensor":
            return format_dense(value, self._constants, self._collect)
        return format_attr(spec, value)


def is_default(node: Node, spec: Attr) -> bool:
    """True when an attribute need not be written: it has exactly the default's value."""
    value = node.attrs.get(spec.name)
    if value is None:
        return True
    if spec.default is REQUIRED or spec.default is None or spec.kind in ("tensor", "symbol"):
        return False
    default = node.op.check_attr(spec.name, spec.default)
    return format_attr(spec, default) == format_attr(spec, value)
