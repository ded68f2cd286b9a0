"""Scaled dot-product attention as a composition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.builder import Builder
from dhc.ir.dtypes import BOOL, FLOATS, DType, i64
from dhc.ir.graph import Value
from dhc.ir.inference import broadcast_shapes, require_equal, require_rank
from dhc.ir.kinds import Composite
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.matmul import converted, moved_bytes
from dhc.ir.ops.softmax import softmax_parts
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def _type(call: Call) -> list[TensorType]:
    q, k, v = call.types[:3]
    for operand in range(3):
        require_rank(call, operand, 4)
    for axis in (0, 1):
        require_equal(call, q.shape[axis], k.shape[axis], "sizes of q and k")
        require_equal(call, q.shape[axis], v.shape[axis], "sizes of q and v")
    require_equal(call, q.shape[3], k.shape[3], "features of q and k")
    require_equal(call, k.shape[2], v.shape[2], "positions of k and v")
    if len(call.types) > 3:
        mask = call.types[3]
        scores = (*q.shape[:3], k.shape[2])
        if broadcast_shapes(call, scores, mask.shape) != scores:
            call.fail("the mask does not broadcast to [batch, heads, queries, keys]")
        if mask.dtype not in BOOL and mask.dtype != q.dtype:
            call.fail_type(f"the mask is {mask.dtype}, needs bool or {q.dtype}")
    if call.attrs.scale == 0 and not isinstance(q.shape[3], int):
        call.fail("the number of features is not known", hint="give the attribute scale")
    return [TensorType(q.dtype, (*q.shape[:3], v.shape[3]))]


def _scale(call: Call) -> float:
    features = call.types[0].shape[3]
    return call.attrs.scale or (1.0 / math.sqrt(features) if features else 1.0)


def _wide(call: Call) -> DType:
    return compute_dtype(call.types[0].dtype)


def _reference(call: Call, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None) -> Any:
    wide = _wide(call).numpy
    scores = np.einsum("bhid,bhjd->bhij", q.astype(wide), k.astype(wide)) * wide.type(_scale(call))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask.astype(wide)
    if call.attrs.causal:
        seen = np.tril(np.ones(scores.shape[2:], np.bool_))
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True) if scores.shape[-1] else 0
    weights = np.exp(scores - top)
    weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(wide)
    return np.einsum("bhij,bhjd->bhid", weights, v.astype(wide)).astype(q.dtype)


def _build(b: Builder, operands: Sequence[Value], call: Call) -> Sequence[Value]:
    q, k, v, *mask = operands
    wide = _wide(call)
    keys = b.transpose(k, perm=[0, 1, 3, 2])
    scores = b.matmul(q, keys, out=wide) if wide != q.dtype else b.matmul(q, keys)
    scores = b.mul(scores, b.like(_scale(call), scores))
    least = b.like(-math.inf, scores)
    if mask and mask[0].dtype in BOOL:
        scores = b.where(mask[0], scores, least)
    elif mask:
        scores = b.add(scores, converted(b, mask[0], wide))
    if call.attrs.causal:
        plane = (q.shape[2], k.shape[2])
        seen = b.ge(b.iota(shape=plane, axis=0, dtype=i64), b.iota(shape=plane, axis=1, dtype=i64))
        scores = b.where(seen, scores, least)
    weights = softmax_parts(b, scores, 3)
    return (converted(b, b.matmul(weights, converted(b, v, wide)), q.dtype),)


def _cost(call: Call) -> Cost:
    q, k, v = call.types[:3]
    scores = symbols.product(q.shape[:3]) * k.shape[2]
    return Cost(scores * 2 * (q.shape[3] + v.shape[3]) + scores * 5, moved_bytes(call))


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(5)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    seen = rng.random((4, 5)) < 0.7
    seen[:, 0] = True
    return [
        ([f(2, 2, 4, 8), f(2, 2, 5, 8), f(2, 2, 5, 3)], {}),
        ([f(1, 2, 4, 8), f(1, 2, 5, 8), f(1, 2, 5, 8), f(1, 1, 4, 5)], {"scale": 0.3}),
        ([f(1, 2, 4, 8), f(1, 2, 5, 8), f(1, 2, 5, 8), seen], {}),
        ([f(1, 1, 6, 4), f(1, 1, 6, 4), f(1, 1, 6, 4)], {"causal": True}),
        ([f(0, 2, 3, 4), f(0, 2, 3, 4), f(0, 2, 3, 4)], {}),
    ]


register(
    OpDef(
        name="attention",
        doc="softmax(scale * q k^T + mask) v for q, k, v of shape [batch, heads, positions, features].",
        operands=(
            Operand("q", FLOATS),
            Operand("k", FLOATS, same="q"),
            Operand("v", FLOATS, same="q"),
            Operand("mask", FLOATS | BOOL, optional=True),
        ),
        attrs=(
            Attr("scale", "float", 0.0, "factor of the scores; 0: 1 / sqrt(features)"),
            Attr("causal", "bool", False, "query i sees keys 0 to i"),
        ),
        infer=_type,
        reference=_reference,
        kind=Composite(_build),
        cost=_cost,
        examples=_examples,
        source="ONNX Attention (opset 23); Vaswani et al., NeurIPS 2017",
    )
)
