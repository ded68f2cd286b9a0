"""A new element-wise op: one record, and it has a builder, text form, reference, gradient and native code."""

from __future__ import annotations

import numpy as np

import dhc
from dhc import ops
from dhc.ir import OpDef, Operand, register
from dhc.ir.dtypes import f32, f64
from dhc.ir.inference import same_type
from dhc.ir.kinds import Elementwise

SOFT_THRESHOLD = register(
    OpDef(
        name="soft_threshold",
        doc="x - tanh(x): small values vanish, large ones stay.",
        operands=(Operand("x", frozenset({f32, f64})),),
        infer=same_type,
        reference=lambda call, x: x - np.tanh(x),
        kind=Elementwise(lambda call, x: x - _tanh(x)),
        grad=lambda b, node, g: (b.mul(g, b.mul(b.tanh(node.operands[0]), b.tanh(node.operands[0]))),),
        source="wavelet shrinkage (Donoho, 1995), smooth form",
    )
)


def _tanh(x: object) -> object:
    from dhc.ir.scalar import unary

    return unary("tanh", x)  # type: ignore[arg-type]


def main() -> None:
    """Uses the op like any other."""
    graph = dhc.Graph("shrink")
    x = graph.input("x", "f32", ["N"])
    graph.output(ops.soft_threshold(x), names=["y"])
    values = np.linspace(-4, 4, 9, dtype=np.float32)
    compiled = graph.compile("cpu").run({"x": values})["y"]
    (reference,) = graph.evaluate(values)
    print(np.c_[values, compiled, reference])
    np.testing.assert_allclose(compiled, reference, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    main()
