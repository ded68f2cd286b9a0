"""Networks on signals and words: a 1-D CNN and a recurrent net for EEG, the step of a captioner."""

from __future__ import annotations

import numpy as np

import dhc
from bench.networks.net import Net, Value

relu = dhc.ops.relu


def eeg_cnn1d(net: Net) -> None:
    """A residual 1-D CNN over 23 channels of 2,048 samples (8 s at 256 Hz): kernels of 7, halved five times."""
    x = relu(net.batch_norm(net.conv(net.input("signal", (1, 23, 2048)), 64, 7)))
    for width in (64, 128, 128, 256, 256):
        y = relu(net.batch_norm(net.conv(x, width, 7, stride=2)))
        y = net.batch_norm(net.conv(y, width, 7), scale=0.5)
        x = relu(y + net.batch_norm(net.conv(x, width, 1, stride=2, gain=1.0)))
    net.output(net.linear(dhc.ops.reduce_mean(x, axes=(2,)), 2), "scores")


def lstm(net: Net, x: Value, hidden: int, bidirectional: bool = False) -> Value:
    """One layer over x[time, batch, features]: all outputs, the directions side by side."""
    steps, batch, features = x.shape
    directions = 2 if bidirectional else 1
    deviation = hidden**-0.5 / 3**0.5
    y, _, _ = dhc.ops.lstm(
        x,
        net.normal((directions, 4 * hidden, features), deviation),
        net.normal((directions, 4 * hidden, hidden), deviation),
        net.normal((directions, 8 * hidden), deviation),
        *(net.fixed(np.zeros((directions, batch, hidden), np.float32)) for _ in range(2)),
        net.fixed(np.zeros((directions, 3 * hidden), np.float32)),
        net.fixed(np.full(batch, steps, np.int64)),
        direction="bidirectional" if bidirectional else "forward",
    )
    return y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden)


def bilstm_seizure(net: Net) -> None:
    """Two bidirectional layers of 64 over 512 steps of 23 channels, as for seizure detection."""
    x = net.input("signal", (512, 1, 23))
    for _ in range(2):
        x = lstm(net, x, 64, bidirectional=True)
    x = dhc.ops.reduce_mean(x, axes=(0,))
    net.output(net.linear(relu(net.linear(x, 64, gain=2.0)), 2), "scores")


def caption_step(net: Net) -> None:
    """One step of a captioner: attention over 49 places, an LSTM cell, scores of 10,000 words.

    After Vinyals et al., CVPR 2015, and Xu et al., ICML 2015.
    """
    width = 512
    places = net.input("features", (1, 49, width))
    word, h, c = net.input("word", (1, width)), net.input("h", (1, width)), net.input("c", (1, width))
    seen = dhc.ops.tanh(net.linear(places, width) + net.linear(h, width, bias=False).reshape(1, 1, width))
    weights = dhc.ops.softmax(net.linear(seen, 1).reshape(1, 1, 49), axis=-1)
    context = dhc.ops.matmul(weights, places).reshape(1, width)
    gates = net.linear(dhc.ops.concat(word, context, axis=1), 4 * width) + net.linear(h, 4 * width)
    i, f, g, o = (gates[:, k * width : (k + 1) * width] for k in range(4))
    sigmoid, tanh = dhc.ops.sigmoid, dhc.ops.tanh
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    net.output(net.linear(h, 10000), "scores")
    net.output(h, "next_h")
    net.output(c, "next_c")
