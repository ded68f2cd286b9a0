"""Symbolic sizes as ONNX nodes: every symbol is read from a shape or a tensor, expressions become int64 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.ir import symbols
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import TensorType

if TYPE_CHECKING:
    from dhc.frontend.onnx.export.writer import GraphWriter


@dataclass(frozen=True)
class Source:
    """Where a size can be read.

    Attributes:
        name: ONNX name of a value.
        position: the axis of its shape, or the element of it.
        element: the size is an element of the (int64) value itself.
        offset: what to subtract from the number read (for inputs of shape ``2*N+1``).
        divisor: what to divide by after that.
    """

    name: str
    position: int
    element: bool = False
    offset: int = 0
    divisor: int = 1


def is_symbol(dim: Dim) -> str | None:
    """The symbol that a dim is, None when it is anything else."""
    names = symbols.free_symbols(dim)
    return names[0] if len(names) == 1 and dim == symbols.sym(names[0]) else None


def input_sources(w: GraphWriter) -> dict[str, Source]:
    """Sources of the symbols of a graph's inputs; plain ones first, then those of linear expressions."""
    found: dict[str, Source] = {}
    axes = [
        (w.values[v], axis, dim)
        for v in w.graph.inputs
        if isinstance(v.type, TensorType)
        for axis, dim in enumerate(v.type.shape)
    ]
    for name, axis, dim in axes:
        symbol = is_symbol(dim)
        if symbol is not None:
            found.setdefault(symbol, Source(name, axis))
    for name, axis, dim in axes:
        names = symbols.free_symbols(dim)
        if len(names) != 1 or names[0] in found:
            continue
        at0, at1, at2 = (symbols.evaluate(dim, {names[0]: n}) for n in range(3))
        if at1 > at0 and at2 - at1 == at1 - at0:
            found[names[0]] = Source(name, axis, offset=at0, divisor=at1 - at0)
    return found


def write_dim(w: GraphWriter, dim: Dim) -> str:
    """A size as an int64 vector of one element.

    Raises:
        UnsupportedError: it cannot be told from the inputs.
    """
    if not isinstance(dim, SymExpr):
        return w.ints(int(dim))
    known = w.find_dim(dim)
    if known is not None:
        return known
    symbol = is_symbol(dim)
    made = _read(w, symbol) if symbol is not None else _sum(w, dim)
    w.dims[dim] = made
    w.pinned.add(made)
    return made


def _read(w: GraphWriter, symbol: str) -> str:
    source = w.find_source(symbol)
    if source is None:
        w.unsupported(f"the size {symbol!r} cannot be read from any value")
    if source.element:
        position = w.ints(source.position)
        read = w.node("Gather", [source.name, position], axis=0, hint=f"size_{symbol}")
    else:
        bounds = {"start": source.position, "end": source.position + 1}
        read = w.node("Shape", [source.name], hint=f"size_{symbol}", **bounds)
    if source.offset:
        read = w.node("Sub", [read, w.ints(source.offset)])
    if source.divisor != 1:
        read = w.node("Div", [read, w.ints(source.divisor)])
    return str(read)


def _sum(w: GraphWriter, dim: SymExpr) -> str:
    """A polynomial: products added up."""
    total: Any = None
    for monomial, coefficient in dim.terms:
        factors = [_atom(w, atom) for atom, power in monomial for _ in range(power)]
        if abs(coefficient) != 1 or not factors:
            factors.append(w.ints(abs(coefficient)))
        term = factors[0]
        for factor in factors[1:]:
            term = w.node("Mul", [term, factor])
        if total is None:
            total = term if coefficient > 0 else w.node("Neg", [term])
        else:
            total = w.node("Add" if coefficient > 0 else "Sub", [total, term])
    return str(total)


def _atom(w: GraphWriter, atom: Any) -> str:
    if isinstance(atom, str):
        return write_dim(w, symbols.sym(atom))
    name, *operands = atom
    key: Dim = SymExpr({((atom, 1),): 1})
    known = w.find_dim(key)
    if known is not None:
        return known
    if name == "ceildiv":  # rounded up: the negated floor of the negated
        made = w.node("Neg", [_floor(w, -operands[0], operands[1])])
    elif name == "floordiv":
        made = _floor(w, operands[0], operands[1])
    else:
        parts = [write_dim(w, o) for o in operands]
        if name == "select":
            made = w.node("Where", [w.node("Greater", [parts[0], w.ints(0)]), *parts[1:]])
        else:
            made = w.node({"max": "Max", "min": "Min", "mod": "Mod"}[name], parts)
    w.dims[key] = made
    w.pinned.add(made)
    return str(made)


def _floor(w: GraphWriter, a: Dim, b: Dim) -> str:
    """Division rounded down; Div truncates and Mod has the divisor's sign, so the remainder goes first."""
    left, right = write_dim(w, a), write_dim(w, b)
    if not symbols.is_nonnegative(a):
        left = w.node("Sub", [left, w.node("Mod", [left, right])])
    return str(w.node("Div", [left, right]))
