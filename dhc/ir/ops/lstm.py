"""Long short-term memory, gates in the order i, o, f, c (ONNX)."""

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

USUAL = ("Sigmoid", "Tanh", "Tanh")


def _reference(
    call: Call,
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray,
    h0: np.ndarray,
    c0: np.ndarray,
    p: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, ...]:
    size = h0.shape[2]
    sets = rnn.activations(call, USUAL)

    def step(direction: int, element: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
        h, c = states
        f_act, g_act, h_act = sets[direction]
        bias = b[direction, : 4 * size] + b[direction, 4 * size :]
        i, o, f, g = np.split(element @ w[direction].T + h @ r[direction].T + bias, 4, axis=1)
        pi, po, pf = np.split(p[direction], 3)
        i = rnn.apply(f_act, rnn.clipped(call, i + pi * c))
        f = 1 - i if call.attrs.input_forget else rnn.apply(f_act, rnn.clipped(call, f + pf * c))
        c = f * c + i * rnn.apply(g_act, rnn.clipped(call, g))
        o = rnn.apply(f_act, rnn.clipped(call, o + po * c))
        return [o * rnn.apply(h_act, c), c]

    return rnn.run_reference(call, x, (h0, c0), lengths, step)


def _cells(  # type: ignore[no-untyped-def]
    x, w, r, b, h0, c0, p, lengths, y, h, c, gates, backward, input_forget, clip,
    f0, f0_alpha, f0_beta, g0, g0_alpha, g0_beta, k0, k0_alpha, k0_beta,
    f1, f1_alpha, f1_beta, g1, g1_alpha, g1_beta, k1, k1_alpha, k1_beta, begin, end,
):  # fmt: skip
    """Steps of the items begin..end of (direction, batch). `gates` holds i, o, f, c and the cell for each item."""
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
            c[d, n, j] = c0[d, n, j]
        for t in range(length, steps):
            for j in range(hidden):
                y[t, d, n, j] = 0
        for step in range(length):
            t = step
            if backward == 1 or d == 1:
                t = length - 1 - step
            for k in range(4 * hidden):
                total = b[d, k] + b[d, 4 * hidden + k]
                for i in range(features):
                    total += w[d, k, i] * x[t, n, i]
                for i in range(hidden):
                    total += r[d, k, i] * h[d, n, i]
                gates[item, k] = total
            for j in range(hidden):
                gates[item, j] += p[d, j] * c[d, n, j]
                gates[item, 2 * hidden + j] += p[d, 2 * hidden + j] * c[d, n, j]
            # The output gate looks at the new cell, so gates are activated in two stages: i, f, c, then o and the cell.
            for stage in range(2):
                for k in range(5 * hidden):
                    block = k // hidden
                    late = 1 if block == 1 or block == 4 else 0
                    if late != stage:
                        continue
                    v = float(gates[item, k])
                    if clip > 0 and block != 4:
                        v = min(max(v, -clip), clip)
                    code, alpha, beta = f0, f0_alpha, f0_beta
                    if block == 3:
                        code, alpha, beta = g0, g0_alpha, g0_beta
                    elif block == 4:
                        code, alpha, beta = k0, k0_alpha, k0_beta
                    if d == 1:
                        code, alpha, beta = f1, f1_alpha, f1_beta
                        if block == 3:
                            code, alpha, beta = g1, g1_alpha, g1_beta
                        elif block == 4:
                            code, alpha, beta = k1, k1_alpha, k1_beta
                    gates[item, k] = activated(v, code, alpha, beta)
                if stage == 0:
                    for j in range(hidden):
                        forget = gates[item, 2 * hidden + j]
                        if input_forget == 1:
                            forget = 1 - gates[item, j]
                        cell = forget * c[d, n, j] + gates[item, j] * gates[item, 3 * hidden + j]
                        c[d, n, j] = cell
                        gates[item, 4 * hidden + j] = cell
                        gates[item, hidden + j] += p[d, hidden + j] * cell
            for j in range(hidden):
                state = gates[item, hidden + j] * gates[item, 4 * hidden + j]
                h[d, n, j] = state
                y[t, d, n, j] = state
    return 0


def _args(call: Call) -> Sequence[Any]:
    a = call.attrs
    return [int(a.direction == "reverse"), int(a.input_forget), a.clip, *rnn.activation_numbers(call, USUAL)]


def _decompose(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    x, w, r, bias, h0, c0, p, lengths = operands
    size = r.shape[2]
    sets = rnn.activations(call, USUAL)
    per_direction = []
    for d in range(rnn.directions(call)):
        f_act, g_act, h_act = sets[d]
        both = rnn.row(b, bias, d)
        total = b.add(rnn.part(b, both, 0, 0, size * 4), rnn.part(b, both, 0, size * 4, size * 4))
        projected = rnn.project(b, x, rnn.row(b, w, d), total)
        recurrent = b.transpose(rnn.row(b, r, d), perm=[1, 0])

        def step(
            s: Builder, element: Value, states: list[Value], captures: list[Value],
            f_act: rnn.Activation = f_act, g_act: rnn.Activation = g_act, h_act: rnn.Activation = h_act,
        ) -> list[Value]:  # fmt: skip
            h, c = states
            weights, peep = captures
            gates = s.add(element, s.matmul(h, weights))
            i, o, f, g = (rnn.part(s, gates, 1, size * k, size) for k in range(4))
            pi, po, pf = (rnn.part(s, peep, 0, size * k, size) for k in range(3))

            def gate(act: rnn.Activation, v: Value) -> Value:
                return rnn.build_activation(s, act, rnn.build_clip(s, call, v))

            i = gate(f_act, s.add(i, s.mul(pi, c)))
            f = s.sub(s.like(1, i), i) if call.attrs.input_forget else gate(f_act, s.add(f, s.mul(pf, c)))
            c = s.add(s.mul(f, c), s.mul(i, gate(g_act, g)))
            o = gate(f_act, s.add(o, s.mul(po, c)))
            return [s.mul(o, rnn.build_activation(s, h_act, c)), c]

        starts = [rnn.row(b, h0, d), rnn.row(b, c0, d)]
        captures = [recurrent, rnn.row(b, p, d)]
        per_direction.append(rnn.build_direction(b, call, d, projected, starts, captures, lengths, step))
    return rnn.stack_directions(b, per_direction)


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    def call(
        sizes: tuple[int, int, int, int], lengths: Sequence[int], direction: str = "forward", **attrs: Any
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        count = 2 if direction == "bidirectional" else 1
        arrays = rnn.example_arrays(7, 4, 8, sizes, count)
        rng = np.random.default_rng(8)
        c0 = rng.standard_normal(arrays[4].shape).astype(np.float32)
        p = rng.standard_normal((count, 3 * sizes[3])).astype(np.float32)
        return [*arrays, c0, p, np.array(lengths, np.int64)], {"direction": direction, **attrs}

    return [
        call((3, 2, 3, 2), (3, 3)),
        call((4, 3, 2, 3), (4, 1, 2), "bidirectional", clip=0.8),
        call((3, 2, 2, 2), (2, 3), "reverse", input_forget=True, activations=("HardSigmoid", "Softsign", "Affine")),
        call((2, 0, 3, 2), ()),
    ]


register(
    OpDef(
        name="lstm",
        doc="Long short-term memory over x[T, B, I]: all outputs y[T, D, B, H], last h and last c [D, B, H].",
        operands=rnn.operands("x", "w", "r", "b", "h0", "c0", "p"),
        attrs=(*rnn.ATTRS, Attr("input_forget", "bool", False, "forget gate = 1 - input gate")),
        infer=lambda call: rnn.result_types(call, 4, 8, USUAL, 2),
        reference=_reference,
        kind=Opaque(
            _cells,
            args=_args,
            scratch=lambda call: [(call.types[0].dtype, (rnn.work_items(call), call.types[2].shape[2] * 5))],
            role="scan",
            parallel=rnn.work_items,
        ),
        grad=rnn.gradient_through(_decompose),
        cost=rnn.recurrent_cost,
        examples=_examples,
        source="ONNX LSTM; Hochreiter and Schmidhuber, Neural Computation 1997",
    )
)
