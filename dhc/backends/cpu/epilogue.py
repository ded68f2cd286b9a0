"""Element-wise nodes as epilogues of contraction kernels: their scalar definitions, written as vector IR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.llvm.builder import Value as IrValue
from dhc.backends.cpu.vector_writer import VectorWriter, is_writable
from dhc.ir import scalar as s
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node, Value
from dhc.ir.op import Call


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
        return VectorWriter(context, {"sum": value}).write(self.expression)


def _text(e: s.ScalarExpr) -> str:
    if isinstance(e, s.Const):
        return float(e.value).hex()  # type: ignore[arg-type]
    if isinstance(e, s.Var):
        return e.name
    if isinstance(e, s.Load):
        return f"x{e.operand}"
    name = e.function if isinstance(e, (s.Unary, s.Binary)) else type(e).__name__.lower()
    return f"{name}({','.join(_text(c) for c in s.children(e))})"


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
    passed = {contraction}
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
        if len(scalars) != len(node.operands):
            break
        expression = node.op.kind.expr(Call.of(node), *scalars)  # type: ignore[union-attr]
        if not is_writable(expression, dtype) or _size(expression) > 64:
            break
        expressions[node.result] = expression
        passed.add(node)
        if node.result.dtype != dtype or not _leads_alone(node.result, passed):
            continue  # what follows needs more than this value
        covered = node.result
        best = (expression, tuple(operands), tuple(shapes), covered, position + 1)
    expression, used, used_shapes, covered, count = best
    epilogue = None if expression is None else ScalarEpilogue(expression, used_shapes)
    return PlannedEpilogue(epilogue, used, covered, tuple(tail[count:]))


def _leads_alone(value: Value, nodes: set[Node]) -> bool:
    """Whether of all that the nodes compute, only this value is used behind them."""
    return all(
        n.result is value or not (n.result.is_output or any(u not in nodes for u in n.result.users)) for n in nodes
    )


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
