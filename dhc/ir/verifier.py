"""Checks every invariant of a graph and lists all that are broken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError, VerifyError

from dhc.ir import symbols
from dhc.ir.agreement import type_difference
from dhc.ir.graph import Graph, Node, Use, Value
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, infer_types
from dhc.ir.symbols import SymExpr
from dhc.ir.types import OptionalType, SequenceType, TensorType, free_symbols


def verify(graph: Graph) -> None:
    """Checks a graph and the graphs nested in it.

    Operands are defined before they are used and in the same graph; use lists mirror operands and outputs; types are
    what inference says (they may add quantization, image meaning and more exact sizes); attributes are complete and
    normalised; output names are unique; every symbol is defined before it is used: by an input, by a `symbol`
    attribute, by `read_dims` or by the `symbols` of a control op.

    Raises:
        VerifyError: with one line for each problem.
    """
    problems = find_problems(graph)
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise VerifyError(f"graph {graph.name!r} has {count}:\n  - " + "\n  - ".join(problems))


def find_problems(graph: Graph) -> list[str]:
    """The problems that `verify` would raise about, in the order of the graph."""
    problems: list[str] = []
    _GraphCheck(graph, "", frozenset(), problems).run()
    return problems


def defined_symbols(node: Node) -> list[str]:
    """Symbols that a node gives a value to at run time, in order."""
    names: list[str] = []
    for spec in node.op.attrs:
        value = node.attrs.get(spec.name)
        if spec.kind == "symbol" and isinstance(value, str):
            names.append(value)
        elif spec.kind == "strs" and (spec.name == "symbols" or node.op.kind == Structural("bind")):
            names.extend(value or ())
    return list(dict.fromkeys(names))


def used_symbols(value: Any) -> Iterable[str]:
    """Symbols in an attribute value or a type."""
    if isinstance(value, SymExpr):
        return symbols.free_symbols(value)
    if isinstance(value, (TensorType, SequenceType, OptionalType)):
        return free_symbols(value)
    if isinstance(value, tuple):
        return [name for part in value for name in used_symbols(part)]
    return ()


class _GraphCheck:
    def __init__(self, graph: Graph, path: str, outer: frozenset[str], problems: list[str]) -> None:
        self._graph = graph
        self._path = path
        self._symbols = set(outer)
        self._problems = problems
        self._reported: set[str] = set()
        self._defined: set[Value] = set()
        self._nodes: set[Node] = set()

    def run(self) -> None:
        graph = self._graph
        names: set[str] = set()
        for index, value in enumerate(graph.inputs):
            self._value(value, None, index)
            if value.name in names and value.name:
                self._problem(f"two inputs are named {value.name!r}")
            names.add(value.name)
            if isinstance(value.type, (TensorType, SequenceType, OptionalType)):
                self._symbols.update(free_symbols(value.type))
        for node in graph:
            self._nodes.add(node)
        if len(self._nodes) != len(graph):
            self._problem(f"the list of nodes is broken: {len(graph)} counted, {len(self._nodes)} found")
        for node in graph:
            self._node(node)
        self._outputs()
        self._uses()

    def _problem(self, message: str) -> None:
        self._problems.append(self._path + message)

    # ---- values --------------------------------------------------------------------------------------------------

    def _value(self, value: Value, producer: Node | None, index: int) -> None:
        if value.graph is not self._graph or value.producer is not producer or value.index != index:
            self._problem(
                f"{value!r} does not know its place: it should be number {index} of {producer or 'the inputs'!r}"
            )
        if not isinstance(value.type, (TensorType, SequenceType, OptionalType)):
            self._problem(f"{value!r} has no type but {value.type!r}")
        name: Any = value.name
        if not isinstance(name, str):
            self._problem(f"the name of a value is no string: {name!r}")
        self._defined.add(value)

    def _outputs(self) -> None:
        graph = self._graph
        if len(graph.output_names) != len(graph.outputs):
            self._problem(f"{len(graph.outputs)} outputs have {len(graph.output_names)} names")
        for name in sorted({n for n in graph.output_names if graph.output_names.count(n) > 1}):
            self._problem(f"two outputs are named {name!r}")
        for index, value in enumerate(graph.outputs):
            if value not in self._defined:
                self._problem(f"output {index}, {value!r}, is not defined in this graph")
            if Use(graph, index) not in value._uses:
                self._problem(f"output {index}, {value!r}, lacks its use by the graph")

    def _uses(self) -> None:
        """Every recorded use is a real one (that real ones are recorded is checked where they are)."""
        graph = self._graph
        for value in [*graph.inputs, *(r for n in graph for r in n.results)]:
            for user, index in value.uses:
                if isinstance(user, Graph):
                    real = user is graph and index < len(graph.outputs) and graph.outputs[index] is value
                else:
                    real = user in self._nodes and index < len(user.operands) and user.operands[index] is value
                if not real:
                    self._problem(f"{value!r} records a use that is none: number {index} of {user!r}")

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        where = f"{node!r} ({node.location}): "
        before = len(self._problems)
        if node.graph is not self._graph:
            self._problem(f"{where}belongs to another graph")
        for index, operand in enumerate(node.operands):
            if operand not in self._defined:
                reason = "is defined later" if operand.graph is self._graph else "belongs to another graph"
                if operand.producer is not None and operand.producer.graph is None:
                    reason = "is the result of an erased node"
                self._problem(f"{where}operand {index}, {operand!r}, {reason}")
            if Use(node, index) not in operand._uses:
                self._problem(f"{where}operand {index}, {operand!r}, lacks its use by the node")
        self._attrs(node, where)
        device: Any = node.device
        if not isinstance(device, str):
            self._problem(f"{where}the device is no string: {device!r}")
        if len(self._problems) == before:  # inference on broken attributes would only repeat the problem
            self._types(node, where)
        self._check_symbols(node, where)
        for index, result in enumerate(node.results):
            self._value(result, node, index)
        for number, region in enumerate(node.regions):
            if region.parent is not None and region.parent is not self._graph:
                self._problem(f"{where}region {number} names another graph as the one around it")
            path = f"{self._path}in region {number} of {node.op.name}: "
            _GraphCheck(region, path, frozenset(self._symbols), self._problems).run()

    def _attrs(self, node: Node, where: str) -> None:
        names = [spec.name for spec in node.op.attrs]
        for name in node.attrs:
            if name not in names:
                self._problem(f"{where}there is no attribute {name!r}")
        for spec in node.op.attrs:
            if spec.name not in node.attrs:
                self._problem(f"{where}the attribute {spec.name!r} is missing")
                continue
            value = node.attrs[spec.name]
            if value is spec.default:
                continue
            try:
                normal = node.op.check_attr(spec.name, value)
            except DhcError as error:
                self._problem(where + error.message)
                continue
            if not _is_normal(spec, value, normal):
                self._problem(f"{where}the attribute {spec.name!r} is {value!r}, normalised {normal!r}")
            if spec.kind == "symbol" and not value:
                self._problem(f"{where}the symbol {spec.name!r} has no name")

    def _types(self, node: Node, where: str) -> None:
        try:
            inferred = infer_types(node.op, node.types, node.attrs, node.regions, node.location)
        except DhcError as error:
            self._problem(f"{where}{error.message}")
            return
        if len(inferred) != len(node.results):
            self._problem(f"{where}inference gives {len(inferred)} results, the node has {len(node.results)}")
            return
        for result, type_ in zip(node.results, inferred):
            difference = type_difference(result.type, type_)
            if difference is not None:
                self._problem(f"{where}{result!r}: {difference}")
        if node.op.kind == Structural("group"):
            for region in node.regions:
                for value, operand in zip(region.inputs, node.operands):
                    difference = type_difference(value.type, operand.type)
                    if difference is not None:
                        self._problem(f"{where}input {value!r} of the region: {difference}")

    def _check_symbols(self, node: Node, where: str) -> None:
        new = defined_symbols(node)
        for name in new:
            if name in self._symbols:
                self._problem(f"{where}the symbol {name} is already defined")
        defining = {s.name for s in node.op.attrs if s.kind in ("symbol", "strs")}
        unknown = [
            name
            for key, value in node.attrs.items()
            if key not in defining
            for name in used_symbols(value)
            if name not in self._symbols
        ]
        self._symbols.update(new)
        for result in node.results:
            unknown.extend(name for name in used_symbols(result.type) if name not in self._symbols)
        for name in dict.fromkeys(unknown):
            if name not in self._reported:
                self._problem(f"{where}the symbol {name} is not defined here")
            self._reported.add(name)


def _is_normal(spec: Attr, value: Any, normal: Any) -> bool:
    if spec.kind == "tensor":
        return isinstance(value, np.ndarray)
    if type(value) is not type(normal):
        return False
    if isinstance(value, tuple):
        return len(value) == len(normal) and all(
            type(a) is type(b) and (a == b or a != a) for a, b in zip(value, normal)
        )
    return bool(value == normal or value != value)
