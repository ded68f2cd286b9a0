"""Groups of the pass `fuse_attention` as one kernel: which views it reads and writes, and what happens to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhc.backends.cpu.contract.attention import (
    BATCH_AXES,
    AttentionSpec,
    block_rows,
    emit_attention,
    scratch_elements,
)
from dhc.backends.cpu.contract.attention_softmax import rows_in_registers
from dhc.backends.cpu.contract.spec import KernelCode
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.cpu.vector_writer import is_writable
from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.dtypes import boolean, f32
from dhc.ir.graph import Graph, Value
from dhc.ir.op import Call
from dhc.ir.symbols import Dim, Shape
from dhc.passes.fuse_attention import Attention, find_attention, literal
from dhc.passes.strided import StridedView, refined_strides


@dataclass(frozen=True)
class PlannedAttention:
    """An attention that has a kernel.

    Attributes:
        code: the kernel.
        operands: values for the buffers before the result.
        params: run-time sizes.
        scratch: bytes of scratch memory for each thread.
    """

    code: KernelCode
    operands: tuple[Value, ...]
    params: tuple[Dim, ...]
    scratch: Dim


def plan_attention(body: Graph, target: CpuTarget) -> PlannedAttention | None:
    """Plans the kernel of a group; None when the group is no attention."""
    products = [n for n in body if n.op.name == "matmul"]
    if len(products) != 2 or len(body.outputs) != 1:
        return None
    found = find_attention(products[1])
    if found is None or found.out is not body.outputs[0]:
        return None
    rest = [n for n in body if n not in found.nodes]
    inputs = set(body.inputs)
    planned = _expression(found)
    if rest or planned is None or not {found.q.base, found.k.base, found.v.base} <= inputs:
        return None
    expression, values = planned
    return _plan(found, target, expression, values)


def _plan(
    found: Attention, target: CpuTarget, expression: s.ScalarExpr, values: Sequence[tuple[Value, Shape]]
) -> PlannedAttention | None:
    m, n = found.scores.result.shape[-2:]
    d, e = found.q.shape[-1], found.v.shape[-1]
    more: list[StridedView] = []
    kinds: list[tuple[str, str]] = []
    for value, shape in values:
        whole = StridedView.whole(value).broadcast(shape)
        view = None if whole is None else whole.refined(found.frame)
        if view is None:
            return None
        more.append(view)
        kinds.append(("bool" if value.dtype == boolean else "f32", "row" if view.strides[-1] == 1 else "scalar"))
    row_major = found.k.steps[-2] == 1 or (found.k.steps[-2] == 0 and found.k.steps[-1] not in (0, 1))
    lanes = target.lanes("f32")
    spec = AttentionSpec(
        rows=block_rows(target, m if isinstance(m, int) else None),
        row_major_keys=row_major,
        narrow=isinstance(e, int) and e <= lanes,
        expression=expression,
        operands=tuple(kinds),
        keys=n if isinstance(n, int) and rows_in_registers(target, n) else 0,
    )
    params: list[Dim] = [*_padded(found.frame, 1), m, n, d, e]
    rows = [found.q.steps[-2], found.k.steps[-1 if row_major else -2], found.v.steps[-2], *(v.steps[-2] for v in more)]
    for view, row in zip((found.q, found.k, found.v, *more), rows, strict=True):
        params += [view.offset, *_padded(view.steps[:-2], 0), row]
    strides = _out_strides(found)
    if strides is None:
        return None
    params += [0, *strides]
    code = emit_attention(spec, target)
    total: Dim = 0
    for part in scratch_elements(target, spec, n, d, e):  # type: ignore[arg-type]
        total = total + part  # type: ignore[operator]
    operands = (found.q.base, found.k.base, found.v.base, *(value for value, _ in values))
    return PlannedAttention(code, operands, tuple(params), total * 4)


def _padded(sizes: Sequence[Dim], fill: int) -> tuple[Dim, ...]:
    return (fill,) * (BATCH_AXES - len(sizes)) + tuple(sizes)


def _out_strides(found: Attention) -> tuple[Dim, ...] | None:
    """Batch strides and row stride of the result in the order of the frame's axes."""
    shape = tuple(found.mixed.result.shape)
    rank = len(shape)
    strides = symbols.contiguous_strides(tuple(found.out.shape))
    perm = found.perm or tuple(range(rank))
    by_axis: list[Dim] = [0] * rank
    for place, axis in enumerate(perm):
        by_axis[axis] = strides[place]
    batch = refined_strides(shape[:-2], by_axis[:-2], found.frame)
    return None if batch is None else (*_padded(batch, 0), by_axis[-2])


def _expression(found: Attention) -> tuple[s.ScalarExpr, list[tuple[Value, Shape]]] | None:
    """What happens to a score before the softmax, and the operands of that."""
    current: s.ScalarExpr = s.Var("sum", f32)
    if found.factor != 1.0:
        current = current * s.const(found.factor, f32)
    known: dict[Value, s.ScalarExpr] = {found.scores.result: current}
    operands: list[tuple[Value, Shape]] = []
    for node in found.between:
        if node.op.name == "reshape":
            known[node.result] = known[node.operands[0]]
            continue
        scalars: list[s.ScalarExpr] = []
        for value in node.operands:
            number = literal(value)
            if value not in known and number is not None:
                known[value] = s.const(number, f32)
            if value not in known:
                known[value] = s.Load(value.dtype, len(operands), ())
                operands.append((value, tuple(node.result.shape)))
            scalars.append(known[value])
        known[node.result] = node.op.kind.expr(Call.of(node), *scalars)  # type: ignore[union-attr]
    expression = known[found.between[-1].result] if found.between else current
    booleans = {i: s.Var(f"mask{i}", f32) > 0.0 for i, (v, _) in enumerate(operands) if v.dtype == boolean}
    # Masks are loaded as lanes of one bit; for the check they stand for any comparison.
    checked = s.transform(expression, lambda e: booleans.get(e.operand) if isinstance(e, s.Load) else None)
    return (expression, operands) if is_writable(checked, f32) else None
