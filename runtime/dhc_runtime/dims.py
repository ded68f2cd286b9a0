"""Dim expressions: sizes written as JSON, evaluated and solved at run time; never executed as code.

An expression is an integer, the name of a symbol, or a list ``[op, a, b, ...]`` with ``op`` one of

=============  ==========================================================
``+ * max min``  two or more operands
``-``            ``a - b``
``//``  ``%``    floor division and its remainder
``ceil/``        division rounded up
``select>``      ``[c, a, b]``: ``a`` if ``c > 0`` else ``b``
=============  ==========================================================
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

from dhc_runtime.errors import ArtifactError, ModelError

__all__ = [
    "Expr",
    "bind_shapes",
    "bindable",
    "check_expression",
    "evaluate",
    "evaluate_shape",
    "format_expression",
    "format_shape",
    "solve",
    "symbols_of",
]

Expr = Union[int, str, List[Any]]

_LIMIT = 1 << 62
_MAX_DEPTH = 64
_MAX_TERMS = 4096
_VARIADIC = frozenset(("+", "*", "max", "min"))
_BINARY = frozenset(("-", "//", "%", "ceil/"))


def check_expression(expr: Any, where: str) -> Expr:
    """Returns ``expr`` if it is a well-formed dim expression.

    Raises:
        ArtifactError: it is not, or it is too deep or too long.
    """
    budget = [_MAX_TERMS]

    def visit(node: Any, depth: int) -> None:
        budget[0] -= 1
        if depth > _MAX_DEPTH or budget[0] < 0:
            raise ArtifactError("A size expression is too long", where)
        if isinstance(node, bool) or not isinstance(node, (int, str, list)):
            raise ArtifactError("{!r} is not a size expression".format(node), where)
        if isinstance(node, int):
            if abs(node) >= _LIMIT:
                raise ArtifactError("A size of {} is out of range".format(node), where)
        elif isinstance(node, str):
            if not node or len(node) > 256:
                raise ArtifactError("A symbol needs a name of 1 to 256 characters", where)
        else:
            operator = node[0] if node else None
            count = len(node) - 1
            good = (isinstance(operator, str)) and (
                (operator in _VARIADIC and count >= 2)
                or (operator in _BINARY and count == 2)
                or (operator == "select>" and count == 3)
            )
            if not good:
                raise ArtifactError("{!r} with {} operands is not an operation on sizes".format(operator, count), where)
            for operand in node[1:]:
                visit(operand, depth + 1)

    visit(expr, 0)
    result: Expr = expr
    return result


def symbols_of(expr: Expr) -> FrozenSet[str]:
    """The names of the symbols in a (checked) expression."""
    if isinstance(expr, str):
        return frozenset((expr,))
    if isinstance(expr, int):
        return frozenset()
    return frozenset().union(*(symbols_of(operand) for operand in expr[1:]))


def evaluate(expr: Expr, symbols: Mapping[str, int]) -> int:
    """The value of a (checked) expression.

    Raises:
        ArtifactError: a symbol has no value.
        ModelError: division by zero, or the result is out of the range of sizes.
    """
    if isinstance(expr, int):
        return expr
    if isinstance(expr, str):
        try:
            return symbols[expr]
        except KeyError:
            raise ArtifactError("The size {!r} is not known here".format(expr)) from None
    operator = expr[0]
    if operator == "select>":
        return evaluate(expr[2], symbols) if evaluate(expr[1], symbols) > 0 else evaluate(expr[3], symbols)
    values = [evaluate(operand, symbols) for operand in expr[1:]]
    result = values[0]
    if operator == "+":
        result = sum(values)
    elif operator == "*":
        for value in values[1:]:
            result *= value
    elif operator == "-":
        result -= values[1]
    elif operator == "max":
        result = max(values)
    elif operator == "min":
        result = min(values)
    else:
        divisor = values[1]
        if divisor == 0:
            raise ModelError("The size {} divides by zero".format(format_expression(expr)))
        if operator == "//":
            result //= divisor
        elif operator == "%":
            result %= divisor
        else:
            result = -(-result // divisor)
    if not -_LIMIT < result < _LIMIT:
        raise ModelError("The size {} is out of range".format(format_expression(expr)))
    return result


def evaluate_shape(shape: Sequence[Expr], symbols: Mapping[str, int]) -> Tuple[int, ...]:
    """The values of all dims of a shape."""
    return tuple([dim if type(dim) is int else evaluate(dim, symbols) for dim in shape])


def format_expression(expr: Expr) -> str:
    """An expression as people write it: ``['*', 'N', 2]`` is ``N*2``."""
    if not isinstance(expr, list):
        return str(expr)
    operator: str = expr[0]
    operands = [format_expression(operand) for operand in expr[1:]]
    if operator in ("max", "min"):
        return "{}({})".format(operator, ", ".join(operands))
    if operator == "ceil/":
        return "ceil({}/{})".format(*operands)
    if operator == "select>":
        return "({1} if {0} > 0 else {2})".format(*operands)
    wrapped = [
        "({})".format(text)
        if isinstance(operand, list) and operand[0] not in ("max", "min", "ceil/", "select>")
        else text
        for operand, text in zip(expr[1:], operands)
    ]
    return operator.join(wrapped)


def format_shape(shape: Sequence[Expr]) -> str:
    """A shape as people write it: ``[N, 3, 2*H]``."""
    return "[{}]".format(", ".join(format_expression(dim) for dim in shape))


def _linear(expr: Expr, symbols: Mapping[str, int], unknown: str) -> Optional[Tuple[int, int]]:
    """``(a, b)`` with ``expr == a * unknown + b``, or None where the expression is not linear in the unknown."""
    if isinstance(expr, int):
        return 0, expr
    if isinstance(expr, str):
        return (1, 0) if expr == unknown else (0, evaluate(expr, symbols))
    if unknown not in symbols_of(expr):
        return 0, evaluate(expr, symbols)
    operator = expr[0]
    if operator not in ("+", "-", "*"):
        return None
    terms = []
    for operand in expr[1:]:
        term = _linear(operand, symbols, unknown)
        if term is None:
            return None
        terms.append(term)
    if operator == "+":
        return sum(term[0] for term in terms), sum(term[1] for term in terms)
    if operator == "-":
        return terms[0][0] - terms[1][0], terms[0][1] - terms[1][1]
    slope, base = terms[0]
    for other_slope, other_base in terms[1:]:
        if slope and other_slope:
            return None
        slope, base = slope * other_base + other_slope * base, base * other_base
    return slope, base


def solve(expr: Expr, value: int, symbols: Mapping[str, int]) -> Optional[Tuple[str, int]]:
    """Solves ``expr == value`` for its only unbound symbol.

    Returns:
        The symbol and its value, or None where the expression has not exactly one unbound symbol, is not linear in it,
        or has no solution in integers >= 0.
    """
    unknown = sorted(symbols_of(expr) - set(symbols))
    if len(unknown) != 1:
        return None
    form = _linear(expr, symbols, unknown[0])
    if form is None or form[0] == 0:
        return None
    quotient, remainder = divmod(value - form[1], form[0])
    return (unknown[0], quotient) if remainder == 0 and quotient >= 0 else None


def bindable(shapes: Sequence[Sequence[Expr]], known: FrozenSet[str] = frozenset()) -> FrozenSet[str]:
    """The symbols that the sizes of inputs of these symbolic shapes determine, together with those already ``known``.

    It follows the order in which `bind_shapes` solves, without values: every known symbol stands for 1.
    """
    values: Dict[str, int] = dict.fromkeys(known, 1)
    pending = [dim for shape in shapes for dim in shape if not isinstance(dim, int)]
    progress = True
    while progress:
        progress = False
        for dim in pending:
            unknown = symbols_of(dim) - set(values)
            if len(unknown) == 1:
                name = next(iter(unknown))
                if isinstance(dim, str) or _is_linear(dim, name):
                    values[name] = 1
                    progress = True
    return frozenset(values)


def _is_linear(expr: Expr, unknown: str) -> bool:
    if unknown not in symbols_of(expr) or isinstance(expr, str):
        return True
    if isinstance(expr, int) or expr[0] not in ("+", "-", "*"):
        return isinstance(expr, int)
    if expr[0] == "*" and sum(unknown in symbols_of(operand) for operand in expr[1:]) > 1:
        return False
    return all(_is_linear(operand, unknown) for operand in expr[1:])


def bind_shapes(
    names: Sequence[str],
    shapes: Sequence[Sequence[Expr]],
    actual: Sequence[Tuple[int, ...]],
    symbols: Dict[str, int],
) -> List[str]:
    """Binds symbols from the actual shapes of inputs, and checks all dims; extends ``symbols`` in place.

    A dim that is a bare symbol binds it (the first one seen counts, later ones must agree); a compound dim is solved
    when it is linear in one unbound symbol and checked otherwise.

    Returns:
        One line for each input that does not fit; empty when all fit.
    """
    problems: List[str] = []
    origin: Dict[str, str] = {}
    pending: List[Tuple[int, int]] = []
    misfit = set()
    for index, (shape, got) in enumerate(zip(shapes, actual)):
        if len(shape) != len(got):
            misfit.add(index)
            problems.append(
                "input {!r}: expected {} dimensions {}, got {} dimensions {}".format(
                    names[index], len(shape), format_shape(shape), len(got), list(got)
                )
            )
            continue
        for axis, dim in enumerate(shape):
            if type(dim) is int:
                if dim != got[axis]:
                    misfit.add(index)
            elif type(dim) is str:
                if dim not in symbols:
                    symbols[dim] = got[axis]
                    origin[dim] = "{!r} axis {}".format(names[index], axis)
            else:
                pending.append((index, axis))
    progress = bool(pending)
    while progress:
        progress = False
        for index, axis in pending:
            solution = solve(shapes[index][axis], actual[index][axis], symbols)
            if solution is not None:
                symbols[solution[0]] = solution[1]
                origin[solution[0]] = "{!r} axis {}".format(names[index], axis)
                progress = True
    for index, (shape, got) in enumerate(zip(shapes, actual)):
        if len(shape) != len(got):
            continue
        notes = []
        for axis, dim in enumerate(shape):
            if type(dim) is int:
                if dim != got[axis]:
                    notes.append("axis {} must be {}, is {}".format(axis, dim, got[axis]))
                continue
            missing = symbols_of(dim) - set(symbols)
            text = format_expression(dim)
            if missing:
                notes.append(
                    "axis {} must be {}, is {}, which no value of {} gives".format(
                        axis, text, got[axis], ", ".join(sorted(missing))
                    )
                )
                continue
            expected = evaluate(dim, symbols)
            if expected != got[axis]:
                used = [
                    "{} = {}{}".format(s, symbols[s], " from " + origin[s] if s in origin else "")
                    for s in sorted(symbols_of(dim))
                ]
                notes.append(
                    "axis {} must be {} = {} ({}), is {}".format(axis, text, expected, ", ".join(used), got[axis])
                )
        if notes:
            problems.append(
                "input {!r}: expected shape {}, got {}: {}".format(
                    names[index], format_shape(shape), list(got), "; ".join(notes)
                )
            )
    return problems
