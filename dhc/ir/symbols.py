"""Symbolic sizes: integers or polynomials over named symbols.

A dim is a Python `int` or a `SymExpr`. `SymExpr` is kept in a canonical form (a sum of integer-weighted products of
atoms), so that equal expressions compare equal: ``(N + N) // 2 == N``. Atoms are symbols and the non-polynomial
functions floordiv, mod, max, min, ceildiv and select. Every symbol stands for a size and is therefore >= 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

Atom = Union[str, tuple[Any, ...]]  # a symbol name, or (function, operand, ...)
Monomial = tuple[tuple[Atom, int], ...]  # ((atom, power), ...), sorted

FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "max": max,
    "min": min,
    "ceildiv": lambda a, b: -((-a) // b),
    "select": lambda c, a, b: a if c > 0 else b,
}
_JSON_NAMES = {"floordiv": "//", "mod": "%", "max": "max", "min": "min", "ceildiv": "ceil/", "select": "select>"}


class SymExpr:
    """An immutable symbolic integer. Build it with `sym` and the arithmetic operators."""

    __slots__ = ("terms", "_hash")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: tuple[tuple[Monomial, int], ...] = tuple(
            sorted(((m, c) for m, c in terms.items() if c != 0), key=_term_order)
        )
        self._hash = hash(self.terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymExpr) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        total = dict(self.terms)
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _collapse(total)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _collapse({m: -c for m, c in self.terms})

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        product: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in _terms(other):
                monomial = _multiply(m1, m2)
                product[monomial] = product.get(monomial, 0) + c1 * c2
        return _collapse(product)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)

    def __repr__(self) -> str:
        return format_dim(self)


Dim = Union[int, SymExpr]
Shape = tuple[Dim, ...]


def sym(name: str) -> SymExpr:
    """The symbol `name` (a letter or underscore, then letters, digits, underscores)."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in FUNCTIONS:
        raise ValueError(f"{name!r} is not a symbol name")
    return SymExpr({((name, 1),): 1})


def _atom_key(atom: Atom) -> str:
    return atom if isinstance(atom, str) else "~" + repr(atom)


def _term_order(term: tuple[Monomial, int]) -> tuple[int, list[tuple[str, int]]]:
    return (-sum(p for _, p in term[0]), [(_atom_key(a), p) for a, p in term[0]])


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, SymExpr) else (((), int(dim)),)


def _collapse(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c != 0}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return SymExpr(kept)


def _multiply(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: _atom_key(item[0])))


def _function(name: str, *operands: Dim) -> Dim:
    return SymExpr({(((name, *operands), 1),): 1})


