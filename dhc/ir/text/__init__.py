"""The text form of graphs: one node a line, lossless, and read back with errors that point at the place.

    graph @main(%x: f32[N, 4]) -> (%y: f32[N, 4] as "logits") {
      %half = constant() {value = dense<f32[]: 0.5>, dtype = f32} : f32[]
      %y = mul(%x, %half) : f32[N, 4]  loc("net.onnx", node = "scale", op = "Mul")
      return %y
    }

`docs/ir.md` describes the grammar. Printing, parsing and printing again gives the same text.
"""

from __future__ import annotations

from dhc.ir.text.parser import parse_graph
from dhc.ir.text.printer import print_graph

__all__ = ["parse_graph", "print_graph"]
