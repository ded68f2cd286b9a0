"""Einsum of any number of operands, by transpositions, products and sums."""

from __future__ import annotations

from collections.abc import Sequence

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim


@onnx_op("Einsum")
def einsum(n: NodeContext) -> Value:
    """NumPy's einsum: letters that the result lacks are summed."""
    values = n.values()
    terms, result = _parsed(n, n.require_attr("equation").replace(" ", ""), values)
    items = [_diagonal(n, value, term) for value, term in zip(values, terms)]
    while len(items) > 1:
        later = set(result).union(*(term for _, term in items[2:]))
        items[:2] = [_product(n, items[0], items[1], later)]
    value, term = items[0]
    value, term = _summed(n, value, term, set(result))
    if set(result) != set(term) or len(set(result)) != len(result):
        n.invalid(f"the result {''.join(result)!r} names axes that no operand has, or repeats them")
    perm = [term.index(letter) for letter in result]
    return value if perm == list(range(len(perm))) else n.b.transpose(value, perm=perm)


def _parsed(n: NodeContext, equation: str, values: Sequence[Value]) -> tuple[list[list[str]], list[str]]:
    """Letters of the operands and of the result; an ellipsis becomes letters of its own, ``.0`` for the last axis."""
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(values):
        n.invalid(f"equation {equation!r} does not fit {len(values)} operands")
    terms = [_letters(n, part, value.type.rank) for part, value in zip(parts, values)]
    broadcast = max((sum(1 for letter in t if letter[0] == ".") for t in terms), default=0)
    hidden = [f".{axis}" for axis in range(broadcast)][::-1]
    if arrow:
        before, dots, after = right.partition("...")
        return terms, [*before, *(hidden if dots else []), *after]
    counted = [letter for t in terms for letter in t if letter[0] != "."]
    return terms, [*hidden, *sorted(letter for letter in set(counted) if counted.count(letter) == 1)]


def _letters(n: NodeContext, part: str, rank: int) -> list[str]:
    before, dots, after = part.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots) or not (before + after).isalpha() and before + after:
        n.invalid(f"term {part!r} does not fit an operand of rank {rank}")
    return [*before, *(f".{axis}" for axis in reversed(range(hidden))), *after]


def _diagonal(n: NodeContext, value: Value, term: list[str]) -> tuple[Value, list[str]]:
    """Takes the diagonal where a letter repeats within an operand: what is not on it is zeroed, then summed."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            size = value.shape[first]
            columns = [
                n.b.reshape(
                    n.b.iota(shape=(size,), axis=0),
                    shape=tuple(size if i == axis else 1 for i in range(value.type.rank)),
                )
                for axis in (first, second)
            ]
            kept = n.b.where(n.b.eq(*columns), value, n.b.like(0, value))
            value = n.b.reduce_sum(kept, axes=[second])
            term = [t for i, t in enumerate(term) if i != second]
    return value, term


def _summed(n: NodeContext, value: Value, term: list[str], needed: set[str]) -> tuple[Value, list[str]]:
    axes = [axis for axis, letter in enumerate(term) if letter not in needed]
    if not axes:
        return value, term
    return n.b.reduce_sum(value, axes=axes), [letter for letter in term if letter in needed]


def _product(
    n: NodeContext, left: tuple[Value, list[str]], right: tuple[Value, list[str]], later: set[str]
) -> tuple[Value, list[str]]:
    """Two operands as one batched matrix product."""
    (a, a_term), (b, b_term) = left, right
    a, a_term = _summed(n, a, a_term, later | set(b_term))
    b, b_term = _summed(n, b, b_term, later | set(a_term))
    shared = [letter for letter in a_term if letter in b_term]
    batch = [letter for letter in shared if letter in later]
    inner = [letter for letter in shared if letter not in later]
    rows = [letter for letter in a_term if letter not in shared]
    columns = [letter for letter in b_term if letter not in shared]
    sizes: dict[str, Dim] = {}
    for term, value in ((a_term, a), (b_term, b)):
        for letter, size in zip(term, value.shape):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]

    def arranged(value: Value, term: list[str], groups: tuple[list[str], list[str]]) -> Value:
        order = [*batch, *groups[0], *groups[1]]
        value = n.b.transpose(value, perm=[term.index(letter) for letter in order])
        if value.shape != tuple(sizes[letter] for letter in order):  # axes of size 1 that broadcast
            value = n.b.broadcast_to(value, shape=tuple(sizes[letter] for letter in order))
        merged = [symbols.product(sizes[letter] for letter in group) for group in groups]
        return n.b.reshape(value, shape=(*(sizes[letter] for letter in batch), *merged))

    product = n.b.matmul(arranged(a, a_term, (rows, inner)), arranged(b, b_term, (inner, columns)))
    term = [*batch, *rows, *columns]
    return n.b.reshape(product, shape=tuple(sizes[letter] for letter in term)), term
