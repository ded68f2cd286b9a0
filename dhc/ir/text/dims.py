"""Reads size expressions from tokens: ``2*N+max(M, 3)-1``."""

from __future__ import annotations

from collections.abc import Callable

from dhc.ir import symbols
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.text.lexer import Lexer

MAX_DEPTH = 50
MAX_TERMS = 2_000
"""Terms of a polynomial: a product of many sums grows without bound."""

_FUNCTIONS: dict[str, tuple[int, Callable[..., Dim]]] = {
    "floordiv": (2, symbols.floordiv),
    "mod": (2, symbols.mod),
    "max": (2, symbols.maximum),
    "min": (2, symbols.minimum),
    "ceildiv": (2, symbols.ceildiv),
    "select": (3, symbols.select),
}


class DimParser:
    """Parses size expressions and remembers the symbols it saw."""

    def __init__(self, lexer: Lexer) -> None:
        self._lexer = lexer
        self.symbols: set[str] = set()

    def parse(self) -> Dim:
        """One size expression."""
        return self._sum(0)

    def _sum(self, depth: int) -> Dim:
        value = self._product(depth)
        while self._lexer.peek().kind in ("+", "-"):
            plus = self._lexer.take().kind == "+"
            right = self._product(depth)
            value = self._checked(value + right if plus else value - right)
        return value

    def _product(self, depth: int) -> Dim:
        value = self._primary(depth)
        while self._lexer.peek().kind in ("*", "//"):
            operator = self._lexer.take()
            right = self._primary(depth)
            if operator.kind == "//":
                if right == 0:
                    raise self._lexer.fail("division of a size by zero", operator)
                value = value // right
            else:
                if _terms(value) * _terms(right) > MAX_TERMS * 10:
                    raise self._lexer.fail("the size expression is too large", operator)
                value = self._checked(value * right)
        return value

    def _primary(self, depth: int) -> Dim:
        lexer = self._lexer
        if depth > MAX_DEPTH:
            raise lexer.fail("the size expression is nested too deeply")
        token = lexer.take()
        if token.kind == "int":
            if len(token.text) > 20:
                raise lexer.fail(f"{token.text} is too large for a size", token)
            return int(token.text)
        if token.kind == "-":
            return -self._primary(depth + 1)
        if token.kind == "(":
            inner = self._sum(depth + 1)
            self._expect(")")
            return inner
        if token.kind != "name":
            raise lexer.fail("expected a size: a number, a symbol or an expression of them", token)
        if token.text in _FUNCTIONS and lexer.peek().kind == "(":
            lexer.take()
            count, function = _FUNCTIONS[token.text]
            operands = [self._sum(depth + 1)]
            while lexer.peek().kind == ",":
                lexer.take()
                operands.append(self._sum(depth + 1))
            self._expect(")")
            if len(operands) != count:
                raise lexer.fail(f"{token.text} takes {count} operands, got {len(operands)}", token)
            if token.text in ("floordiv", "ceildiv", "mod") and operands[1] == 0:
                raise lexer.fail("division of a size by zero", token)
            return self._checked(function(*operands))
        try:
            symbol = symbols.sym(token.text)
        except ValueError as error:
            raise lexer.fail(str(error), token) from None
        self.symbols.add(token.text)
        return symbol

    def _expect(self, kind: str) -> None:
        token = self._lexer.take()
        if token.kind != kind:
            raise self._lexer.fail(f"expected {kind!r}", token)

    def _checked(self, value: Dim) -> Dim:
        if _terms(value) > MAX_TERMS or (isinstance(value, int) and abs(value) >= 1 << 63):
            raise self._lexer.fail("the size expression is too large")
        return value


def _terms(dim: Dim) -> int:
    return len(dim.terms) if isinstance(dim, SymExpr) else 1
