"""Arithmetic: neutral operands, ops that undo or repeat each other, conversions that lose nothing."""

from __future__ import annotations

import math

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.graph import Node, Value
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of, is_splat, keeps_type, splat_of


@rule("copy_in_place", "copy")
def _copy_in_place(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if not node.attrs["device"] else None


@rule("times_one", "mul")
def _times_one(b: Builder, node: Node) -> Rewritten:
    for index in (0, 1):
        if is_splat(node, 1 - index, 1.0) and keeps_type(node, index):
            return node.operands[index]
    return None


@rule("divided_by_one", "div")
def _divided_by_one(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if is_splat(node, 1, 1.0) and keeps_type(node, 0) else None


@rule("plus_zero", "add", "sub")
def _plus_zero(b: Builder, node: Node) -> Rewritten:
    # Of floats only x - 0 and x + (-0) keep every bit: -0 + 0 is +0.
    integer = node.result.dtype.is_integer
    indices = (0, 1) if node.op.name == "add" else (0,)
    for index in indices:
        value = splat_of(node.operands[1 - index])
        if value != 0.0 or not keeps_type(node, index):
            continue
        if integer or bool(np.signbit(value)) == (node.op.name == "add"):
            return node.operands[index]
    return None


@rule("to_the_first", "pow")
def _to_the_first(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if is_splat(node, 1, 1.0) and keeps_type(node, 0) else None


@rule("twice", "neg", "logical_not", "bit_not", "conj")
def _twice(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    return inner.operands[0] if inner is not None and inner.op is node.op else None


@rule("idempotent", "relu", "abs", "floor", "ceil", "round", "trunc")
def _idempotent(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    return node.operands[0] if inner is not None and inner.op is node.op else None


_NEVER_NEGATIVE = ("abs", "exp", "sigmoid", "hard_sigmoid", "softplus", "sqrt")


@rule("relu_of_non_negative", "relu")
def _relu_of_non_negative(b: Builder, node: Node) -> Rewritten:
    inner = node.operands[0].producer
    if inner is None or inner.op.name not in _NEVER_NEGATIVE or inner.op.name == "sqrt":
        return None  # sqrt(-0) is -0
    if inner.op.name == "abs" and node.operands[0].dtype.kind == "i":
        return None  # the smallest integer has no absolute value
    if inner.op.name == "hard_sigmoid" and inner.attrs["alpha"] == 0:
        return None
    return node.operands[0]


@rule("same_twice", "minimum", "maximum", "logical_and", "logical_or", "bit_and", "bit_or")
def _same_twice(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if node.operands[0] is node.operands[1] and keeps_type(node, 0) else None


@rule("minimum_of_maximum", "minimum")
def _minimum_of_maximum(b: Builder, node: Node) -> Rewritten:
    """min(max(x, low), high) is clamp(x, low, high), by definition."""
    for index in (0, 1):
        inner = node.operands[index].producer
        if inner is None or inner.op.name != "maximum" or constant_of(node.operands[1 - index]) is None:
            continue
        for number in (0, 1):
            x, low, high = inner.operands[number], inner.operands[1 - number], node.operands[1 - index]
            if constant_of(low) is not None and constant_of(x) is None and x.type == node.result.type:
                return b.clamp(x, low, high)
    return None


@rule("clamp_to_anything", "clamp")
def _clamp_to_anything(b: Builder, node: Node) -> Rewritten:
    x, low, high = node.operands
    if not keeps_type(node, 0):
        return None
    smallest, largest = (-math.inf, math.inf) if x.dtype.is_float else (x.dtype.min, x.dtype.max)
    # Exact numbers are compared, not their nearest floats: 2**63 - 1 has none.
    bounds = [constant_of(v) for v in (low, high)]
    if any(a is None or a.size != 1 for a in bounds):
        return None
    numbers = [a.reshape(-1)[0].item() for a in bounds if a is not None]
    return x if numbers == [smallest, largest] else None


@rule("where_known", "where")
def _where_known(b: Builder, node: Node) -> Rewritten:
    condition, yes, no = node.operands
    known = splat_of(condition)
    chosen: Value | None = yes if yes is no or known == 1.0 else no if known == 0.0 else None
    if chosen is None:
        return None
    if chosen.type == node.result.type:
        return chosen
    wanted = node.result.shape[node.result.type.rank - chosen.type.rank :] if chosen.type.rank else ()
    if any(d not in (1, w) for d, w in zip(chosen.shape, wanted)):
        return None
    return b.broadcast_to(chosen, shape=node.result.shape)


@rule("cast_to_itself", "cast")
def _cast_to_itself(b: Builder, node: Node) -> Rewritten:
    return node.operands[0] if keeps_type(node, 0) else None


@rule("merge_casts", "cast")
def _merge_casts(b: Builder, node: Node) -> Rewritten:
    """The first of two conversions is left out when it loses nothing and the second then still means the same."""
    inner = node.operands[0].producer
    if inner is None or inner.op.name != "cast":
        return None
    source, middle, target = inner.operands[0].dtype, node.operands[0].dtype, node.attrs["dtype"]
    if not _loses_nothing(source, middle):
        return None
    if target.is_integer and source.is_float != middle.is_float and not _loses_nothing(source, target):
        return None  # integers wrap around, floats saturate
    if target == source:
        return inner.operands[0]
    return b.cast(inner.operands[0], dtype=target, saturate=node.attrs["saturate"])


_DIGITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
_EXPONENT = {"f64": 1023, "f32": 127, "f16": 15, "bf16": 127}


def _loses_nothing(source: DType, target: DType) -> bool:
    """True when every number of one element type is one of another."""
    if source.kind == "b":
        return target.is_integer or target.is_float or target.kind == "b"
    if source.name in _DIGITS and target.name in _DIGITS:
        wide_enough = _EXPONENT[source.name] <= _EXPONENT[target.name]
        # The smallest numbers of f16 are multiples of 2**-24: f32 and f64 have them, bf16's digits do not suffice.
        return wide_enough and _DIGITS[source.name] <= _DIGITS[target.name]
    if source.is_integer and target.is_integer:
        return target.min <= source.min and source.max <= target.max
    if source.is_integer and target.name in _DIGITS:
        return source.bits <= _DIGITS[target.name] and source.max <= target.max
    return False


ARITHMETIC = (
    _copy_in_place, _times_one, _divided_by_one, _plus_zero, _to_the_first, _twice, _idempotent,
    _relu_of_non_negative, _same_twice, _minimum_of_maximum, _clamp_to_anything, _where_known, _cast_to_itself,
    _merge_casts,
)  # fmt: skip
