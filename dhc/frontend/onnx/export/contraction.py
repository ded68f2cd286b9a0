"""Matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.constants import constant_of
from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir.graph import Node, Value
from dhc.ir.symbols import Dim


@exports("matmul")
def matmul(w: GraphWriter, node: Node) -> Any:
    """MatMul; operands of narrower integers are widened first."""
    names = w.operands(node)
    out = node.result.dtype
    names = [n if t.dtype == out else w.cast(n, out) for n, t in zip(names, node.types)]
    if out.is_float or out.name in ("i32", "i64", "u32", "u64"):
        return w.node("MatMul", names)
    wide = "u32" if out.kind == "u" else "i32"
    return w.cast(w.node("MatMul", [w.cast(n, wide) for n in names]), out)


@exports("conv")
def conv(w: GraphWriter, node: Node) -> Any:
    """Conv; integer convolutions as ConvInteger, or in f64, which holds their sums exactly."""
    x, weights, *bias = w.operands(node)
    if node.result.dtype.is_float:
        out = node.result.dtype
        names = [n if t.dtype == out else w.cast(n, out) for n, t in zip([x, weights, *bias], node.types)]
        names[0], pads = _padded(w, names[0], node, w.constant(0, out))
        return w.node("Conv", names, **_attributes(node, pads))
    made = _conv_integer(w, node)
    if made is None:
        x, weights = w.cast(x, "f64"), w.cast(weights, "f64")
        x, pads = _padded(w, x, node, w.constant(0, "f64"))
        made = w.cast(w.cast(w.node("Conv", [x, weights], **_attributes(node, pads)), "i64"), node.result.dtype)
    if bias:
        channels = node.types[2].shape[0]
        column = w.reshape(bias[0], (channels, *(1,) * (node.types[0].rank - 2)))
        made = w.node("Add", [made, column])
    return made


def _attributes(node: Node, pads: list[int]) -> dict[str, Any]:
    a = node.attrs
    return {
        "kernel_shape": [int(k) for k in node.types[1].shape[2:]],
        "strides": list(a["strides"]) or None,
        "dilations": list(a["dilations"]) or None,
        "pads": pads or None,
        "group": a["groups"],
    }


def _padded(w: GraphWriter, x: str, node: Node, zero: str) -> tuple[str, list[int]]:
    """Pads that are attributes in ONNX; symbolic or negative ones become a Pad node."""
    low, high = node.attrs["pads_low"], node.attrs["pads_high"]
    return pad_first(w, x, low, high, zero)


def pad_first(w: GraphWriter, x: str, low: Any, high: Any, value: str) -> tuple[str, list[int]]:
    """The operand and the pads that stay attributes."""
    both: list[Dim] = [*low, *high]
    if all(isinstance(p, int) and p >= 0 for p in both):
        return x, [int(p) for p in both]  # type: ignore[arg-type]
    widths = w.shape([0, 0, *low, 0, 0, *high])
    return w.node("Pad", [x, widths, value]), []


def _conv_integer(w: GraphWriter, node: Node) -> str | None:
    """ConvInteger where the operands are 8-bit integers minus zero points."""
    data, weights = (_shifted(v) for v in node.operands[:2])
    if data is None or weights is None or node.result.dtype.name != "i32":
        return None
    low, high = node.attrs["pads_low"], node.attrs["pads_high"]
    if any(not isinstance(p, int) or p < 0 for p in (*low, *high)):
        return None
    (x, x_zero), (k, k_zero) = data, weights
    if x_zero is not None and x_zero.type.numel != 1:
        return None
    zeros = [_one_zero_point(x_zero), _one_zero_point(k_zero)]
    if None in zeros:
        return None
    inputs = []
    for value, zero in ((x, zeros[0]), (k, zeros[1])):
        name = w[value]
        if value.dtype.name == "i8":  # runtimes know ConvInteger of unsigned data; moving both by 128 changes nothing
            name = w.cast(w.node("Add", [w.cast(name, "i32"), w.constant(128, "i32")]), "u8")
            zero = (zero or 0) + 128
        inputs.append((name, w.constant(zero, "u8")))
    pads = [int(p) for p in (*low, *high)]
    names = [inputs[0][0], inputs[1][0], inputs[0][1], inputs[1][1]]
    return str(w.node("ConvInteger", names, **_attributes(node, pads)))


def _shifted(value: Value) -> tuple[Value, Value | None] | None:
    """(x, zero point) of ``cast(x) - cast(zero)`` or ``cast(x)`` with an 8-bit x."""
    node = value.producer
    if node is None:
        return None
    if node.op.name == "cast" and node.types[0].dtype.name in ("i8", "u8"):
        return node.operands[0], None
    if node.op.name != "sub" or any(v.producer is None or v.producer.op.name != "cast" for v in node.operands):
        return None
    x, zero = (v.producer.operands[0] for v in node.operands if v.producer is not None)
    return (x, zero) if x.dtype.name in ("i8", "u8") and zero.dtype == x.dtype else None


def _one_zero_point(zero: Value | None) -> int | None:
    """The zero point as one number; None when it is not known or differs between channels."""
    if zero is None:
        return 0
    while zero.producer is not None and zero.producer.op.name == "reshape":
        zero = zero.producer.operands[0]
    array = constant_of(zero)
    if array is None or len(np.unique(array)) != 1:
        return None
    return int(array.reshape(-1)[0])


@exports("conv_transpose")
def conv_transpose(w: GraphWriter, node: Node) -> Any:
    """ConvTranspose."""
    a = node.attrs
    numbers = (*a["pads_low"], *a["pads_high"], *a["output_padding"])
    if any(not isinstance(p, int) for p in numbers):
        w.unsupported("pads that depend on sizes are attributes in ONNX")
    pads = [*a["pads_low"], *a["pads_high"]]
    attributes = _attributes(node, [max(p, 0) for p in pads])
    output_padding = list(a["output_padding"]) if any(a["output_padding"]) else None
    out = node.result.dtype
    if out.is_float and all(p >= 0 for p in pads):
        return w.node("ConvTranspose", w.operands(node), output_padding=output_padding, **attributes)
    # Negative pads enlarge the result by positions that only the bias reaches. Integers are summed in f64.
    x, weights, *bias = w.operands(node)
    if not out.is_float:
        x, weights = w.cast(x, "f64"), w.cast(weights, "f64")
    made = w.node("ConvTranspose", [x, weights], output_padding=output_padding, **attributes)
    rank = len(pads) // 2
    widths = [max(-p, 0) for p in pads]
    made = w.node("Pad", [made, w.ints(0, 0, *widths[:rank], 0, 0, *widths[rank:])])
    if not out.is_float:
        made = w.cast(w.cast(made, "i64"), out)
    if bias:
        made = w.node("Add", [made, w.reshape(bias[0], (node.types[2].shape[0], *(1,) * rank))])
    return made
