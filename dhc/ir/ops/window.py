"""Geometry of sliding windows in 1 to 3 dimensions: convolutions and pools share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.kinds import Index
from dhc.ir.op import Attr, Call
from dhc.ir.symbols import Dim, Shape

STRIDES = Attr("strides", "ints", (), "step per spatial axis; none means 1")
DILATIONS = Attr("dilations", "ints", (), "distance of kernel elements per spatial axis; none means 1")
PADS_LOW = Attr("pads_low", "dims", (), "padding before the first element per spatial axis; none means 0")
PADS_HIGH = Attr("pads_high", "dims", (), "padding after the last element per spatial axis; none means 0")
WINDOW = (STRIDES, DILATIONS, PADS_LOW, PADS_HIGH)


@dataclass(frozen=True)
class Window:
    """A window that slides over the spatial axes of ``x[N, C, *spatial]``.

    Attributes:
        spatial: sizes of the spatial axes of the operand.
        kernel: elements of the window per axis.
        strides: steps between windows.
        dilations: distances between elements of a window.
        low: padding before each axis, negative crops.
        high: padding after each axis, negative crops.
    """

    spatial: Shape
    kernel: Shape
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: Shape
    high: Shape

    @classmethod
    def of(cls, call: Call, kernel: Sequence[Dim]) -> Window:
        """The window of a call; checks the attributes' lengths and signs.

        Raises:
            ShapeError: the operand is not ``[N, C, 1 to 3 spatial axes]`` or an attribute does not fit.
        """
        rank = call.types[0].rank - 2
        if not 1 <= rank <= 3:
            call.fail("needs an operand [N, C, *spatial] with 1 to 3 spatial axes")
        if len(kernel) != rank:
            call.fail(f"the kernel has {len(kernel)} spatial axes, the operand {rank}")
        for extent in kernel:
            if isinstance(extent, int) and extent < 1:
                call.fail(f"kernel size {extent} is not positive")

        def given(name: str, default: int) -> tuple[Any, ...]:
            values = tuple(call.attrs[name]) or (default,) * rank
            if len(values) != rank:
                call.fail(f"{name} needs {rank} values, got {len(values)}")
            return values

        window = cls(
            tuple(call.types[0].shape[2:]), tuple(kernel), given("strides", 1), given("dilations", 1),
            given("pads_low", 0), given("pads_high", 0),
        )  # fmt: skip
        if any(v < 1 for v in (*window.strides, *window.dilations)):
            call.fail("strides and dilations are positive")
        return window

    @property
    def extents(self) -> Shape:
        """Elements from the first to the last of a window, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))

    def sizes(self, call: Call) -> Shape:
        """Number of window positions per axis.

        Raises:
            ShapeError: the window does not fit into the padded operand.
        """
        result: list[Dim] = []
        for size, extent, stride, low, high in zip(self.spatial, self.extents, self.strides, self.low, self.high):
            room = size + low + high - extent
            if isinstance(room, int) and room < 0:
                call.fail(f"a window of {extent} does not fit into {size} padded by {low} and {high}")
            if not isinstance(room, int):
                call.require(symbols.minimum(room, 0), 0, f"a window of {extent} fits into {size} with its padding")
            result.append(symbols.floordiv(room, stride) + 1)
        return tuple(result)

    def source(self, position: Index, offset: Index) -> tuple[list[s.ScalarExpr], s.ScalarExpr]:
        """Spatial index in the operand of element `offset` of the window at `position`, and whether it is inside."""
        index: list[s.ScalarExpr] = []
        inside: list[s.ScalarExpr] = []
        for axis, size in enumerate(self.spatial):
            at = position[axis] * self.strides[axis] + offset[axis] * self.dilations[axis]
            at = at - s.size(self.low[axis])
            index.append(at)
            if self.low[axis] != 0:
                inside.append(at >= 0)
            if not self._never_beyond(axis):
                inside.append(at < s.size(size))
        return index, s.logical_and(*inside)

    def _never_beyond(self, axis: int) -> bool:
        return symbols.is_nonnegative(-self.high[axis])

    def positions(self) -> Iterator[tuple[int, ...]]:
        """Offsets in the kernel, row-major (sizes known)."""
        yield from np.ndindex(*(int(k) for k in self.kernel))  # type: ignore[arg-type]

    def padded(self, x: np.ndarray, value: Any) -> np.ndarray:
        """`x` with its spatial axes padded by `value`, or cropped where padding is negative (sizes known)."""
        low, high = [int(v) for v in self.low], [int(v) for v in self.high]  # type: ignore[arg-type]
        widths = [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in zip(low, high))]
        if any(max(w) for w in widths):
            x = np.pad(x, widths, constant_values=value)
        cut = [slice(None), slice(None)]
        for axis, (a, b) in enumerate(zip(low, high)):
            cut.append(slice(max(-a, 0), x.shape[axis + 2] - max(-b, 0)))
        return x[tuple(cut)]

    def taken(self, padded: np.ndarray, offset: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
        """Element `offset` of every window, as an array ``[N, C, *sizes]`` (a view of the padded operand)."""
        cut = [slice(None), slice(None)]
        for o, n, stride, dilation in zip(offset, sizes, self.strides, self.dilations):
            cut.append(slice(o * dilation, o * dilation + (n - 1) * stride + 1, stride) if n else slice(0, 0))
        return padded[tuple(cut)]


def ints(dims: Sequence[Dim]) -> tuple[int, ...]:
    """Dims that are known, as integers."""
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]
