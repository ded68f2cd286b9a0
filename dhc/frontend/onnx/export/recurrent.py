"""Recurrent ops."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node


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


@exports("lstm")
def lstm(w: GraphWriter, node: Node) -> Any:
    """LSTM; lengths are i32 in ONNX."""
    x, weights, recurrence, bias, h0, c0, peepholes, lengths = w.operands(node)
    inputs = [x, weights, recurrence, bias, w.cast(lengths, "i32"), h0, c0, peepholes]
    forget = int(node.attrs["input_forget"])
    return w.node("LSTM", inputs, outputs=3, input_forget=forget, **_attributes(node))


@exports("gru")
def gru(w: GraphWriter, node: Node) -> Any:
    """GRU."""
    x, weights, recurrence, bias, h0, lengths = w.operands(node)
    inputs = [x, weights, recurrence, bias, w.cast(lengths, "i32"), h0]
    linear = int(node.attrs["linear_before_reset"])
    return w.node("GRU", inputs, outputs=2, linear_before_reset=linear, **_attributes(node))


@exports("rnn")
def rnn(w: GraphWriter, node: Node) -> Any:
    """RNN."""
    x, weights, recurrence, bias, h0, lengths = w.operands(node)
    inputs = [x, weights, recurrence, bias, w.cast(lengths, "i32"), h0]
    return w.node("RNN", inputs, outputs=2, **_attributes(node))
