"""Lowers instance and group normalisation to their kernels."""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.space_norm import HEADER, PIECE, SpaceNormSpec, emit_moments, emit_space_norm
from dhc.backends.cpu.contraction import PlannedContraction
from dhc.backends.cpu.epilogue import plan_epilogue
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import symbols
from dhc.ir.dtypes import f32
from dhc.ir.graph import Node

NORMS = ("instance_norm", "group_norm")
"""Ops with these kernels."""


def plan_norm(node: Node, tail: Sequence[Node], target: CpuTarget) -> PlannedContraction | None:
    """Plans an `instance_norm` or `group_norm` and the element-wise nodes after it; None for other element types.

    Args:
        node: the normalisation.
        tail: element-wise nodes after it.
        target: the CPU.
    """
    if any(v.dtype != f32 for v in node.operands):
        return None
    x = node.operands[0].shape
    planned = plan_epilogue(node, tail, row_axis=1)
    spec = SpaceNormSpec(node.attrs["epsilon"], planned.epilogue or Epilogue())
    groups = node.attrs["groups"] if node.op.name == "group_norm" else x[1]
    positions = symbols.product(x[2:])
    pieces = symbols.product((x[0], x[1], symbols.ceildiv(positions, PIECE)))
    params = (x[0], x[1], groups, positions)
    operands = (*node.operands, *planned.operands)
    return PlannedContraction(
        emit_space_norm(spec, target), operands, params, planned, before=(emit_moments(target), pieces * 2 + HEADER)
    )
