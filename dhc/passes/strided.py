"""Values as strided views of others: transposes, slices, splits and broadcasts that a kernel can read in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhc.ir import symbols
from dhc.ir.graph import Node, Value
from dhc.ir.symbols import Dim

VIEWS = ("transpose", "slice", "reshape", "broadcast_to")


@dataclass(frozen=True)
class StridedView:
    """Elements of `base` at ``offset + sum(index[i] * strides[i])``.

    Attributes:
        base: the value that lies in memory, contiguous.
        offset: of the first element, in elements.
        shape: sizes of the view.
        strides: in elements, one for each axis; 0 repeats.
    """

    base: Value
    offset: Dim
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]

    @classmethod
    def whole(cls, value: Value) -> StridedView:
        """A value as a view of itself."""
        shape = tuple(value.shape)
        return cls(value, 0, shape, tuple(symbols.contiguous_strides(shape)))

    @property
    def steps(self) -> tuple[Dim, ...]:
        """The strides, 0 for axes of size 1."""
        return tuple(0 if d == 1 else s for d, s in zip(self.shape, self.strides))

    def broadcast(self, shape: Sequence[Dim]) -> StridedView | None:
        """The view repeated to a shape; None when a size may or may not be 1."""
        missing = len(shape) - len(self.shape)
        if any(have not in (1, want) for have, want in zip((1,) * missing + self.shape, shape)):
            return None
        return StridedView(self.base, self.offset, tuple(shape), (0,) * missing + self.steps)

    def refined(self, frame: Sequence[Dim]) -> StridedView | None:
        """The view of matrices with its batch axes split into those of a frame; None where they do not split so."""
        strides = refined_strides(self.shape[:-2], self.steps[:-2], frame)
        if strides is None:
            return None
        return StridedView(self.base, self.offset, (*frame, *self.shape[-2:]), (*strides, *self.strides[-2:]))


def refined_strides(shape: Sequence[Dim], strides: Sequence[Dim], frame: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """Strides after each axis is split into several: ``[6, 5]`` seen as ``[2, 3, 5]``."""
    result: list[Dim] = []
    axes = [(d, s) for d, s in zip(shape, strides) if d != 1]
    size: Dim = 1
    stride: Dim = 0
    for part in reversed(frame):  # innermost first
        if part == 1:
            result.append(0)
            continue
        if size == 1:
            if not axes:
                return None
            size, stride = axes.pop()
        result.append(stride)
        if part == size:
            size = 1
            continue
        rest = symbols.floordiv(size, part)
        if rest * part != size:
            return None
        size, stride = rest, stride * part
    return tuple(result[::-1]) if not axes and size == 1 else None


def viewed(source: StridedView, node: Node) -> StridedView | None:
    """What a node makes of a view of its operand; None when it would have to copy.

    Args:
        source: the node's first operand as a view.
        node: a transpose, slice, reshape or broadcast.
    """
    shape = tuple(node.result.shape)
    attrs = node.attrs
    if node.op.name == "transpose":
        return StridedView(source.base, source.offset, shape, tuple(source.strides[axis] for axis in attrs["perm"]))
    if node.op.name == "slice":
        offset = source.offset
        for start, stride in zip(attrs["starts"], source.strides):
            offset = offset + start * stride
        return StridedView(source.base, offset, shape, tuple(s * k for s, k in zip(source.strides, attrs["steps"])))
    if node.op.name == "broadcast_to":
        return source.broadcast(shape)
    strides = _reshaped(source.shape, source.strides, shape)
    return None if strides is None else StridedView(source.base, source.offset, shape, strides)


def _reshaped(old: Sequence[Dim], strides: Sequence[Dim], new: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """Strides after a reshape; None when the elements do not lie so."""
    if tuple(strides) == tuple(symbols.contiguous_strides(tuple(old))):
        return tuple(symbols.contiguous_strides(tuple(new)))
    sources = [(d, s) for d, s in zip(old, strides) if d != 1][::-1]
    result: list[Dim] = []
    position = 0
    for size in reversed(new):  # innermost first
        if size == 1:
            result.append(0)
            continue
        if position == len(sources) or sources[position][0] != size:
            return None
        result.append(sources[position][1])
        position += 1
    return tuple(result[::-1]) if position == len(sources) else None
