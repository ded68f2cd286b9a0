"""Recurrent ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.constants import constant_of
from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node, Value


def _attributes(node: Node) -> dict[str, Any]:
    a = node.attrs
    return {
        "direction": a["direction"],
        "hidden_size": node.types[2].shape[2],
        "activations": list(a["activations"]) or None,
        "activation_alpha": list(a["alphas"]) or None,
        "activation_beta": list(a["betas"]) or None,
        "clip": a["clip"] or None,
    }


def _state(w: GraphWriter, value: Value) -> str:
    """A start state or peepholes; left out where they are known to be zero, since many readers know no other."""
    array = constant_of(value)
    return "" if array is not None and not np.any(array) else w[value]


def _lengths(w: GraphWriter, node: Node) -> str:
    """Lengths are i32 in ONNX; left out where each is known to be the whole sequence."""
    array = constant_of(node.operands[-1])
    steps = node.types[0].shape[0]
    if array is not None and isinstance(steps, int) and np.all(array == steps):
        return ""
    return w.cast(w[node.operands[-1]], "i32")


@exports("lstm")
def lstm(w: GraphWriter, node: Node) -> Any:
    """LSTM."""
    x, weights, recurrence, bias, *_ = w.operands(node)
    h0, c0, peepholes = (_state(w, value) for value in node.operands[4:7])
    inputs = [x, weights, recurrence, bias, _lengths(w, node), h0, c0, peepholes]
    forget = int(node.attrs["input_forget"])
    return w.node("LSTM", inputs, outputs=3, input_forget=forget, **_attributes(node))


@exports("gru")
def gru(w: GraphWriter, node: Node) -> Any:
    """GRU."""
    x, weights, recurrence, bias, *_ = w.operands(node)
    inputs = [x, weights, recurrence, bias, _lengths(w, node), _state(w, node.operands[4])]
    linear = int(node.attrs["linear_before_reset"])
    return w.node("GRU", inputs, outputs=2, linear_before_reset=linear, **_attributes(node))


@exports("rnn")
def rnn(w: GraphWriter, node: Node) -> Any:
    """RNN."""
    x, weights, recurrence, bias, *_ = w.operands(node)
    inputs = [x, weights, recurrence, bias, _lengths(w, node), _state(w, node.operands[4])]
    return w.node("RNN", inputs, outputs=2, **_attributes(node))
