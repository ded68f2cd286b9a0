"""Recurrent operators: missing operands are filled in, the batch-major layout is transposed."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.dtypes import bf16, f16, f32, i64
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim


class _Cell:
    """Operands that the three operators share."""

    def __init__(self, n: NodeContext, gates: int) -> None:
        self.n = n
        self.batch_major = bool(n.attr("layout", 0))
        self.dtype = n.value(0).dtype
        x = self.operand(0)
        self.x = n.b.transpose(x, perm=[1, 0, 2]) if self.batch_major else x
        self.w, self.r = self.operand(1), self.operand(2)
        directions = self.w.shape[0]
        hidden = self.r.shape[2]
        self.time, self.batch = self.x.shape[0], self.x.shape[1]
        self.directions, self.hidden = directions, hidden
        bias_shape = (directions, 2 * gates * hidden)
        self.bias = self.operand(3) if n.has(3) else n.b.full(bias_shape, 0, x.dtype)
        lengths = n.optional(4)
        if lengths is None:
            size = n.number(self.time)
            lengths = n.b.broadcast_to(size, shape=(self.batch,))
        self.lengths = lengths if lengths.dtype == i64 else n.b.cast(lengths, dtype=i64)

    def operand(self, index: int) -> Value:
        """An operand in the type that is computed in: f32 for the 16-bit floats."""
        value = self.n.value(index)
        return self.n.b.cast(value, dtype=f32) if value.dtype in (f16, bf16) else value

    def state(self, index: int) -> Value:
        """An initial state; zeros when it is not given."""
        if not self.n.has(index):
            shape: tuple[Dim, ...] = (self.directions, self.batch, self.hidden)
            zeros: Value = self.n.b.full(shape, 0, self.x.dtype)
            return zeros
        given = self.operand(index)
        return self.n.b.transpose(given, perm=[1, 0, 2]) if self.batch_major else given

    def attributes(self) -> dict[str, Any]:
        """Attributes that the three operators share."""
        n = self.n
        return {
            "direction": n.attr("direction", "forward"),
            "activations": tuple(n.attr("activations") or ()),
            "alphas": tuple(n.attr("activation_alpha") or ()),
            "betas": tuple(n.attr("activation_beta") or ()),
            "clip": n.attr("clip", 0.0),
        }

    def outputs(self, results: Any) -> list[Value]:
        """ONNX order and layout: y [T, D, B, H] (batch-major [B, T, D, H]), states [D, B, H] ([B, D, H])."""
        b = self.n.b
        y, *states = (v if v.dtype == self.dtype else b.cast(v, dtype=self.dtype) for v in results)
        if not self.batch_major:
            return [y, *states]
        return [b.transpose(y, perm=[2, 0, 1, 3]), *(b.transpose(s, perm=[1, 0, 2]) for s in states)]


@onnx_op("LSTM")
def lstm(n: NodeContext) -> list[Value]:
    """Long short-term memory."""
    cell = _Cell(n, 4)
    peepholes = cell.operand(7) if n.has(7) else n.b.full((cell.directions, 3 * cell.hidden), 0, cell.x.dtype)
    attrs = {**cell.attributes(), "input_forget": bool(n.attr("input_forget", 0))}
    operands = (cell.x, cell.w, cell.r, cell.bias, cell.state(5), cell.state(6), peepholes, cell.lengths)
    return cell.outputs(n.b.call("lstm", *operands, attrs=attrs))


@onnx_op("GRU")
def gru(n: NodeContext) -> list[Value]:
    """Gated recurrent unit."""
    cell = _Cell(n, 3)
    attrs = {**cell.attributes(), "linear_before_reset": bool(n.attr("linear_before_reset", 0))}
    operands = (cell.x, cell.w, cell.r, cell.bias, cell.state(5), cell.lengths)
    return cell.outputs(n.b.call("gru", *operands, attrs=attrs))


@onnx_op("RNN")
def rnn(n: NodeContext) -> list[Value]:
    """Plain recurrent cell."""
    cell = _Cell(n, 1)
    operands = (cell.x, cell.w, cell.r, cell.bias, cell.state(5), cell.lengths)
    return cell.outputs(n.b.call("rnn", *operands, attrs=cell.attributes()))