def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """A / b when b is one monomial that divides every term of a, else None."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return _polynomial_quotient(a, b)
    (monomial, coefficient) = divisor[0]
    if coefficient == 0:
        return None
    quotient: dict[Monomial, int] = {}
    for m, c in _terms(a):
        powers = dict(m)
        for atom, power in monomial:
            powers[atom] = powers.get(atom, 0) - power
            if powers[atom] < 0:
                return None
        if c % coefficient:
            return None
        key = tuple((at, p) for at, p in powers.items() if p)
        quotient[tuple(sorted(key, key=lambda item: _atom_key(item[0])))] = c // coefficient
    return _collapse(quotient)


def _polynomial_quotient(a: Dim, b: Dim) -> Dim | None:
    """Exact multivariate division by leading terms (used to undo products of sums, e.g. (N+1)*C // (N+1))."""
    quotient: Dim = 0
    rest: Dim = a
    lead_m, lead_c = _terms(b)[0]
    for _ in range(16):
        if rest == 0:
            return quotient
        m, c = _terms(rest)[0]
        step = _divide_exactly(_collapse({m: c}), _collapse({lead_m: lead_c}))
        if step is None:
            return None
        quotient = quotient + step
        rest = rest - step * b
    return None


def floordiv(a: Dim, b: Dim) -> Dim:
    """Floor division; exact quotients are simplified away."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    if a == b:
        return 1
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and b > 0 and isinstance(a, SymExpr):
        # (k*b + r) // b == k + r // b holds for every integer k: pull out the divisible part.
        whole = _collapse({m: c - c % b for m, c in a.terms})
        if whole != 0:
            return floordiv(whole, b) + floordiv(a - whole, b)
    return _function("floordiv", a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """Remainder with the sign of the divisor (Python's rule)."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if a == b or b == 1 or _divide_exactly(a, b) is not None:
        return 0
    return _function("mod", a, b)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """Division rounded up."""
    if isinstance(a, int) and isinstance(b, int):
        return -((-a) // b)
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    return _function("ceildiv", a, b)


def is_nonnegative(dim: Dim) -> bool:
    """True when `dim` is certainly >= 0, given that every symbol is."""
    if isinstance(dim, int):
        return dim >= 0
    return all(c >= 0 and all(_atom_nonnegative(a) for a, _ in m) for m, c in dim.terms)


def _atom_nonnegative(atom: Atom) -> bool:
    if isinstance(atom, str):
        return True
    name, *operands = atom
    if name == "max":
        return any(is_nonnegative(o) for o in operands)
    if name == "select":
        return all(is_nonnegative(o) for o in operands[1:])
    return all(is_nonnegative(o) for o in operands)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two dims."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if is_nonnegative(a - b):
        return a
    if is_nonnegative(b - a):
        return b
    return _function("max", *sorted((a, b), key=format_dim))


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two dims."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if is_nonnegative(a - b):
        return b
    if is_nonnegative(b - a):
        return a
    return _function("min", *sorted((a, b), key=format_dim))


def select(condition: Dim, if_positive: Dim, otherwise: Dim) -> Dim:
    """`if_positive` where `condition` > 0, else `otherwise`."""
    if isinstance(condition, int):
        return if_positive if condition > 0 else otherwise
    if if_positive == otherwise:
        return if_positive
    return _function("select", condition, if_positive, otherwise)


_BUILD: dict[str, Callable[..., Dim]] = {
    "floordiv": floordiv,
    "mod": mod,
    "max": maximum,
    "min": minimum,
    "ceildiv": ceildiv,
    "select": select,
}


def product(dims: Iterable[Dim]) -> Dim:
    """Product of dims; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def free_symbols(dim: Dim) -> list[str]:
    """Names of the symbols in `dim`, sorted."""
    found: set[str] = set()
    if isinstance(dim, SymExpr):
        for monomial, _ in dim.terms:
            for atom, _ in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    for operand in atom[1:]:
                        found.update(free_symbols(operand))
    return sorted(found)


def substitute(dim: Dim, bindings: Mapping[str, Dim]) -> Dim:
    """Replaces symbols by dims; unbound symbols stay."""
    if not isinstance(dim, SymExpr):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom, power in monomial:
            if isinstance(atom, str):
                factor: Dim = bindings.get(atom, SymExpr({((atom, 1),): 1}))
            else:
                factor = _BUILD[atom[0]](*(substitute(o, bindings) for o in atom[1:]))
            for _ in range(power):
                term = term * factor
        total = total + term
    return total


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The integer value of `dim`.

    Raises:
        KeyError: a symbol of `dim` is not bound.
    """
    value = substitute(dim, bindings)
    if isinstance(value, SymExpr):
        raise KeyError(free_symbols(value)[0])
    return value


def format_dim(dim: Dim) -> str:
    """Text of a dim as `parse_dim` reads it: ``2*N*H+max(M, 3)-1``."""
    if not isinstance(dim, SymExpr):
        return str(dim)
    parts: list[str] = []
    for monomial, coefficient in dim.terms:
        factors = [_format_atom(atom) for atom, power in monomial for _ in range(power)]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        parts.append(("-" if coefficient < 0 else "+" if parts else "") + "*".join(factors))
    return "".join(parts)


def _format_atom(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    return f"{atom[0]}({', '.join(format_dim(o) for o in atom[1:])})"


_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_][A-Za-z0-9_]*)|(.))")


def parse_dim(text: str) -> Dim:
    """Reads what `format_dim` writes (also parentheses and `//`, `%`).

    Raises:
        ValueError: the text is not a dim expression; the message gives the column.
    """
    tokens = [(m.group(1), m.group(2), m.group(3), m.start()) for m in _TOKEN.finditer(text.replace("//", "/"))]
    position = 0

    def peek() -> str:
        return tokens[position][2] or "" if position < len(tokens) else ""

    def fail(what: str) -> ValueError:
        column = tokens[position][3] if position < len(tokens) else len(text)
        return ValueError(f"{what} at column {column + 1} of size expression {text!r}")

    def expect(symbol: str) -> None:
        nonlocal position
        if peek() != symbol:
            raise fail(f"expected {symbol!r}")
        position += 1

    def primary(depth: int) -> Dim:
        nonlocal position
        if depth > 50:
            raise fail("nested too deeply")
        if position >= len(tokens):
            raise fail("expected a number or a symbol")
        number, name, other, _ = tokens[position]
        position += 1
        if number is not None:
            return int(number)
        if name is not None:
            if name in _BUILD and peek() == "(":
                position += 1
                operands = [total(depth + 1)]
                while peek() == ",":
                    position += 1
                    operands.append(total(depth + 1))
                expect(")")
                if len(operands) != (3 if name == "select" else 2):
                    raise fail(f"wrong number of operands for {name}")
                if name in ("floordiv", "mod", "ceildiv") and operands[1] == 0:
                    raise fail("division by zero")
                return _BUILD[name](*operands)
            return sym(name)
        if other == "(":
            inner = total(depth + 1)
            expect(")")
            return inner
        if other == "-":
            return -primary(depth + 1)
        position -= 1
        raise fail("expected a number or a symbol")

    def term(depth: int) -> Dim:
        nonlocal position
        value = primary(depth)
        while peek() in ("*", "/", "%"):
            operator = peek()
            position += 1
            right = primary(depth)
            if operator != "*" and right == 0:
                raise fail("division by zero")
            value = value * right if operator == "*" else value // right if operator == "/" else value % right
        return value

    def total(depth: int) -> Dim:
        nonlocal position
        value = term(depth)
        while peek() in ("+", "-"):
            operator = peek()
            position += 1
            right = term(depth)
            value = value + right if operator == "+" else value - right
        return value

    result = total(0)
    if position != len(tokens):
        raise fail("unexpected text")
    return result


def to_json(dim: Dim) -> Any:
    """The prefix form that artifacts hold: an int, a name, or ``[op, a, b]``."""
    if not isinstance(dim, SymExpr):
        return int(dim)
    total: Any = None
    for monomial, coefficient in dim.terms:
        term: Any = None
        for atom, power in monomial:
            factor: Any = atom if isinstance(atom, str) else [_JSON_NAMES[atom[0]], *(to_json(o) for o in atom[1:])]
            for _ in range(power):
                term = factor if term is None else ["*", term, factor]
        if term is None:
            term = coefficient
        elif coefficient != 1:
            term = ["*", term, coefficient]
        total = term if total is None else ["+", total, term]
    return total


def contiguous_strides(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Row-major strides in elements."""
    strides: list[Dim] = []
    running: Dim = 1
    for dim in reversed(shape):
        strides.append(running)
        running = running * dim
    return tuple(reversed(strides))
