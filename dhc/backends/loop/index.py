"""Index arithmetic as linear forms: sums of loop variables weighted by symbolic sizes.

Offsets are kept as ``constant + Σ coefficient · term``, where coefficients are dims and a term is a loop variable or an
expression that is not linear. In this form quotients and remainders by sizes often disappear (the index arithmetic of a
reshape), and a nest can tell which adjacent loops may become one.
"""

from __future__ import annotations

from dataclasses import dataclass

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.dtypes import boolean, i64
from dhc.ir.scalar import ScalarExpr
from dhc.ir.symbols import Dim


@dataclass(frozen=True)
class Linear:
    """``constant + Σ coefficient · term``; terms are distinct, in order of appearance."""

    constant: Dim
    terms: tuple[tuple[ScalarExpr, Dim], ...] = ()

    def plus(self, other: Linear, sign: int = 1) -> Linear:
        """The sum, or the difference."""
        total: dict[ScalarExpr, Dim] = dict(self.terms)
        for term, coefficient in other.terms:
            total[term] = total.get(term, 0) + coefficient * sign
        kept = tuple((t, c) for t, c in total.items() if c != 0)
        return Linear(self.constant + other.constant * sign, kept)

    def times(self, factor: Dim) -> Linear:
        """The multiple."""
        kept = tuple((t, c * factor) for t, c in self.terms if c * factor != 0)
        return Linear(self.constant * factor, kept)

    def expression(self) -> ScalarExpr:
        """The form as an expression."""
        total: ScalarExpr = s.const(0, i64)
        for term, coefficient in self.terms:
            total = total + term * s.size(coefficient)
        return total + s.size(self.constant)


class Ranges:
    """Simplifies index expressions, knowing the extents of loop variables."""

    def __init__(self) -> None:
        self.extents: dict[str, Dim] = {}
        self._linear: dict[ScalarExpr, Linear] = {}

    def linear(self, e: ScalarExpr) -> Linear:
        """The linear form of an i64 expression; what is not linear becomes a term of its own."""
        found = self._linear.get(e)
        if found is None:
            found = self._linear[e] = self._form(e)
        return found

    def _form(self, e: ScalarExpr) -> Linear:
        if isinstance(e, s.Const):
            return Linear(int(e.value))  # type: ignore[arg-type]
        if isinstance(e, s.Size):
            return Linear(e.dim)
        if isinstance(e, s.Unary) and e.function == "neg":
            return self.linear(e.operand).times(-1)
        if not isinstance(e, s.Binary):
            return Linear(0, ((self._inside(e), 1),))
        left, right = self.linear(e.left), self.linear(e.right)
        if e.function == "add":
            return left.plus(right)
        if e.function == "sub":
            return left.plus(right, -1)
        if e.function == "mul":
            if not right.terms:
                return left.times(right.constant)
            if not left.terms:
                return right.times(left.constant)
        elif e.function in ("div", "floordiv", "mod", "fmod") and not right.terms and self.is_index(e.left):
            divided = self._divide(e.function, left, right.constant)
            if divided is not None:
                return divided
        return Linear(0, ((s.Binary(i64, e.function, left.expression(), right.expression()), 1),))

    def is_index(self, e: ScalarExpr) -> bool:
        """Whether the value depends on loop variables and sizes alone; rules that ignore overflow apply only then."""
        if isinstance(e, s.Var):
            return e.name in self.extents
        if isinstance(e, s.Checked):
            return True
        return not isinstance(e, s.Load) and all(self.is_index(c) for c in s.children(e))

    def _inside(self, e: ScalarExpr) -> ScalarExpr:
        parts = s.children(e)
        return s.rebuild(e, [self.simplify(p) for p in parts]) if parts else e

    def _divide(self, function: str, value: Linear, divisor: Dim) -> Linear | None:
        """Quotient or remainder where at least a part of the value is divisible; None when nothing is known."""
        low, _ = self.bounds(value)
        nonnegative = low is not None and symbols.is_nonnegative(low)
        if function in ("div", "fmod") and not nonnegative:
            return None
        if divisor == 1:
            return value if function in ("div", "floordiv") else Linear(0)
        whole, rest = Linear(0), Linear(0)
        for term, coefficient in (*value.terms, (None, value.constant)):
            quotient = _exact(coefficient, divisor)
            if quotient is None:
                rest = rest.plus(Linear(coefficient) if term is None else Linear(0, ((term, coefficient),)))
            else:
                whole = whole.plus(Linear(quotient) if term is None else Linear(0, ((term, quotient),)))
        low, high = self.bounds(rest)
        rest_nonnegative = low is not None and symbols.is_nonnegative(low)
        if rest_nonnegative and high is not None and symbols.is_nonnegative(divisor - 1 - high):
            return whole if function in ("div", "floordiv") else rest
        # Division of a non-negative number rounds the same way in both senses, and truncation is the cheaper one.
        if function in ("div", "floordiv"):
            name = "div" if rest_nonnegative else "floordiv"
            return whole.plus(Linear(0, ((s.Binary(i64, name, rest.expression(), s.size(divisor)), 1),)))
        name = "fmod" if rest_nonnegative else "mod"
        return Linear(0, ((s.Binary(i64, name, rest.expression(), s.size(divisor)), 1),))

    def bounds(self, form: Linear) -> tuple[Dim | None, Dim | None]:
        """Smallest and largest value, as far as known, where the surrounding loops run at all."""
        low: Dim | None = form.constant
        high: Dim | None = form.constant
        for term, coefficient in form.terms:
            inner_low, inner_high = self._term_bounds(term)
            if symbols.is_nonnegative(coefficient):
                pass
            elif symbols.is_nonnegative(-coefficient):
                inner_low, inner_high = inner_high, inner_low
            else:
                return None, None
            low = None if low is None or inner_low is None else low + coefficient * inner_low
            high = None if high is None or inner_high is None else high + coefficient * inner_high
        return low, high

    def _term_bounds(self, term: ScalarExpr) -> tuple[Dim | None, Dim | None]:
        if isinstance(term, s.Var) and term.name in self.extents:
            return 0, self.extents[term.name] - 1
        if isinstance(term, s.Checked):
            extent = self.linear(term.extent)
            return 0, None if extent.terms else extent.constant - 1
        if isinstance(term, s.Binary) and term.function in ("mod", "fmod", "div", "floordiv"):
            divisor = self.linear(term.right)
            if divisor.terms:
                return None, None
            low, high = self.bounds(self.linear(term.left))
            nonnegative = low is not None and symbols.is_nonnegative(low)
            positive = symbols.is_nonnegative(divisor.constant)
            if term.function == "mod" or (term.function == "fmod" and nonnegative):
                return (0, divisor.constant - 1) if positive else (None, None)
            if nonnegative and positive:
                return 0, None if high is None else symbols.floordiv(high, divisor.constant)
        return None, None

    def simplify(self, e: ScalarExpr) -> ScalarExpr:
        """The same value, index arithmetic in normal form, conditions that always or never hold decided."""
        if isinstance(e, (s.Const, s.Var, s.Size)):
            return e
        if e.dtype == i64 and isinstance(e, (s.Binary, s.Unary)):
            return self.linear(e).expression()
        if isinstance(e, s.Binary) and e.function in s.COMPARE and e.left.dtype == i64:
            if not (self.is_index(e.left) and self.is_index(e.right)):
                return self._inside(e)
            return self._compare(e.function, self.linear(e.left), self.linear(e.right))
        if isinstance(e, s.Binary) and e.dtype == boolean and e.function in ("and", "or"):
            return _connect(e.function, self.simplify(e.left), self.simplify(e.right))
        if isinstance(e, s.Select):
            condition = self.simplify(e.condition)
            if isinstance(condition, s.Const):
                return self.simplify(e.if_true if condition.value else e.if_false)
            return s.Select(e.dtype, condition, self.simplify(e.if_true), self.simplify(e.if_false))
        return self._inside(e)

    def _compare(self, function: str, left: Linear, right: Linear) -> ScalarExpr:
        low, high = self.bounds(right.plus(left, -1))  # right - left
        certain, impossible = _DECIDE[function]
        if certain(low, high):
            return s.const(True, boolean)
        if impossible(low, high):
            return s.const(False, boolean)
        return s.Binary(boolean, function, left.expression(), right.expression())


