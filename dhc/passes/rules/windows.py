"""What moves into windows: zeros around the operand of a convolution are its own padding; what only sees them goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.graph import Node, Value
from dhc.passes.base import Refusal
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import constant_of, splat_of


@rule("pad_into_convolution", "conv")
def _pad_into_convolution(b: Builder, node: Node) -> Rewritten:
    """conv(pad(x, 0)) pads by itself."""
    pad = node.operands[0].producer
    if pad is None or pad.op.name != "pad":
        return None
    low, high = pad.attrs["low"], pad.attrs["high"]
    widths = (*low, *high)
    zero = splat_of(pad.operands[1])
    if pad.attrs["mode"] != "constant" or zero != 0 or math.copysign(1, zero) < 0:
        return Refusal.at("pad_into_convolution", node, "the padding is not zeros")
    if any(not isinstance(d, int) or d < 0 for d in widths) or any((*low[:2], *high[:2])):
        return Refusal.at("pad_into_convolution", node, "the padding is not of known width around space alone")
    own = len(low) - 2
    before = tuple(node.attrs["pads_low"]) or (0,) * own
    behind = tuple(node.attrs["pads_high"]) or (0,) * own
    attrs = {
        **node.attrs,
        "pads_low": tuple(p + d for p, d in zip(before, low[2:])),
        "pads_high": tuple(p + d for p, d in zip(behind, high[2:])),
    }
    result: Value = b.call("conv", pad.operands[0], *node.operands[1:], attrs=attrs)
    return result


@rule("taps_on_padding", "conv")
def _taps_on_padding(b: Builder, node: Node) -> Rewritten:
    """Rows of a kernel that never meet the operand go: wide dilation on a small map, as in pyramids of dilations."""
    x, weights = node.types[0], node.types[1]
    spans = []
    for axis in range(x.rank - 2):
        sizes = (x.shape[2 + axis], node.result.shape[2 + axis], weights.shape[2 + axis])
        pads = tuple(node.attrs[key][axis] if node.attrs[key] else 0 for key in ("pads_low", "pads_high"))
        if any(not isinstance(d, int) for d in (*sizes, *pads)):
            return None
        steps = tuple(node.attrs[key][axis] if node.attrs[key] else 1 for key in ("strides", "dilations"))
        spans.append(_used_taps(sizes, pads, steps))
    if all(first == 0 and last == size for (first, last), size in zip(spans, weights.shape[2:])):
        return None
    array = constant_of(node.operands[1])
    if array is None or not bool(np.all(np.isfinite(array.astype(np.float64)))):
        return Refusal.at(
            "taps_on_padding", node, "the weights are not known to be finite, and zero times infinity counts"
        )
    dilations = node.attrs["dilations"] or (1,) * len(spans)
    low, high = (tuple(node.attrs[key]) or (0,) * len(spans) for key in ("pads_low", "pads_high"))
    attrs = {
        **node.attrs,
        "dilations": tuple(d if last - first > 1 else 1 for d, (first, last) in zip(dilations, spans)),
        "pads_low": tuple(p - first * d for p, (first, _), d in zip(low, spans, dilations)),
        "pads_high": tuple(
            p - (size - last) * d for p, (_, last), size, d in zip(high, spans, weights.shape[2:], dilations)
        ),
    }
    kept = np.ascontiguousarray(array[(slice(None), slice(None), *(slice(*span) for span in spans))])
    result: Value = b.call("conv", node.operands[0], b.constant(kept, weights.dtype), *node.operands[2:], attrs=attrs)
    return result


def _used_taps(sizes: Sequence[int], pads: Sequence[int], steps: Sequence[int]) -> tuple[int, int]:
    """First and end of the taps of one axis that meet the operand; outer ones only, as long as pads allow.

    Args:
        sizes: of the operand, the result and the kernel.
        pads: before and behind.
        steps: stride and dilation.
    """
    size, out, taps = sizes
    stride, dilation = steps

    def meets(tap: int) -> bool:
        start = tap * dilation - pads[0]
        first = max(-(start // stride), 0)  # the first position whose element is not before the operand
        return first < out and start + first * stride < size

    first, last = 0, taps
    while first < last - 1 and not meets(first) and pads[0] >= (first + 1) * dilation:
        first += 1
    while first < last - 1 and not meets(last - 1) and pads[1] >= (taps - last + 1) * dilation:
        last -= 1
    return first, last


WINDOWS = (_pad_into_convolution, _taps_on_padding)
