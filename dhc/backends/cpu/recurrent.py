"""Recurrent layers as two kernels: one matrix product for the inputs of all steps, then the steps themselves.

Taken are f32 layers with constant weights and biases, the usual activations, no clipping and no peepholes, in any
direction, with any lengths and initial states. The others run as the opaque function of their op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dhc.backends.cpu.contract import registry as generators
from dhc.backends.cpu.contract.matmul import rows_beyond_tiles
from dhc.backends.cpu.contract.recurrent import RecurrentSpec, emit_recurrent, pack_gates, pack_recurrent
from dhc.backends.cpu.contract.spec import KernelCode, MatmulSpec
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import symbols
from dhc.ir.dtypes import f32
from dhc.ir.graph import Node, Value
from dhc.ir.op import Call
from dhc.ir.ops import gru, lstm, rnn
from dhc.ir.ops import recurrent as layers
from dhc.ir.symbols import Dim

_USUAL = {"lstm": lstm.USUAL, "gru": gru.USUAL, "rnn": rnn.USUAL}


@dataclass(frozen=True)
class PlannedRecurrent:
    """A recurrent layer that has kernels of its own.

    Attributes:
        project: the matrix product ``x w + bias``; buffers ``x``, ``weights``, ``bias``, the projection.
        weights: its packed weights and its bias.
        project_params: its run-time sizes.
        projected: shape of the projection.
        steps: the kernel of the steps; buffers: the projection, `operands`, the results.
        operands: packed hidden weights, then values.
        params: its run-time sizes.
    """

    project: KernelCode
    weights: tuple[np.ndarray, np.ndarray]
    project_params: tuple[Dim, ...]
    projected: tuple[Dim, ...]
    steps: KernelCode
    operands: tuple[Value | np.ndarray, ...]
    params: tuple[Dim, ...]


def plan_recurrent(node: Node, target: CpuTarget) -> PlannedRecurrent | None:
    """Plans the kernels of an `lstm`, `gru` or `rnn`; None when it runs as its opaque function."""
    cell = _cell(node)
    if cell is None:
        return None
    spec = RecurrentSpec(cell)
    operands = dict(zip((o.name for o in node.op.operands), node.operands))
    arrays = {name: _constant(operands[name]) for name in ("w", "r", "b")}
    if any(a is None or a.size == 0 for a in arrays.values()):
        return None
    if "p" in operands:
        peepholes = _constant(operands["p"])
        if peepholes is None or peepholes.any():
            return None
    w, r, b = (a for a in arrays.values() if a is not None)
    count, hidden = r.shape[0], r.shape[2]
    gates = spec.gates
    bias = b[:, : gates * hidden] + b[:, gates * hidden :]
    inner: list[Value | np.ndarray] = []
    if spec.has_inner_bias:
        bias[:, 2 * hidden :] = b[:, 2 * hidden : 3 * hidden]
        inner = [pack_gates(target, 1, b[:, 5 * hidden :]).reshape(-1)]
    steps, batch, features = operands["x"].shape
    columns = pack_gates(target, gates, w).reshape(-1, w.shape[2])
    rows: Dim = symbols.product((steps, batch))
    project = MatmulSpec(packed_b=True, bias="n", last_rows=rows_beyond_tiles(rows, target, "f32"))
    packed = generators.pack_weights(project, target, np.ascontiguousarray(columns.T))
    width = columns.shape[0]
    states = [operands["h0"], *([operands["c0"]] if spec.has_cell else [])]
    reverse = int(node.attrs["direction"] == "reverse")
    return PlannedRecurrent(
        project=generators.emit(project, target),
        weights=(packed, pack_gates(target, gates, bias).reshape(-1)),
        project_params=(1, 1, 1, rows, width, features, 0, 0, 0, 0, 0, 0),
        projected=(rows, width),
        steps=emit_recurrent(spec, target),
        operands=(pack_recurrent(target, gates, r), *inner, *states, operands["lengths"]),
        params=(steps, batch, hidden, count, reverse),
    )


def _cell(node: Node) -> str | None:
    if node.op.name not in _USUAL or node.operands[0].dtype != f32:
        return None
    attrs = node.attrs
    if attrs["clip"] or attrs.get("input_forget") or (node.op.name == "gru" and not attrs["linear_before_reset"]):
        return None
    usual = _USUAL[node.op.name]
    sets = [tuple(a.name for a in each) for each in layers.activations(Call.of(node), usual)]
    if node.op.name != "rnn":
        return node.op.name if _all(sets, usual) else None
    return "rnn_tanh" if _all(sets, ("Tanh",)) else "rnn_relu" if _all(sets, ("Relu",)) else None


def _all(sets: Sequence[tuple[str, ...]], wanted: tuple[str, ...]) -> bool:
    return all(each == wanted for each in sets)


def _constant(value: Value) -> np.ndarray | None:
    producer = value.producer
    if producer is None or producer.op.name != "constant":
        return None
    array: np.ndarray = producer.attrs["value"]
    return array
