"""The simple recurrent network: h = f(x w^T + h r^T + biases)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.graph import Value
from dhc.ir.kinds import Opaque
from dhc.ir.op import Call, OpDef
from dhc.ir.ops import recurrent as rnn
from dhc.ir.ops.recurrent import activated
from dhc.ir.registry import register

USUAL = ("Tanh",)


def _reference(
    call: Call,
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray,
    h0: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, ...]:
    size = h0.shape[2]
    sets = rnn.activations(call, USUAL)

    def step(direction: int, element: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
        (h,) = states
        bias = b[direction, :size] + b[direction, size:]
        total = element @ w[direction].T + h @ r[direction].T + bias
        return [rnn.apply(sets[direction][0], rnn.clipped(call, total))]

    return rnn.run_reference(call, x, (h0,), lengths, step)


def _cells(  # type: ignore[no-untyped-def]
    x, w, r, b, h0, lengths, y, h, new, backward, clip, f0, f0_alpha, f0_beta, f1, f1_alpha, f1_beta, begin, end,
):  # fmt: skip
    """Steps of the items begin..end of (direction, batch). `new` holds the next state of each item."""
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
            for k in range(hidden):
                total = b[d, k] + b[d, hidden + k]
                for i in range(features):
                    total += w[d, k, i] * x[t, n, i]
                for i in range(hidden):
                    total += r[d, k, i] * h[d, n, i]
                v = float(total)
                if clip > 0:
                    v = min(max(v, -clip), clip)
                code, alpha, beta = f0, f0_alpha, f0_beta
                if d == 1:
                    code, alpha, beta = f1, f1_alpha, f1_beta
                new[item, k] = activated(v, code, alpha, beta)
            for j in range(hidden):
                h[d, n, j] = new[item, j]
                y[t, d, n, j] = new[item, j]
    return 0


def _args(call: Call) -> Sequence[Any]:
    a = call.attrs
    return [int(a.direction == "reverse"), a.clip, *rnn.activation_numbers(call, USUAL)]


def _decompose(b: Builder, operands: Sequence[Value], call: Call) -> list[Value]:
    x, w, r, bias, h0, lengths = operands
    size = r.shape[2]
    sets = rnn.activations(call, USUAL)
    per_direction = []
    for d in range(rnn.directions(call)):
        both = rnn.row(b, bias, d)
        total = b.add(rnn.part(b, both, 0, 0, size), rnn.part(b, both, 0, size, size))
        projected = rnn.project(b, x, rnn.row(b, w, d), total)
        recurrent = b.transpose(rnn.row(b, r, d), perm=[1, 0])

        def step(
            s: Builder, element: Value, states: list[Value], captures: list[Value], act: rnn.Activation = sets[d][0]
        ) -> list[Value]:
            product = s.add(element, s.matmul(states[0], captures[0]))
            return [rnn.build_activation(s, act, rnn.build_clip(s, call, product))]

        starts = [rnn.row(b, h0, d)]
        per_direction.append(rnn.build_direction(b, call, d, projected, starts, [recurrent], lengths, step))
    return rnn.stack_directions(b, per_direction)


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    def call(
        sizes: tuple[int, int, int, int], lengths: Sequence[int], direction: str = "forward", **attrs: Any
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        arrays = rnn.example_arrays(10, 1, 2, sizes, 2 if direction == "bidirectional" else 1)
        return [*arrays, np.array(lengths, np.int64)], {"direction": direction, **attrs}

    return [
        call((3, 2, 3, 2), (3, 3)),
        call((4, 3, 2, 3), (4, 1, 2), "bidirectional", activations=("Relu", "Softplus"), clip=0.7),
        call((3, 2, 2, 2), (2, 3), "reverse", activations=("Elu",), alphas=(0.5,)),
        call((2, 0, 3, 2), ()),
    ]


register(
    OpDef(
        name="rnn",
        doc="Simple recurrent network over x[T, B, I]: all outputs y[T, D, B, H] and the last h[D, B, H].",
        operands=rnn.operands("x", "w", "r", "b", "h0"),
        attrs=rnn.ATTRS,
        infer=lambda call: rnn.result_types(call, 1, 2, USUAL, 1),
        reference=_reference,
        kind=Opaque(
            _cells,
            args=_args,
            scratch=lambda call: [(call.types[0].dtype, (rnn.work_items(call), call.types[2].shape[2]))],
            role="scan",
            parallel=rnn.work_items,
        ),
        grad=rnn.gradient_through(_decompose),
        cost=rnn.recurrent_cost,
        examples=_examples,
        source="ONNX RNN; Elman, Cognitive Science 1990",
    )
)
