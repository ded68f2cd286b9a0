"""Moves transposes towards the outputs, through element-wise ops, so that pairs meet and cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Elementwise
from dhc.passes.base import Pass, PassResult, Refusal, register_pass
from dhc.passes.rewrite import Rewritten, apply_rules, rule


def _permuted_by(value: Value) -> tuple[int, ...] | None:
    producer = value.producer
    if producer is None or producer.op.name != "transpose":
        return None
    perm: tuple[int, ...] = producer.attrs["perm"]
    return perm


@rule("sink_transpose")
def _sink_transpose(b: Builder, node: Node) -> Rewritten:
    """op(transpose(x), transpose(y), scalar) becomes transpose(op(x, y, scalar)) when the transposes agree."""
    if not isinstance(node.op.kind, Elementwise) or len(node.results) != 1 or node.op.name == "copy":
        return None
    perms = {p for v in node.operands if (p := _permuted_by(v)) is not None}
    if len(perms) != 1:
        return None
    (perm,) = perms
    operands: list[Value] = []
    for v in node.operands:
        if _permuted_by(v) is not None and v.type.rank == node.result.type.rank and v.producer is not None:
            if len(v.uses) > 1:
                return Refusal.at("sink_transpose", node, "the transposed tensor is used elsewhere too")
            operands.append(v.producer.operands[0])
        elif v.type.numel == 1 and v.type.rank <= node.result.type.rank:
            operands.append(v)
        else:
            return Refusal.at("sink_transpose", node, "an operand is not transposed the same way")
    moved = b.call(node.op, *operands, attrs=dict(node.attrs))
    return b.transpose(moved, perm=perm)


def _is_reshaped(value: Value) -> bool:
    return value.producer is not None and value.producer.op.name == "reshape" and value.type.numel != 1


@rule("sink_reshape")
def _sink_reshape(b: Builder, node: Node) -> Rewritten:
    """op(reshape(x)) becomes reshape(op(x)) for ops of one operand (and scalars): the op then fuses with x."""
    if not isinstance(node.op.kind, Elementwise) or len(node.results) != 1 or node.op.name == "copy":
        return None
    shaped = [
        v for v in node.operands if v.producer is not None and v.producer.op.name == "reshape" and v.type.numel != 1
    ]
    if len(shaped) != 1 or len(shaped[0].uses) > 1:
        return None
    inner = shaped[0].producer
    assert inner is not None
    source = inner.operands[0]
    others = [v for v in node.operands if v is not shaped[0]]
    if any(v.type.numel != 1 for v in others) or source.producer is None:
        return None
    if shaped[0].type.shape != node.result.shape or any(v.type.rank > source.type.rank for v in others):
        return None
    moved = b.call(node.op, *(source if v is shaped[0] else v for v in node.operands), attrs=dict(node.attrs))
    return b.reshape(moved, shape=node.result.shape)


@register_pass
@dataclass(frozen=True)
class Sink(Pass):
    """Sinks transposes and reshapes through element-wise ops."""

    name: ClassVar[str] = "sink"

    def run(self, graph: Graph) -> PassResult:
        """Rewrites the graph and nested graphs."""
        return apply_rules(graph, [_sink_transpose, _sink_reshape])
