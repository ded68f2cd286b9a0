"""Prints kernels as Python that Numba compiles: the form that people read, and that CUDA shares.

The text is one function over 1-D arrays and sizes. Names such as `f32(x)` (conversion), `bits_i32(x)` (the same bits),
`div` and `rem` (truncating), `low` and `high` (minimum and maximum with NaN) come from a prelude, which every device
supplies. Numba computes integers in 64 bits: results are converted back where a type is narrower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dhc_runtime.errors import CompileError

from dhc.backends.loop.functions import LIBRARY
from dhc.backends.loop.half import expand_half
from dhc.backends.loop.ir import Assign, Check, Declare, For, If, Kernel, Let, Statement, Store
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType
from dhc.ir.scalar import ScalarExpr


@dataclass(frozen=True)
class Dialect:
    """What differs between printers of Python-like kernels.

    Attributes:
        infix: symbols of the binary functions that are written between their operands.
        calls: names of the functions that are called, unary and binary.
        share: text of the range of a parallel loop, with ``{extent}``.
        numbers: arguments after the sizes.
    """

    infix: Mapping[str, str] = field(default_factory=lambda: {
        "add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
        "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    })  # fmt: skip
    calls: Mapping[str, str] = field(default_factory=lambda: {
        "min": "low", "max": "high", "pow": "math.pow", "fmod": "math.fmod", "abs": "fabs", "sqrt": "sqrt",
        "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint",
        **{name: f"math.{name}" for name in sorted(LIBRARY)},
    })  # fmt: skip
    share: str = "range(first({extent}, {grain}, tid, nthreads), last({extent}, {grain}, tid, nthreads))"
    numbers: tuple[str, ...] = ("tid", "nthreads")


CPU = Dialect()


def print_numba(kernel: Kernel, dialect: Dialect = CPU) -> str:
    """Python source of a kernel: a function of its buffers (1-D arrays), its sizes, the thread's number and count."""
    return _Printer(expand_half(kernel), dialect).text()


def function_name(kernel: Kernel) -> str:
    """A Python name made of the kernel's own."""
    name = re.sub(r"\W", "_", kernel.name) or "kernel"
    return f"k_{name}" if name[0].isdigit() else name


class _Printer:
    def __init__(self, kernel: Kernel, dialect: Dialect) -> None:
        self._kernel = kernel
        self._dialect = dialect
        self._lines: list[str] = []

    def text(self) -> str:
        kernel = self._kernel
        arguments = [*(b.name for b in kernel.buffers), *kernel.params, *self._dialect.numbers]
        self._lines = [f"def {function_name(kernel)}({', '.join(arguments)}):"]
        kinds = ", ".join(f"{b.name} {b.dtype}" for b in kernel.buffers)
        self._lines.append(f'    """Buffers: {kinds}."""')
        if not kernel.is_parallel and "tid" in self._dialect.numbers:
            self._lines += ["    if tid != 0:", "        return 0"]
        self._body(kernel.body, "    ")
        self._lines.append("    return 0")
        return "\n".join(self._lines) + "\n"

    def _body(self, body: Sequence[Statement], indent: str) -> None:
        for statement in body:
            self._statement(statement, indent)
        if not body:
            self._lines.append(f"{indent}pass")

    def _statement(self, statement: Statement, indent: str) -> None:
        if isinstance(statement, For):
            extent = self._expr(statement.extent)
            fine = not any(isinstance(x, For) for x in statement.body)
            span = f"range({extent})"
            if statement.parallel:
                span = self._dialect.share.format(extent=extent, grain=64 if fine else 1)
            self._lines.append(f"{indent}for {statement.var} in {span}:")
            self._body(statement.body, indent + "    ")
        elif isinstance(statement, (Let, Declare)):
            self._lines.append(f"{indent}{statement.name} = {self._expr(statement.value)}")
        elif isinstance(statement, Assign):
            values = ", ".join(self._expr(v) for v in statement.values)
            self._lines.append(f"{indent}{', '.join(statement.names)} = {values}")
        elif isinstance(statement, Store):
            buffer = self._kernel.buffers[statement.buffer].name
            self._lines.append(f"{indent}{buffer}[{self._expr(statement.offset)}] = {self._expr(statement.value)}")
        elif isinstance(statement, If):
            self._lines.append(f"{indent}if {self._expr(statement.condition)}:")
            self._body(statement.body, indent + "    ")
            if statement.orelse:
                self._lines.append(f"{indent}else:")
                self._body(statement.orelse, indent + "    ")
        else:
            assert isinstance(statement, Check)
            condition = self._expr(statement.condition)
            self._lines += [f"{indent}if not {condition}:", f"{indent}    return {statement.code}"]

    def _expr(self, e: ScalarExpr) -> str:
        if isinstance(e, s.Const):
            return _literal(e)
        if isinstance(e, s.Var):
            return e.name
        if isinstance(e, s.Load):
            return f"{self._kernel.buffers[e.operand].name}[{self._expr(e.index[0])}]"
        if isinstance(e, s.Unary):
            x = self._expr(e.operand)
            if e.function == "neg":
                return _narrow(f"(-{x})", e.dtype)
            return f"{self._dialect.calls[e.function]}({x})"
        if isinstance(e, s.Binary):
            return self._binary(e)
        if isinstance(e, s.Select):
            condition, yes, no = (self._expr(c) for c in (e.condition, e.if_true, e.if_false))
            return f"({yes} if {condition} else {no})"
        if isinstance(e, s.Cast):
            x = self._expr(e.operand)
            return f"({x} != 0)" if e.dtype.kind == "b" else f"{e.dtype}({x})"
        if isinstance(e, s.Bitcast):
            return f"bits_{e.dtype}({self._expr(e.operand)})"
        raise CompileError(f"the Numba printer has no form of {type(e).__name__}")

    def _binary(self, e: s.Binary) -> str:
        left, right = self._expr(e.left), self._expr(e.right)
        if e.left.dtype.is_integer and e.function in ("div", "fmod"):
            return _narrow(f"{'div' if e.function == 'div' else 'rem'}({left}, {right})", e.dtype)
        if e.function in self._dialect.infix:
            return _narrow(f"({left} {self._dialect.infix[e.function]} {right})", e.dtype)
        return f"{self._dialect.calls[e.function]}({left}, {right})"


def _narrow(text: str, dtype: DType) -> str:
    """Integer arithmetic of Numba gives 64 bits."""
    return f"{dtype}({text})" if dtype.is_integer and dtype.name != "i64" else text


def _literal(e: s.Const) -> str:
    if e.dtype.kind == "b":
        return "True" if e.value else "False"
    if e.dtype.is_integer:
        return str(int(e.value)) if e.dtype.name == "i64" else f"{e.dtype}({int(e.value)})"  # type: ignore[arg-type]
    value = float(e.value)  # type: ignore[arg-type]
    text = repr(value)
    if not math.isfinite(value):
        text = "math.nan" if value != value else "math.inf" if value > 0 else "(-math.inf)"
    return text if e.dtype.name == "f64" else f"{e.dtype}({text})"
