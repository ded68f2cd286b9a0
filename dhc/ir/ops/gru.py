"""Gated recurrent unit, gates in the order z, r, h (ONNX)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.graph import Value
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, OpDef
from dhc.ir.ops import recurrent as rnn
from dhc.ir.ops.recurrent import activated
from dhc.ir.registry import register

USUAL = ("Sigmoid", "Tanh")


def _reference(
    call: Call,
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray,
    h0: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, ...]:
    sets = rnn.activations(call, USUAL)

    def step(direction: int, element: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
        (h,) = states
        f_act, g_act = sets[direction]
        wz, wr, wh = np.split(w[direction], 3)
        rz, rr, rh = np.split(r[direction], 3)
        wbz, wbr, wbh, rbz, rbr, rbh = np.split(b[direction], 6)
        z = rnn.apply(f_act, rnn.clipped(call, element @ wz.T + h @ rz.T + wbz + rbz))
        reset = rnn.apply(f_act, rnn.clipped(call, element @ wr.T + h @ rr.T + wbr + rbr))
        if call.attrs.linear_before_reset:
            inner = reset * (h @ rh.T + rbh)
        else:
            inner = (reset * h) @ rh.T + rbh
        new = rnn.apply(g_act, rnn.clipped(call, element @ wh.T + inner + wbh))
        return [(1 - z) * new + z * h]

    return rnn.run_reference(call, x, (h0,), lengths, step)


def _cells(  # type: ignore[no-untyped-def]
    x, w, r, b, h0, lengths, y, h, gates, backward, linear_before_reset, clip,
    f0, f0_alpha, f0_beta, g0, g0_alpha, g0_beta, f1, f1_alpha, f1_beta, g1, g1_alpha, g1_beta, begin, end,
):  # fmt: skip
    """Steps of the items begin..end of (direction, batch). `gates` holds z, r, h for each item."""
    steps, batch, features = x.shape
    hidden = r.shape[2]
    for item in range(begin, end):
        d = item // batch
        n = item - d * batch
        length = lengths[n]
        if length < 0 or length > steps:
            return 1
        for j in range(hidden):
            h[d, n, j] = h0[d, n, j]
        for t in range(length, steps):
            for j in range(hidden):
                y[t, d, n, j] = 0
        for step in range(length):
            t = step
            if backward == 1 or d == 1:
                t = length - 1 - step
            # The candidate h needs the reset gate: z and r are finished first.
            for stage in range(2):
                for k in range(2 * hidden * stage, 2 * hidden + hidden * stage):
                    total = b[d, k]
                    for i in range(features):
                        total += w[d, k, i] * x[t, n, i]
                    inner = b[d, 3 * hidden + k]
                    for i in range(hidden):
                        if stage == 1 and linear_before_reset == 0:
                            inner += r[d, k, i] * (gates[item, hidden + i] * h[d, n, i])
                        else:
                            inner += r[d, k, i] * h[d, n, i]
                    if stage == 1 and linear_before_reset == 1:
                        inner *= gates[item, k - hidden]
                    v = float(total + inner)
                    if clip > 0:
                        v = min(max(v, -clip), clip)
                    code, alpha, beta = f0, f0_alpha, f0_beta
                    if stage == 1:
                        code, alpha, beta = g0, g0_alpha, g0_beta
                    if d == 1:
                        code, alpha, beta = f1, f1_alpha, f1_beta
                        if stage == 1:
                            code, alpha, beta = g1, g1_alpha, g1_beta
                    gates[item, k] = activated(v, code, alpha, beta)
            for j in range(hidden):
                z = gates[item, j]
                state = (1 - z) * gates[item, 2 * hidden + j] + z * h[d, n, j]
                h[d, n, j] = state
                y[t, d, n, j] = state
    return 0


def _args(call: Call) -> Sequence[Any]:
    a = call.attrs
    return [int(a.direction == "reverse"), int(a.linear_before_reset), a.clip, *rnn.activation_numbers(call, USUAL)]


def _decompose(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    x, w, r, bias, h0, lengths = operands
    size = r.shape[2]
    sets = rnn.activations(call, USUAL)
    per_direction = []
    for d in range(rnn.directions(call)):
        f_act, g_act = sets[d]
        both = rnn.row(b, bias, d)
        projected = rnn.project(b, x, rnn.row(b, w, d), rnn.part(b, both, 0, 0, size * 3))
        recurrent = b.transpose(rnn.row(b, r, d), perm=[1, 0])

        def step(
            s: Builder, element: Value, states: list[Value], captures: list[Value],
            f_act: rnn.Activation = f_act, g_act: rnn.Activation = g_act,
        ) -> list[Value]:  # fmt: skip
            (h,) = states
            weights, biases = captures

            def gate(act: rnn.Activation, v: Value) -> Value:
                return rnn.build_activation(s, act, rnn.build_clip(s, call, v))

            def hidden(k: int, source: Value) -> Value:
                product = s.matmul(source, rnn.part(s, weights, 1, size * k, size))
                total: Value = s.add(product, rnn.part(s, biases, 0, size * k, size))
                return total

            ez, er, eh = (rnn.part(s, element, 1, size * k, size) for k in range(3))
            z = gate(f_act, s.add(ez, hidden(0, h)))
            reset = gate(f_act, s.add(er, hidden(1, h)))
            after = call.attrs.linear_before_reset
            inner = s.mul(reset, hidden(2, h)) if after else hidden(2, s.mul(reset, h))
            new = gate(g_act, s.add(eh, inner))
            return [s.add(s.mul(s.sub(s.like(1, z), z), new), s.mul(z, h))]

        captures = [recurrent, rnn.part(b, both, 0, size * 3, size * 3)]
        per_direction.append(rnn.build_direction(b, call, d, projected, [rnn.row(b, h0, d)], captures, lengths, step))
    return rnn.stack_directions(b, per_direction)


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    def call(
        sizes: tuple[int, int, int, int], lengths: Sequence[int], direction: str = "forward", **attrs: Any
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        arrays = rnn.example_arrays(9, 3, 6, sizes, 2 if direction == "bidirectional" else 1)
        return [*arrays, np.array(lengths, np.int64)], {"direction": direction, **attrs}

    return [
        call((3, 2, 3, 2), (3, 3)),
        call((3, 2, 3, 2), (3, 3), linear_before_reset=True),
        call((4, 3, 2, 3), (4, 1, 2), "bidirectional", clip=0.6, linear_before_reset=True),
        call((3, 2, 2, 2), (2, 3), "reverse", activations=("HardSigmoid", "ScaledTanh"), alphas=(0.3, 1.2),
             betas=(0.4, 0.7)),
        call((2, 0, 3, 2), ()),
    ]  # fmt: skip


register(
    OpDef(
        name="gru",
        doc="Gated recurrent unit over x[T, B, I]: all outputs y[T, D, B, H] and the last h[D, B, H].",
        operands=rnn.operands("x", "w", "r", "b", "h0"),
        attrs=(*rnn.ATTRS, Attr("linear_before_reset", "bool", False, "reset after the product with the weights")),
        infer=lambda call: rnn.result_types(call, 3, 6, USUAL, 1),
        reference=_reference,
        kind=Opaque(
            _cells,
            args=_args,
            scratch=lambda call: [(call.types[0].dtype, (rnn.work_items(call), call.types[2].shape[2] * 3))],
            role="scan",
            parallel=rnn.work_items,
        ),
        grad=rnn.gradient_through(_decompose),
        cost=rnn.recurrent_cost,
        examples=_examples,
        source="ONNX GRU; Cho et al., EMNLP 2014",
    )
)
