"""Small networks of every kind of kernel: convolutions, contractions, reductions, recurrences, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import Builder, Graph


def _weights(b: Builder, seed: int, *shape: int) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])
    return b.constant(values.astype(np.float32), "f32")


def convolutions() -> Graph:
    """Convolutions with branches that are concatenated, a residual sum, pooling and a transposed convolution."""
    graph = Graph("convolutions")
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 3, 19, 23))
    stem = b.relu(b.conv(x, _weights(b, 0, 16, 3, 3, 3), _weights(b, 1, 16), pads_low=(1, 1), pads_high=(1, 1)))
    left = b.sigmoid(b.conv(stem, _weights(b, 2, 8, 16, 1, 1), _weights(b, 3, 8)))
    right = b.tanh(b.conv(stem, _weights(b, 4, 8, 4, 3, 3), pads_low=(1, 1), pads_high=(1, 1), groups=4))
    joined = b.add(b.concat(left, right, axis=1), stem)
    pooled = b.max_pool(joined, kernel=(2, 2), strides=(2, 2))
    up = b.conv_transpose(pooled, _weights(b, 5, 16, 5, 2, 2), strides=(2, 2))
    graph.output(up, b.reduce_mean(pooled, axes=(2, 3)))
    return graph


def dense() -> Graph:
    """Matrix products, bias, activation, softmax and layer normalisation."""
    graph = Graph("dense")
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 70))
    hidden = b.relu(b.add(b.matmul(x, _weights(b, 0, 70, 129)), _weights(b, 1, 129)))
    scores = b.matmul(hidden, _weights(b, 2, 129, 33))
    graph.output(b.softmax(scores, axis=-1), b.layer_norm(scores, _weights(b, 3, 33), _weights(b, 4, 33)))
    return graph


def attention() -> Graph:
    """Batched products of values that are no constants."""
    graph = Graph("attention")
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 4, 37, 16))
    weights = b.softmax(b.matmul(x, b.transpose(x, perm=(0, 1, 3, 2))), axis=-1)
    graph.output(b.matmul(weights, x))
    return graph


def reductions() -> Graph:
    """Sums, extremes and running sums over long and short axes, in floats and integers."""
    graph = Graph("reductions")
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 41, 1031))
    graph.output(
        b.reduce_sum(x, axes=(0, 1, 2)), b.reduce_mean(x, axes=(1,)), b.logsumexp(x, axes=(2,)),
        b.reduce_max(x, axes=(0,)), b.argmax(x, axis=2), b.cumsum(x, axis=1), b.reduce_prod(x, axes=(0, 1)),
        b.reduce_sum(b.cast(x, dtype="f16"), axes=(2,)),
    )  # fmt: skip
    return graph


def recurrence() -> Graph:
    """A bidirectional LSTM and a GRU over a sequence."""
    graph = Graph("recurrence")
    b = Builder(graph)
    x = graph.input("x", "f32", (6, 3, 9))
    lengths = b.constant([6, 2, 4], "i64")
    state, peepholes = b.constant(np.zeros((2, 3, 7)), "f32"), b.constant(np.zeros((2, 21)), "f32")
    lstm = b.lstm(
        x, _weights(b, 0, 2, 28, 9), _weights(b, 1, 2, 28, 7), _weights(b, 2, 2, 56), state, state, peepholes, lengths,
        direction="bidirectional",
    )  # fmt: skip
    first = b.constant(np.zeros((1, 3, 7)), "f32")
    gru = b.gru(x, _weights(b, 3, 1, 21, 9), _weights(b, 4, 1, 21, 7), _weights(b, 5, 1, 42), first, lengths)
    graph.output(*lstm, *gru)
    return graph


def chosen() -> Graph:
    """Sorting, gathering, resizing and sizes that depend on data."""
    graph = Graph("chosen")
    b = Builder(graph)
    x = graph.input("x", "f32", ("N", 40))
    values, places = b.topk(x, k=7, axis=1)
    found = b.nonzero(b.gt(x, b.constant(0.5, "f32")), count="found")
    graph.output(values, places, found, b.gather_elements(x, places, axis=1), b.softmax(values, axis=0))
    return graph


MODELS: dict[str, Callable[[], Graph]] = {
    f.__name__: f for f in (convolutions, dense, attention, reductions, recurrence, chosen)
}


def inputs_of(graph: Graph, batch: int = 3) -> dict[str, np.ndarray]:
    """Normal numbers, with some ties."""
    rng = np.random.default_rng(5)
    shapes = {v.name: tuple(d if isinstance(d, int) else batch for d in v.shape) for v in graph.inputs}
    return {n: np.round(rng.standard_normal(s) * 16).astype(np.float32) / 16 for n, s in shapes.items()}
