"""Normalisations, attention, quantization, recurrences."""

from __future__ import annotations

import math
from typing import Any

from dhc.ir import registry
from dhc.ir.symbols import Dim
from tests.support.random_graphs import Maker
from tests.support.random_ops.contraction import image_like
from tests.support.random_ops.reduction import precision
from tests.support.random_ops.rule import rule


@rule("softmax", "log_softmax")
def softmax(m: Maker, op: str) -> None:
    x = m.pick("f", rank=(1, 4))
    if x is None:
        return
    axis = m.integer(-1, x.rank - 1)
    n = m.most(x.shape[axis])
    if m.not_empty(x.shape[axis]):
        epsilon = 2.0 ** (1 - precision(x))
        if op == "softmax":
            m.add(m.b.softmax(x.value, axis=axis), 1.0, 2 * x.error + (n + 2 * x.bound) * epsilon)
        else:
            bound = 2 * x.bound + math.log(n + 1)
            m.add(m.b.log_softmax(x.value, axis=axis), bound, 2 * x.error + (n + 4 * x.bound) * epsilon)


@rule("layer_norm", "rms_norm", "instance_norm", "group_norm", "batch_norm", "lrn")
def normalisation(m: Maker, op: str) -> None:
    kind = m.some_dtype("f")
    if kind not in ("f32", "f64"):
        return
    epsilon = 2.0 ** (1 - dtype_bits(kind))
    if op in ("layer_norm", "rms_norm"):
        x = m.pick("f", dtype=kind, rank=(1, 4))
        if x is None or not m.not_empty(x.shape[-1]):
            return
        shape: tuple[Dim, ...] = x.shape[-1:]
        axis = -1
    else:
        x = image_like(m, "f", dtype=kind)
        if x.dtype.name != kind or not m.not_empty(*x.shape[1:]):
            return
        shape = x.shape[1:2]
    scale = m.fresh(kind, shape, 0.5, 2, 0.25)
    bias = m.fresh(kind, shape, -2, 2, 0.25)
    # the smallest standard deviation is sqrt(0.25): the errors grow at most by a small factor times the range
    bound = 4.0 * (x.bound + 2)
    error = 16 * (1 + x.bound) ** 2 * (x.error + 64 * epsilon * (1 + x.bound))
    if op == "layer_norm":
        extra = [bias.value] if m.flip() else []
        value = m.b.layer_norm(x.value, scale.value, *extra, axis=axis, epsilon=0.25)
    elif op == "rms_norm":
        value = m.b.rms_norm(x.value, scale.value, axis=axis, epsilon=0.25)
    elif op == "instance_norm":
        value = m.b.instance_norm(x.value, scale.value, bias.value, epsilon=0.25)
    elif op == "group_norm":
        channels = int(x.shape[1])  # type: ignore[arg-type]
        groups = m.choose([g for g in (1, 2) if channels % g == 0])
        value = m.b.group_norm(x.value, scale.value, bias.value, groups=groups, epsilon=0.25)
    elif op == "batch_norm":
        mean = m.fresh(kind, shape, -2, 2, 0.25)
        variance = m.fresh(kind, shape, 0, 4, 0.25)
        value = m.b.batch_norm(x.value, scale.value, bias.value, mean.value, variance.value, epsilon=0.25)
    else:
        value = m.b.lrn(x.value, size=m.choose([1, 3]), alpha=0.5, beta=0.75, bias=1.0)
    m.add(value, bound, error)


def dtype_bits(kind: str) -> int:
    from tests.support.random_graphs import PRECISION

    return PRECISION[kind]


@rule("attention")
def attention(m: Maker) -> None:
    kind = m.choose(["f32", "f64"])
    b, h, s, t, d = m.choose(m.palette), m.integer(1, 2), m.integer(1, 4), m.integer(1, 4), m.integer(1, 4)
    q = m.fresh(kind, (b, h, s, d), -2, 2, 0.25)
    k = m.fresh(kind, (b, h, t, d), -2, 2, 0.25)
    v = m.fresh(kind, (b, h, t, d), -2, 2, 0.25)
    value = m.b.attention(q.value, k.value, v.value, scale=0.5, causal=m.flip() and s == t)
    m.add(value, 2.0, 64 * 2.0 ** (1 - dtype_bits(kind)))


@rule("quantize", "dequantize")
def quantization(m: Maker, op: str) -> None:
    kind = m.choose(["i8", "u8"])
    zero = m.b.constant(m.integer(0, 3), kind)
    scale = m.b.constant(m.choose([0.25, 0.5, 1.0]), "f32")
    if op == "quantize":
        x = m.pick("f", exact=True, dtype="f32")
        if x is not None:
            m.add(m.b.quantize(x.value, scale, zero), 255)
        return
    q = m.pick("iu", dtype=kind)
    if q is not None:
        m.add(m.b.dequantize(q.value, scale, zero), q.bound + 3, 0.0, 0.25)


@rule("lstm", "gru", "rnn")
def recurrent(m: Maker, op: str) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[op]
    kind = m.choose(["f32", "f64"])
    direction = m.choose(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    t, n, i, h = m.integer(1, 4), m.choose(m.palette), m.integer(1, 3), m.integer(1, 3)
    shapes: list[tuple[Dim, ...]] = [(t, n, i), (d, gates * h, i), (d, gates * h, h), (d, 2 * gates * h), (d, n, h)]
    if op == "lstm":
        shapes.append((d, n, h))
        shapes.append((d, 3 * h))
    operands = [m.fresh(kind, shape, -1, 1, 0.25).value for shape in shapes]
    operands.append(m.fresh("i64", (n,), 1, t).value)
    attrs: dict[str, Any] = {"direction": direction}
    record = registry.get(op)
    functions = {"lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"], "rnn": ["tanh"]}[op]
    if (spec := record.attr("activations")) is not None and not isinstance(spec.default, tuple):
        attrs["activations"] = functions * d
    if op == "gru" and m.flip():
        attrs["linear_before_reset"] = True
    results = getattr(m.b, op)(*operands, **attrs)
    for result in results:
        m.add(result, 2.0 if op != "lstm" else 8.0, 200 * 2.0 ** (1 - dtype_bits(kind)))
