"""Normalisations that exporters write in parts, as one op."""

from __future__ import annotations

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.graph import Node, Value
from dhc.passes.base import Refusal
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of


@rule("group_norm_of_reshapes", "reshape")
def _group_norm(b: Builder, node: Node) -> Rewritten:
    """An instance norm between reshapes that make channels of groups and undo it is a group norm."""
    norm = node.operands[0].producer
    if norm is None or norm.op.name != "instance_norm" or len(norm.result.uses) != 1:
        return None
    inner = norm.operands[0].producer
    if inner is None or inner.op.name != "reshape":
        return None
    x, split = inner.operands[0], inner.result.shape
    if x.shape != node.result.shape or x.type.rank < 2 or len(split) < 3 or split[0] != x.shape[0]:
        return None
    groups, channels = split[1], x.shape[1]
    if not isinstance(groups, int) or not isinstance(channels, int) or groups < 1 or channels % groups:
        return None
    vectors = [constant_of(v) for v in norm.operands[1:]]
    if any(v is None for v in vectors):
        return Refusal.at("group_norm_of_reshapes", node, "scale and bias of the groups are not constant")
    repeated = [b.constant(np.repeat(v, channels // groups)) for v in vectors if v is not None]
    result: Value = b.call("group_norm", x, *repeated, attrs={"groups": groups, "epsilon": norm.attrs["epsilon"]})
    return result


NORMS = (_group_norm,)
