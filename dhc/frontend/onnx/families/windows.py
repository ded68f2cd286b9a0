"""Padding rules that convolutions and pools share: auto_pad, ceil_mode, output_shape."""

from __future__ import annotations

from dataclasses import dataclass

from dhc.frontend.onnx.context import NodeContext
from dhc.ir import symbols
from dhc.ir.symbols import Dim, Shape


@dataclass(frozen=True)
class WindowAttributes:
    """Strides, dilations and pads of a node with defaults filled in, one per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[Dim, ...]
    high: tuple[Dim, ...]


def window_attributes(n: NodeContext, kernel: tuple[int, ...], spatial: Shape) -> WindowAttributes:
    """Reads the attributes of a convolution or pool.

    Raises:
        ModelError: they do not fit the number of spatial axes.
    """
    rank = len(spatial)
    strides = tuple(n.attr("strides") or (1,) * rank)
    dilations = tuple(n.attr("dilations") or (1,) * rank)
    pads = tuple(n.attr("pads") or (0,) * (2 * rank))
    if not len(kernel) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        n.invalid(f"kernel, strides, dilations and pads do not fit {rank} spatial axes")
    if any(v < 1 for v in (*strides, *dilations, *kernel)):
        n.invalid("kernel sizes, strides and dilations are positive")
    low: tuple[Dim, ...] = pads[:rank]
    high: tuple[Dim, ...] = pads[rank:]
    mode = n.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        low = high = (0,) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        padded = [
            _same(size, (k - 1) * d + 1, stride, mode == "SAME_LOWER")
            for size, k, d, stride in zip(spatial, kernel, dilations, strides)
        ]
        low, high = tuple(p[0] for p in padded), tuple(p[1] for p in padded)
    elif mode != "NOTSET":
        n.invalid(f"unknown auto_pad {mode!r}")
    return WindowAttributes(kernel, strides, dilations, low, high)


def _same(size: Dim, extent: int, stride: int, lower: bool) -> tuple[Dim, Dim]:
    """Pads such that the result has ceil(size / stride) positions; an odd one goes to the end, or to the start."""
    total = symbols.maximum((symbols.ceildiv(size, stride) - 1) * stride + extent - size, 0)
    half = symbols.floordiv(total, 2)
    return (total - half, half) if lower else (half, total - half)


def ceil_extra(n: NodeContext, w: WindowAttributes, spatial: Shape) -> tuple[Dim, ...]:
    """Extra pads at the end that ``ceil_mode`` needs; a window that starts beyond the data does not count."""
    extra: list[Dim] = []
    for axis, size in enumerate(spatial):
        if not n.attr("ceil_mode", 0):
            extra.append(0)
            continue
        stride, extent = w.strides[axis], (w.kernel[axis] - 1) * w.dilations[axis] + 1
        room = size + w.low[axis] + w.high[axis] - extent
        positions = symbols.ceildiv(room, stride) + 1
        if isinstance(positions, int) and isinstance(size, int):
            low = w.low[axis]
            if isinstance(low, int) and (positions - 1) * stride >= size + low:
                positions -= 1
            extra.append(symbols.maximum((positions - 1) * stride - room, 0))
        else:
            # The last window starts at (positions - 1) * stride; it counts when that lies before size + low.
            inside = symbols.select(size + w.low[axis] - (positions - 1) * stride, 0, 1)
            extra.append(symbols.maximum((positions - 1 - inside) * stride - room, 0))
    return tuple(extra)
