"""The loop-level grammar: kernels of explicit loops over flat, contiguous buffers.

    kernel    ::= Kernel(name, buffers, params, body)          sizes are i64 run-time parameters
    statement ::= For(var, extent, body, parallel)             var runs over 0 .. extent-1
                | Let(name, value)                             an immutable local
                | Declare(name, value) | Assign(targets)       a mutable local; simultaneous assignment
                | Store(buffer, offset, value)
                | If(condition, body, orelse)
                | Check(condition, code)                       the kernel returns `code` unless the condition holds

Values are scalar expressions (`dhc.ir.scalar`) of a small primitive set, in which evaluation is always safe:

* `Load` has exactly one index, the element offset in buffer `operand`; it is in range wherever it stands;
* `div` and `fmod` of integers truncate, their divisor is neither 0 nor (signed) -1 at the type's minimum;
* shift counts are below the width; float-to-integer casts are in range;
* `min`/`max` of floats give NaN when an operand is NaN; no other function of BINARY needs care;
* arithmetic is never in f16 or bf16: these appear only in a `Load` directly under a `Cast` to f32 and as the dtype of
  a `Cast` directly in a `Store`; complex numbers are pairs of their parts, in buffers of twice the length.

A parallel loop splits its range into contiguous chunks, one a thread; a kernel without one runs on the first thread.
A float reduction is marked by `Assign.reorder`: the printer may use several partial results, in an order that depends
on nothing but the sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union

from dhc.ir.dtypes import DType
from dhc.ir.scalar import Binary, Bitcast, Cast, Const, Load, ScalarExpr, Select, Size, Unary, Var, children

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
          "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """A pointer argument.

    Attributes:
        name: ``x0`` … for operands, ``y0`` … for results.
        dtype: element type.
        mode: ``read``, ``write`` or ``both``.
    """

    name: str
    dtype: DType
    mode: str


@dataclass(frozen=True)
class For:
    """A loop of `var` over 0 .. extent-1. `independent`: no iteration reads what another one writes."""

    var: str
    extent: ScalarExpr
    body: tuple[Statement, ...]
    parallel: bool = False
    independent: bool = True


@dataclass(frozen=True)
class Let:
    """An immutable local."""

    name: str
    value: ScalarExpr


@dataclass(frozen=True)
class Declare:
    """A mutable local and its first value."""

    name: str
    value: ScalarExpr


@dataclass(frozen=True)
class Assign:
    """New values of mutable locals, all computed before the first is set."""

    names: tuple[str, ...]
    values: tuple[ScalarExpr, ...]
    reorder: bool = False


@dataclass(frozen=True)
class Store:
    """Writes one element."""

    buffer: int
    offset: ScalarExpr
    value: ScalarExpr


@dataclass(frozen=True)
class If:
    """A branch."""

    condition: ScalarExpr
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Check:
    """Returns `code` from the kernel unless the condition holds."""

    condition: ScalarExpr
    code: int


Statement = Union[For, Let, Declare, Assign, Store, If, Check]


@dataclass(frozen=True)
class Kernel:
    """A kernel; equal structure gives equal `text`, whatever the name and the sizes.

    Attributes:
        name: for humans; not part of the structure.
        buffers: pointer arguments: operands, then results.
        params: names of the i64 run-time sizes, in order.
        body: statements.
    """

    name: str
    buffers: tuple[Buffer, ...]
    params: tuple[str, ...]
    body: tuple[Statement, ...] = field(repr=False)

    @cached_property
    def text(self) -> str:
        """Canonical text, without the name."""
        buffers = ", ".join(f"{b.name}: {b.dtype} {b.mode}" for b in self.buffers)
        lines = [f"kernel({buffers}; {', '.join(self.params)})"]
        for statement in self.body:
            _write(statement, "  ", lines, self)
        return "\n".join(lines) + "\n"

    @cached_property
    def symbol(self) -> str:
        """Name of the function in object code: a hash of the structure."""
        return "dhc_k_" + hashlib.sha256(self.text.encode()).hexdigest()[:24]

    @property
    def is_parallel(self) -> bool:
        """Whether more than one thread has work."""
        return any(isinstance(s, For) and s.parallel for s in walk(self.body))

    def __str__(self) -> str:
        return f"# {self.name}\n{self.text}"


def walk(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """All statements, outermost first."""
    for statement in body:
        yield statement
        if isinstance(statement, For):
            yield from walk(statement.body)
        elif isinstance(statement, If):
            yield from walk(statement.body)
            yield from walk(statement.orelse)


def values_of(statement: Statement) -> tuple[ScalarExpr, ...]:
    """The expressions that a statement itself evaluates."""
    if isinstance(statement, For):
        return (statement.extent,)
    if isinstance(statement, (Let, Declare)):
        return (statement.value,)
    if isinstance(statement, Assign):
        return statement.values
    if isinstance(statement, Store):
        return (statement.offset, statement.value)
    return (statement.condition,)


def loads(e: ScalarExpr) -> Iterator[Load]:
    """All loads in an expression."""
    if isinstance(e, Load):
        yield e
    for child in children(e):
        yield from loads(child)


def _number(e: Const) -> str:
    if e.dtype.kind == "b":
        return "true" if e.value else "false"
    return repr(float(e.value)) if e.dtype.is_float else str(int(e.value))  # type: ignore[arg-type]


def format_expr(e: ScalarExpr, kernel: Kernel | None = None) -> str:
    """Text of a primitive expression."""
    if isinstance(e, Const):
        return _number(e) if e.dtype.name in ("i64", "bool", "f32") else f"{_number(e)}:{e.dtype}"
    if isinstance(e, Var):
        return e.name
    if isinstance(e, Size):
        return f"size({e.dim})"
    if isinstance(e, Load):
        name = kernel.buffers[e.operand].name if kernel else f"b{e.operand}"
        return f"{name}[{', '.join(format_expr(i, kernel) for i in e.index)}]"
    if isinstance(e, Unary):
        return f"{e.function}({format_expr(e.operand, kernel)})"
    if isinstance(e, Binary):
        left, right = format_expr(e.left, kernel), format_expr(e.right, kernel)
        if e.function in _INFIX:
            return f"({left} {_INFIX[e.function]} {right})"
        return f"{e.function}({left}, {right})"
    if isinstance(e, Select):
        return "select({}, {}, {})".format(*(format_expr(c, kernel) for c in (e.condition, e.if_true, e.if_false)))
    if isinstance(e, Cast):
        return f"{e.dtype}({format_expr(e.operand, kernel)})"
    if isinstance(e, Bitcast):
        return f"bits_{e.dtype}({format_expr(e.operand, kernel)})"
    return f"{type(e).__name__.lower()}({', '.join(format_expr(c, kernel) for c in children(e))})"


def _write(statement: Statement, indent: str, lines: list[str], kernel: Kernel) -> None:
    def text(e: ScalarExpr) -> str:
        return format_expr(e, kernel)

    if isinstance(statement, For):
        how = ("parallel " if statement.parallel else "") + ("" if statement.independent else "ordered ")
        lines.append(f"{indent}{how}for {statement.var} in {text(statement.extent)}:")
        for inner in statement.body:
            _write(inner, indent + "  ", lines, kernel)
    elif isinstance(statement, Let):
        lines.append(f"{indent}let {statement.name}: {statement.value.dtype} = {text(statement.value)}")
    elif isinstance(statement, Declare):
        lines.append(f"{indent}var {statement.name}: {statement.value.dtype} = {text(statement.value)}")
    elif isinstance(statement, Assign):
        how = "reorder " if statement.reorder else ""
        names = ", ".join(statement.names)
        lines.append(f"{indent}{how}{names} = {', '.join(text(v) for v in statement.values)}")
    elif isinstance(statement, Store):
        buffer = kernel.buffers[statement.buffer].name
        lines.append(f"{indent}{buffer}[{text(statement.offset)}] = {text(statement.value)}")
    elif isinstance(statement, If):
        lines.append(f"{indent}if {text(statement.condition)}:")
        for inner in statement.body:
            _write(inner, indent + "  ", lines, kernel)
        if statement.orelse:
            lines.append(f"{indent}else:")
            for inner in statement.orelse:
                _write(inner, indent + "  ", lines, kernel)
    else:
        lines.append(f"{indent}check {text(statement.condition)} or return {statement.code}")