def _exact(coefficient: Dim, divisor: Dim) -> Dim | None:
    """Coefficient / divisor when that is exact."""
    if coefficient == 0:
        return 0
    quotient = symbols.floordiv(coefficient, divisor) if divisor != 0 else None
    return quotient if quotient is not None and quotient * divisor == coefficient else None


def _at_least(value: Dim | None, bound: int) -> bool:
    return value is not None and symbols.is_nonnegative(value - bound)


def _at_most(value: Dim | None, bound: int) -> bool:
    return value is not None and symbols.is_nonnegative(bound - value)


# For `left OP right` with d = right - left in [low, high]: when it always holds, when it never does.
_DECIDE = {
    "lt": (lambda low, high: _at_least(low, 1), lambda low, high: _at_most(high, 0)),
    "le": (lambda low, high: _at_least(low, 0), lambda low, high: _at_most(high, -1)),
    "gt": (lambda low, high: _at_most(high, -1), lambda low, high: _at_least(low, 0)),
    "ge": (lambda low, high: _at_most(high, 0), lambda low, high: _at_least(low, 1)),
    "eq": (lambda low, high: low == 0 and high == 0, lambda low, high: _at_least(low, 1) or _at_most(high, -1)),
    "ne": (lambda low, high: _at_least(low, 1) or _at_most(high, -1), lambda low, high: low == 0 and high == 0),
}


def _connect(function: str, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, s.Const):
            neutral = bool(one.value) == (function == "and")
            return other if neutral else one
    return s.Binary(boolean, function, a, b)


def variables(e: ScalarExpr) -> set[str]:
    """Names of all variables in an expression."""
    if isinstance(e, s.Var):
        return {e.name}
    found: set[str] = set()
    for child in s.children(e):
        found |= variables(child)
    return found
