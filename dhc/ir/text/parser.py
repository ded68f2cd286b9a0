"""Reads a graph from text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError, ParseError, VerifyError

from dhc.ir import registry
from dhc.ir.agreement import type_difference
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.location import UNKNOWN, Location
from dhc.ir.op import Attr, OpDef, infer_types
from dhc.ir.text.formats import ELEMENT_KINDS, format_type
from dhc.ir.text.lexer import Lexer, Token
from dhc.ir.text.values import ValueParser

MAX_DEPTH = 64
"""Nested graphs inside nested graphs; deeper text is refused before Python's stack is in danger."""


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None, where: str | None = None) -> Graph:
    """Reads what `print_graph` writes.

    Types after ``:`` may be left out, and so may the outputs after ``->``; those that are given are checked.

    Args:
        text: exactly one graph.
        constants: arrays by hash for constants that were elided (what ``print_graph(..., collect=)`` filled).
        where: name of the text in messages, for example its file.

    Raises:
        ParseError: the text is not a graph; the message shows line, column and the place.
        VerifyError: a type in the text contradicts the op's inference.
    """
    parser = _Parser(Lexer(text, where), constants or {})
    return parser.module()


def _did_you_mean(name: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(close)}?" if close else None


class _Parser:
    def __init__(self, lexer: Lexer, constants: Mapping[str, np.ndarray]) -> None:
        self._lexer = lexer
        self._values = ValueParser(lexer, constants)

    def module(self) -> Graph:
        graph = self._graph(None, 0)
        extra = self._lexer.take()
        if extra.kind != "end":
            raise self._lexer.fail("unexpected text after the graph", extra)
        graph._fresh = max([graph._fresh, *(_number(s) + 1 for s in self._values.symbols)])
        return graph

    # ---- graphs --------------------------------------------------------------------------------------------------

    def _graph(self, parent: Graph | None, depth: int) -> Graph:
        lexer, values = self._lexer, self._values
        if depth > MAX_DEPTH:
            raise lexer.fail(f"more than {MAX_DEPTH} nested graphs")
        values.word("graph")
        graph = Graph(values.token("at", "the graph's name, as in @main").text, parent)
        scope: dict[tuple[str, bool], Value] = {}
        values.token("(")
        while lexer.peek().kind != ")":
            name = values.token("value", "an input, as in %x: f32[2]")
            values.token(":")
            type_ = values.type_()
            self._define(scope, name, graph, type_)
            if lexer.peek().kind != ")":
                values.token(",")
        values.token(")")
        announced = self._announced() if lexer.peek().kind == "->" else None
        values.token("{")
        while lexer.peek()[:2] == ("name", "metadata") and lexer.peek(1).kind == "string":
            lexer.take()
            key = lexer.take().text
            values.token("=")
            graph.metadata[key] = values.token("string", "a string").text
        while lexer.peek()[:2] != ("name", "return"):
            if lexer.peek().kind in ("}", "end"):
                raise lexer.fail("expected a node or `return`")
            self._node(graph, scope, depth)
        self._return(graph, scope, announced)
        values.token("}")
        return graph

    def _define(self, scope: dict[tuple[str, bool], Value], name: Token, graph: Graph, type_: Any) -> None:
        if (name.text, name.plain) in scope:
            raise self._lexer.fail(f"%{name.text} is defined twice", name)
        try:
            scope[name.text, name.plain] = graph.add_input(name.text if name.plain else "", type_)
        except ValueError as error:
            raise self._lexer.fail(str(error), name) from None

    def _announced(self) -> list[tuple[Token, Any, str | None]]:
        lexer, values = self._lexer, self._values
        values.token("->")
        values.token("(")
        found: list[tuple[Token, Any, str | None]] = []
        while lexer.peek().kind != ")":
            name = values.token("value", "an output, as in %y: f32[2]")
            type_ = None
            if lexer.peek().kind == ":":
                lexer.take()
                type_ = values.type_()
            alias = None
            if lexer.peek()[:2] == ("name", "as"):
                lexer.take()
                alias = values.token("string", "the output's name in quotes").text
            found.append((name, type_, alias))
            if lexer.peek().kind != ")":
                values.token(",")
        values.token(")")
        return found

    def _return(
        self, graph: Graph, scope: dict[tuple[str, bool], Value], announced: list[tuple[Token, Any, str | None]] | None
    ) -> None:
        lexer = self._lexer
        start = lexer.take()
        names: list[Token] = []
        while lexer.peek().kind == "value":
            names.append(lexer.take())
            if lexer.peek().kind != ",":
                break
            lexer.take()
            if lexer.peek().kind != "value":
                raise lexer.fail("expected a value, as in %y")
        if announced is not None and [n[0][1:4:2] for n in announced] != [n[1:4:2] for n in names]:
            raise lexer.fail("the returned values are not those after ->", start)
        for position, token in enumerate(names):
            value = self._use(scope, token)
            alias = None
            if announced is not None:
                at, type_, alias = announced[position]
                difference = None if type_ is None else type_difference(type_, value.type)
                if difference is None and type_ is not None and type_ != value.type:
                    difference = f"{format_type(type_)} is not the value's type {format_type(value.type)}"
                if difference is not None:
                    raise self._wrong_type(f"output %{token.text}: {difference}", at)
            name = alias if alias is not None else token.text if token.plain else f"output{position}"
            if name in graph.output_names:
                raise lexer.fail(
                    f"two outputs are named {name!r}", token, hint='give one of them a name: -> (%y: f32[2] as "other")'
                )
            graph.output(value, names=[name])
            graph.output_names[-1] = name

    def _use(self, scope: dict[tuple[str, bool], Value], token: Token) -> Value:
        value = scope.get((token.text, token.plain))
        if value is None:
            known = [name for name, _ in scope]
            raise self._lexer.fail(f"%{token.text} is not defined here", token, hint=_did_you_mean(token.text, known))
        return value

    def _wrong_type(self, message: str, token: Token) -> VerifyError:
        line, column = self._lexer.position(token.offset)
        place = f"line {line}, column {column}"
        return VerifyError(message, where=f"{self._lexer.where}, {place}" if self._lexer.where else place)

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def _node(self, graph: Graph, scope: dict[tuple[str, bool], Value], depth: int) -> None:
        lexer, values = self._lexer, self._values
        targets: list[Token] = []
        if lexer.peek().kind == "value":
            targets.append(lexer.take())
            while lexer.peek().kind == ",":
                lexer.take()
                targets.append(values.token("value", "a result, as in %y"))
            values.token("=")
        name = values.token("name", "the name of an op")
        op = self._op(name)
        operands = self._operands(scope)
        attrs: dict[str, Any] = {}
        if lexer.peek().kind == "{" and lexer.peek(1)[:2] != ("name", "graph"):
            attrs = self._attrs(op)
        types_at = lexer.peek()
        types: list[Any] | None = None
        if types_at.kind == ":":
            types = []
            while lexer.peek().kind in (":", ","):
                lexer.take()
                types.append(values.type_())
        device = lexer.take().text if lexer.peek().kind == "at" else ""
        location = self._location()
        regions: list[Graph] = []
        if lexer.peek().kind == "{":
            lexer.take()
            while lexer.peek().kind != "}":
                regions.append(self._graph(graph, depth + 1))
            lexer.take()
        node = self._create(graph, op, operands, attrs, regions, types, location, (name, types_at), targets)
        node.device = device
        for token, result in zip(targets, node.results):
            if (token.text, token.plain) in scope:
                raise lexer.fail(f"%{token.text} is defined twice", token)
            scope[token.text, token.plain] = result

    def _create(
        self,
        graph: Graph,
        op: OpDef,
        operands: list[Value],
        attrs: dict[str, Any],
        regions: list[Graph],
        types: list[Any] | None,
        location: Location,
        places: tuple[Token, Token],
        targets: list[Token],
    ) -> Node:
        lexer = self._lexer
        name, types_at = places
        try:
            full = op.check_attrs(attrs, location)
            for spec in op.attrs:
                if spec.kind == "symbol" and not full[spec.name]:
                    full[spec.name] = graph.fresh_symbol()
            inferred = infer_types(op, [v.type for v in operands], full, regions, location)
        except ParseError:
            raise
        except (DhcError, ValueError) as error:
            message = error.message if isinstance(error, DhcError) else f"{op.name}: {error}"
            raise lexer.fail(message, name, hint=getattr(error, "hint", None)) from None
        if types is not None:
            if len(types) != len(inferred):
                raise self._wrong_type(f"{op.name} has {len(inferred)} results, got {len(types)} types", types_at)
            for given, found in zip(types, inferred):
                difference = type_difference(given, found)
                if difference is not None:
                    raise self._wrong_type(f"{op.name}: {difference}", types_at)
        if len(targets) != len(inferred):
            raise lexer.fail(f"{op.name} has {len(inferred)} results, got names for {len(targets)}", name)
        names = [t.text if t.plain else "" for t in targets]
        return graph.create(op, operands, full, regions, location, names, inferred if types is None else types)

    def _op(self, name: Token) -> OpDef:
        try:
            return registry.get(name.text)
        except DhcError as error:
            raise self._lexer.fail(error.message, name, hint=error.hint) from None

    def _operands(self, scope: dict[tuple[str, bool], Value]) -> list[Value]:
        lexer, values = self._lexer, self._values
        values.token("(")
        operands: list[Value] = []
        while lexer.peek().kind != ")":
            operands.append(self._use(scope, values.token("value", "an operand, as in %x")))
            if lexer.peek().kind != ")":
                values.token(",")
        lexer.take()
        return operands

    def _attrs(self, op: OpDef) -> dict[str, Any]:
        lexer, values = self._lexer, self._values
        lexer.take()
        attrs: dict[str, Any] = {}
        while lexer.peek().kind != "}":
            name = values.token("name", "the name of an attribute")
            spec = op.attr(name.text)
            if spec is None:
                known = [a.name for a in op.attrs]
                hint = _did_you_mean(name.text, known) or f"it has: {', '.join(known) or 'none'}"
                raise lexer.fail(f"{op.name} has no attribute {name.text!r}", name, hint=hint)
            if name.text in attrs:
                raise lexer.fail(f"the attribute {name.text!r} is given twice", name)
            values.token("=")
            attrs[name.text] = self._attr(op, spec)
            if lexer.peek().kind != "}":
                values.token(",")
        lexer.take()
        return attrs

    def _attr(self, op: OpDef, spec: Attr) -> Any:
        start = self._lexer.peek()
        element = ELEMENT_KINDS.get(spec.kind)
        value = self._values.listed(element) if element else self._values.scalar(spec.kind)
        try:
            return op.check_attr(spec.name, value)
        except DhcError as error:
            raise self._lexer.fail(error.message, start, hint=error.hint) from None

    def _location(self) -> Location:
        lexer, values = self._lexer, self._values
        if lexer.peek()[:2] != ("name", "loc") or lexer.peek(1).kind != "(":
            return UNKNOWN
        lexer.take()
        lexer.take()
        fields: dict[str, Any] = {}
        while lexer.peek().kind != ")":
            if lexer.peek().kind == "string":
                fields["source"] = lexer.take().text
            else:
                key = values.token("name", "line, node or op")
                if key.text not in ("line", "node", "op"):
                    raise lexer.fail("a location has line, node and op", key)
                values.token("=")
                fields[key.text] = values.scalar("int") if key.text == "line" else values.token("string").text
            if lexer.peek().kind != ")":
                values.token(",")
        lexer.take()
        return Location(**fields)


def _number(symbol: str) -> int:
    """The number at the end of a symbol that the graph may have made up; -1 for others."""
    match = re.fullmatch(r"[A-Za-z_]+?([0-9]{1,9})", symbol)
    return int(match.group(1)) if match else -1
