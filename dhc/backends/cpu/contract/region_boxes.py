"""Cuts the outputs of a convolution along an axis into runs of positions whose taps meet the input alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dhc.backends.cpu.llvm.builder import Function, Module, Value


def axis_regions(
    size: int, out: int, taps: int, stride: int, dilation: int, pad: int
) -> list[tuple[int, int, int, int]]:
    """(first position, end, first tap that meets the input, end of those taps) of each run, in their order.

    Args:
        size: of the input.
        out: number of output positions.
        taps: size of the kernel.
        stride: input positions from one output to the next.
        dilation: input positions from one tap to the next.
        pad: zeros before the input.
    """
    regions = []
    first = 0
    while first < out:
        start = first * stride - pad
        low = min(-(-max(-start, 0) // dilation), taps)
        high = min(-(-max(size - start, 0) // dilation), taps)
        end = out
        if low > 0:  # where the tap before enters
            end = min(end, -(-(pad - (low - 1) * dilation) // stride))
        if high > 0:  # where the last one leaves
            end = min(end, -(-(size + pad - (high - 1) * dilation) // stride))
        regions.append((first, end, low, max(high, low)))
        first = end
    return regions


def emit_next_region(module: Module, name: str) -> Function:
    """Writes ``void next(first, size, out, taps, stride, dilation, pad, to)``.

    What :func:`axis_regions` finds for the run that begins at ``first``: its end, the first tap and the number of taps
    go to the three integers at ``to``.
    """
    names = ("first", "size", "out", "taps", "stride", "dilation", "pad")
    f = module.function(name, "void", (*(("i64", n) for n in names), ("ptr", "to")))
    first, size, out, taps, stride, dilation, pad = map(f.argument, names)
    start = first * stride - pad
    low = f.minimum(f.value(f.ceildiv(f.value(f.maximum(0 - start, 0)), dilation)), taps)
    high = f.minimum(f.value(f.ceildiv(f.value(f.maximum(size - start, 0)), dilation)), taps)
    low, high = f.value(low), f.value(high)
    enters = f.value(f.ceildiv(f.value(f.maximum(pad - (low - 1) * dilation, 0)), stride))
    leaves = f.value(f.ceildiv(f.value(f.maximum(size + pad - (high - 1) * dilation, 0)), stride))
    end = f.minimum(f.select(low > 0, enters, out), f.select(high > 0, leaves, out))
    for i, value in enumerate((f.minimum(end, out), low, f.maximum(high - low, 0))):
        f.store(f.value(value), f.at(f.argument("to"), i * 8), 8)
    f.ret()
    return f


@contextmanager
def over_regions(
    f: Function, out: Value, region: Callable[[Value], tuple[Value, Value, Value]]
) -> Iterator[tuple[Value, Value, Value, Value]]:
    """Runs the body for each run: its first position, its end, its first tap, its number of taps.

    Args:
        f: the function.
        out: number of positions.
        region: end, first tap and number of taps of the run that begins at a position.
    """
    at = f.variable("i64", 0)
    with f.while_(lambda: at.get() < out):
        first = at.get()
        end, tap, taps = region(first)
        yield first, end, tap, taps
        at.set(end)
