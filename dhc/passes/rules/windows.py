"""What moves into windows: zeros around the operand of a convolution are its own padding."""

from __future__ import annotations

import math

from dhc.ir.builder import Builder
from dhc.ir.graph import Node, Value
from dhc.passes.base import Refusal
from dhc.passes.rewrite import Rewritten, rule
from dhc.passes.rules.known import splat_of


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


WINDOWS = (_pad_into_convolution,)
