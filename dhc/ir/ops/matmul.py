"""Matrix products."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import NUMERIC
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_shapes, require_equal
from dhc.ir.kinds import Contract, ReduceSpec
from dhc.ir.op import Call, Cost, OpDef, Operand
from dhc.ir.ops.view import broadcast_index
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _matmul_type(call: Call) -> list[TensorType]:
    a, b = call.types
    if a.rank < 2 or b.rank < 2:
        call.fail("both operands need rank 2 or more", hint="reshape vectors to matrices first")
    require_equal(call, a.shape[-1], b.shape[-2], "inner sizes")
    batch = broadcast_shapes(call, a.shape[:-2], b.shape[:-2])
    return [TensorType(a.dtype, (*batch, a.shape[-2], b.shape[-1]))]


def _matmul_spec(call: Call) -> ReduceSpec:
    a, b = call.types
    batch = call.results[0].shape[:-2]

    def step(index, red, load, accs):  # type: ignore[no-untyped-def]
        left = [*broadcast_index(index[:-2], a.shape[:-2], batch), index[-2], red[0]]
        right = [*broadcast_index(index[:-2], b.shape[:-2], batch), red[0], index[-1]]
        return (accs[0] + load(0, left) * load(1, right),)

    return ReduceSpec(
        domain=(a.shape[-1],),
        init=lambda index, load: (s.const(0, a.dtype),),
        step=step,
        finish=lambda index, accs: accs,
    )


def _swap(b: Builder, x: Value) -> Value:
    n = x.type.rank
    result: Value = b.transpose(x, perm=[*range(n - 2), n - 1, n - 2])
    return result


def _grad_matmul(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, y = node.operands
    return unbroadcast(b, b.matmul(g, _swap(b, y)), x), unbroadcast(b, b.matmul(_swap(b, x), g), y)


def _matmul_cost(call: Call) -> Cost:
    (result,) = call.results
    moved = symbols.product(()) * 0
    for t in (*call.types, result):
        moved = moved + t.nbytes
    return Cost(result.numel * call.types[0].shape[-1] * 2, moved)


register(
    OpDef(
        name="matmul",
        doc="Matrix product over the last two axes, leading axes broadcast.",
        operands=(Operand("a", NUMERIC), Operand("b", NUMERIC, same="a")),
        infer=_matmul_type,
        reference=lambda call, a, b: np.matmul(a, b),
        kind=Contract("matmul", _matmul_spec),
        grad=_grad_matmul,
        cost=_matmul_cost,
        source="ONNX MatMul",
    )
)
