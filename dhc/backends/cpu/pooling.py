"""Lowers pooling to the explicit-vector generator; what it does not take goes through the loop level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dhc.backends.cpu.contract.pooling import PoolSpec, emit_pool
from dhc.backends.cpu.contract.spec import KernelCode
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import symbols
from dhc.ir.dtypes import f32, f64
from dhc.ir.graph import Node
from dhc.ir.symbols import Dim


def plan_pool(node: Node, target: CpuTarget) -> tuple[KernelCode, tuple[Dim, ...]] | None:
    """The kernel of a `max_pool` or `avg_pool` and its parameters; None for other nodes, dtypes and symbolic pads."""
    if node.op.name not in ("max_pool", "avg_pool") or node.result.dtype not in (f32, f64):
        return None
    x, attrs = node.operands[0], node.attrs
    rank = x.type.rank - 2

    def given(name: str, default: int) -> tuple[Any, ...]:
        return tuple(attrs[name]) or (default,) * rank

    low, high = given("pads_low", 0), given("pads_high", 0)
    if not all(isinstance(pad, int) for pad in (*low, *high)):
        return None
    first, beyond = (0,) * rank, (0,) * rank
    if node.op.name == "avg_pool" and attrs["count_include_pad"]:
        first = tuple(-pad for pad in low)
        beyond = tuple(pad - extra for pad, extra in zip(high, given("extra_high", 0), strict=True))
    spec = PoolSpec(
        node.op.name == "avg_pool", tuple(attrs["kernel"]), given("strides", 1), given("dilations", 1), low, first,
        beyond, node.result.dtype.name,
    )  # fmt: skip
    code = emit_pool(spec, target)
    sizes = (symbols.product(x.shape[:2]), *_three(x.shape[2:]), *_three(node.result.shape[2:]))
    return code, (*sizes, *code.constants)


def _three(sizes: Sequence[Dim]) -> tuple[Dim, ...]:
    return (1,) * (3 - len(sizes)) + tuple(sizes)
