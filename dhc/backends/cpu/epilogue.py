"""Element-wise nodes as epilogues of contraction kernels: their scalar definitions, written as vector IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.llvm.builder import Value as IrValue
from dhc.backends.cpu.llvm.builder import suffix
from dhc.backends.loop.elementary import EXPANSIONS
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, f32
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node, Value
from dhc.ir.op import Call

_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_INTEGER = {"add": "add", "sub": "sub", "and": "and", "or": "or", "shl": "shl", "shr": "ashr"}
_INTRINSICS = {"sqrt": "sqrt", "abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}


@dataclass(frozen=True)
class ScalarEpilogue(Epilogue):
    """An expression of the sum (``Var("sum")``) and further operands (``Load(i, ())``).

    Attributes:
        expression: the result.
        shapes: how operand i lies (see `Epilogue`).
    """

    expression: s.ScalarExpr
    shapes: tuple[str, ...] = ()

    def operands(self) -> tuple[str, ...]:
        """The shapes of the operands."""
        return self.shapes

    def text(self) -> str:
        """Canonical text: the expression tree."""
        return f"{_text(self.expression)}|{','.join(self.shapes)}"

    def emit(self, context: EpilogueContext, value: IrValue) -> IrValue:
        """Writes the expression over one vector of sums."""
        return _VectorWriter(context, {"sum": value}).write(self.expression)


def _text(e: s.ScalarExpr) -> str:
    if isinstance(e, s.Const):
        return float(e.value).hex()  # type: ignore[arg-type]
    if isinstance(e, s.Var):
        return e.name
    if isinstance(e, s.Load):
        return f"x{e.operand}"
    name = e.function if isinstance(e, (s.Unary, s.Binary)) else type(e).__name__.lower()
    return f"{name}({','.join(_text(c) for c in s.children(e))})"


def is_writable(e: s.ScalarExpr, dtype: DType) -> bool:
    """Whether vector IR can be written: arithmetic, comparisons, selections, exp and its relatives."""
    if isinstance(e, s.Const):
        return e.dtype == dtype
    if isinstance(e, (s.Var, s.Load)):
        return e.dtype == dtype
    if isinstance(e, s.Unary):
        known = e.function in _INTRINSICS or e.function == "neg" or (e.function in EXPANSIONS and dtype == f32)
        allowed = known and e.dtype == dtype
    elif isinstance(e, s.Binary):
        if e.function in _COMPARE:
            allowed = e.left.dtype == dtype
        else:
            allowed = (e.function in _BINARY or e.function in ("min", "max")) and e.dtype == dtype
    elif isinstance(e, s.Select):
        allowed = e.dtype == dtype
    else:
        return False
    return allowed and all(is_writable(c, dtype) for c in s.children(e))


class _VectorWriter:
    """Writes scalar expressions as vector IR; functions without an instruction expand to polynomials."""

    def __init__(self, context: EpilogueContext, names: dict[str, IrValue]) -> None:
        self._context = context
        self._names = names
        self._written: dict[s.ScalarExpr, IrValue] = {}

    def write(self, e: s.ScalarExpr) -> IrValue:
        """The vector of an expression; equal subexpressions are written once."""
        if isinstance(e, s.Var):
            return self._names[e.name]
        if e not in self._written:
            self._written[e] = self._write(e)
        return self._written[e]

    def _let(self, e: s.ScalarExpr) -> s.ScalarExpr:
        """Writes a value now and gives it a name, so that expansions stay small."""
        value = self.write(e)  # first: it may give names of its own, and no name may mean two values
        name = f"t{len(self._names)}"
        self._names[name] = value
        return s.Var(name, e.dtype)

    def _type(self, dtype: DType) -> str:
        element = {"f32": "float", "f64": "double", "i32": "i32", "bool": "i1"}[dtype.name]
        return f"<{self._context.lanes} x {element}>"

    def _literal(self, e: s.Const) -> IrValue:
        f, kind = self._context.function, self._type(e.dtype)
        if e.dtype.is_float:
            return f.constant(float(e.value), kind)  # type: ignore[arg-type]
        element = kind[1:-1].split(" x ")[1]
        number = int(e.value)  # type: ignore[arg-type]
        return IrValue(f, kind, "<" + ", ".join([f"{element} {number}"] * self._context.lanes) + ">")

    def _write(self, e: s.ScalarExpr) -> IrValue:
        f = self._context.function
        if isinstance(e, s.Const):
            return self._literal(e)
        if isinstance(e, s.Load):
            return self._context.operand(e.operand)
        if isinstance(e, s.Unary):
            return self._unary(e)
        if isinstance(e, s.Binary):
            return self._binary(e)
        if isinstance(e, s.Select):
            return f.select(self.write(e.condition), self.write(e.if_true), self.write(e.if_false))
        (operand,) = (self.write(c) for c in s.children(e))
        verb = "bitcast" if isinstance(e, s.Bitcast) else "sitofp"
        return f.emit(self._type(e.dtype), f"{verb} {operand.type} {operand.ref} to {self._type(e.dtype)}")

    def _unary(self, e: s.Unary) -> IrValue:
        f = self._context.function
        if e.function in EXPANSIONS:
            return self.write(EXPANSIONS[e.function](self._let(e.operand), self._let))
        operand = self.write(e.operand)
        if e.function == "neg":
            return f.emit(operand.type, f"fneg {operand.type} {operand.ref}")
        return f.intrinsic(f"llvm.{_INTRINSICS[e.function]}.{suffix(operand.type)}", operand.type, [operand])

    def _binary(self, e: s.Binary) -> IrValue:
        f = self._context.function
        left, right = self.write(e.left), self.write(e.right)
        if e.function in _COMPARE:
            return f.compare(_COMPARE[e.function], left, right)
        if not e.dtype.is_float:
            return f.binary(_INTEGER[e.function], left, right)
        if e.function in _BINARY:
            return f.binary(_BINARY[e.function], left, right)
        # NaN when either is NaN: the ordered comparison is false for NaN, and the last select restores it.
        ordered = "olt" if e.function == "min" else "ogt"
        chosen = f.select(f.compare(ordered, left, right), left, right)
        return f.select(f.compare("uno", left, left), left, chosen)


@dataclass(frozen=True)
class PlannedEpilogue:
    """Nodes that a contraction's epilogue covers.

    Attributes:
        epilogue: what the kernel emits; None when it covers no node.
        operands: values of the extra operands, in order.
        result: the value that the kernel writes.
        rest: nodes after it that need a kernel of their own.
    """

    epilogue: Epilogue | None
    operands: tuple[Value, ...]
    result: Value
    rest: tuple[Node, ...]


def plan_epilogue(contraction: Node, tail: Sequence[Node], row_axis: int | None) -> PlannedEpilogue:
    """Takes as many nodes of the tail into the epilogue as vector IR can be written for.

    Args:
        contraction: the contraction.
        tail: the element-wise nodes after it, in order; scalar constants among them.
        row_axis: axis of the result whose vectors are ``row`` operands (channels), None when there is none.
    """
    dtype = contraction.result.dtype
    expressions: dict[Value, s.ScalarExpr] = {contraction.result: s.Var("sum", dtype)}
    operands: list[Value] = []
    shapes: list[str] = []
    covered = contraction.result
    best: tuple[Any, ...] = (None, (), (), covered, 0)
    for position, node in enumerate(tail):
        if node.op.name == "constant":
            array = node.attrs["value"]
            if as_dtype(array.dtype) == dtype and array.size == 1:
                expressions[node.result] = s.const(float(array.reshape(-1)[0]), dtype)
            continue
        scalars: list[s.ScalarExpr] = []
        for value in node.operands:
            if value not in expressions:
                shape = _operand_shape(value, contraction.result, row_axis)
                if shape is None or value.dtype != dtype:
                    break
                expressions[value] = s.Load(dtype, len(operands), ())
                operands.append(value)
                shapes.append(shape)
            scalars.append(expressions[value])
        if len(scalars) != len(node.operands) or node.result.dtype != dtype:
            break
        expression = node.op.kind.expr(Call.of(node), *scalars)  # type: ignore[union-attr]
        if not is_writable(expression, dtype) or _size(expression) > 64:
            break
        expressions[node.result] = expression
        covered = node.result
        best = (expression, tuple(operands), tuple(shapes), covered, position + 1)
    expression, used, used_shapes, covered, count = best
    epilogue = None if expression is None else ScalarEpilogue(expression, used_shapes)
    return PlannedEpilogue(epilogue, used, covered, tuple(tail[count:]))


def _size(e: s.ScalarExpr) -> int:
    return 1 + sum(_size(c) for c in s.children(e))


def _operand_shape(value: Value, result: Value, row_axis: int | None) -> str | None:
    """How an operand lies against the result: `same`, `row`, `column` is left to plain kernels, or `scalar`."""
    if value.shape == result.shape:
        return "same"
    if value.type.numel == 1:
        return "scalar"
    if row_axis is None:
        return None
    padded = (1,) * (result.type.rank - value.type.rank) + tuple(value.shape)
    if all(d == 1 for i, d in enumerate(padded) if i != row_axis) and padded[row_axis] == result.shape[row_axis]:
        return "row"
    return None
