"""Element-wise nodes as epilogues of contraction kernels: their scalar definitions, written as vector IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.llvm.builder import Value as IrValue
from dhc.backends.cpu.llvm.builder import suffix
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node, Value
from dhc.ir.op import Call

_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
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
        written: dict[s.ScalarExpr, IrValue] = {}

        def write(e: s.ScalarExpr) -> IrValue:
            if e not in written:
                written[e] = _write(e, context, value, write)
            return written[e]

        return write(self.expression)


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
    """Whether vector IR can be written for an expression: arithmetic, comparisons, selections, exact functions."""
    if isinstance(e, s.Const):
        return e.dtype == dtype
    if isinstance(e, (s.Var, s.Load)):
        return e.dtype == dtype
    if isinstance(e, s.Unary):
        allowed = (e.function in _INTRINSICS or e.function == "neg") and e.dtype == dtype
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


def _write(
    e: s.ScalarExpr, context: EpilogueContext, value: IrValue, write: Callable[[s.ScalarExpr], IrValue]
) -> IrValue:
    f = context.function
    if isinstance(e, s.Const):
        return f.constant(float(e.value), context.type)  # type: ignore[arg-type]
    if isinstance(e, s.Var):
        return value
    if isinstance(e, s.Load):
        return context.operand(e.operand)
    if isinstance(e, s.Unary):
        operand = write(e.operand)
        if e.function == "neg":
            return f.emit(context.type, f"fneg {context.type} {operand.ref}")
        return f.intrinsic(f"llvm.{_INTRINSICS[e.function]}.{suffix(context.type)}", context.type, [operand])
    if isinstance(e, s.Binary):
        left, right = write(e.left), write(e.right)
        if e.function in _COMPARE:
            return f.compare(_COMPARE[e.function], left, right)
        if e.function in _BINARY:
            return f.binary(_BINARY[e.function], left, right)
        # NaN when either is NaN: the ordered comparison is false for NaN, and the last select restores it.
        ordered = "olt" if e.function == "min" else "ogt"
        chosen = f.select(f.compare(ordered, left, right), left, right)
        return f.select(f.compare("uno", left, left), left, chosen)
    assert isinstance(e, s.Select)
    return f.select(write(e.condition), write(e.if_true), write(e.if_false))


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
