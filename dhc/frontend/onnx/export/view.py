"""Shapes, views, padding, joins."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.ir import symbols
from dhc.ir.graph import Node
from dhc.ir.symbols import Dim

LOWEST = -(2**63)
"""An end of a slice with negative step: before the first element."""


@exports("reshape")
def reshape(w: GraphWriter, node: Node) -> Any:
    """Reshape; symbolic sizes come from the shapes of values."""
    return w.reshape(w.operands(node)[0], node.attrs["shape"])


@exports("transpose")
def transpose(w: GraphWriter, node: Node) -> Any:
    """Transpose."""
    return w.node("Transpose", w.operands(node), perm=list(node.attrs["perm"]))


@exports("broadcast_to")
def broadcast_to(w: GraphWriter, node: Node) -> Any:
    """Expand."""
    return w.node("Expand", [*w.operands(node), w.shape(node.attrs["shape"])])


@exports("slice")
def cut(w: GraphWriter, node: Node) -> Any:
    """Slice along the axes that change."""
    (x,) = w.operands(node)
    a = node.attrs
    shape = node.types[0].shape
    axes = [
        i for i in range(len(shape))
        if a["starts"][i] != 0 or a["sizes"][i] != shape[i] or a["steps"][i] != 1
    ]  # fmt: skip
    if not axes:
        return w.node("Identity", [x])
    starts: list[Dim] = []
    ends: list[Dim] = []
    for axis in axes:
        start, size, step = a["starts"][axis], a["sizes"][axis], a["steps"][axis]
        if size == 0:  # the start of nothing may lie anywhere
            starts.append(0)
            ends.append(LOWEST if step > 0 else 2**62)
            continue
        end: Dim = start + size * step
        starts.append(start)
        # An end of -1 would count from the back.
        ends.append(symbols.select(end + 1, end, LOWEST) if step < 0 else end)
    steps = [a["steps"][axis] for axis in axes]
    return w.node("Slice", [x, w.shape(starts), w.shape(ends), w.ints(*axes), w.ints(*steps)])


@exports("flip")
def flip(w: GraphWriter, node: Node) -> Any:
    """Slice backwards."""
    axes = node.attrs["axes"]
    count = len(axes)
    bounds = [w.ints(*[-1] * count), w.ints(*[LOWEST] * count), w.ints(*axes), w.ints(*[-1] * count)]
    return w.node("Slice", [*w.operands(node), *bounds])


@exports("pad")
def pad(w: GraphWriter, node: Node) -> Any:
    """Pad."""
    x, value = w.operands(node)
    a = node.attrs
    widths = w.shape([*a["low"], *a["high"]])
    mode = a["mode"]
    return w.node("Pad", [x, widths, value if mode == "constant" else ""], mode=mode)


@exports("concat")
def concat(w: GraphWriter, node: Node) -> Any:
    """Concat."""
    return w.node("Concat", w.operands(node), axis=node.attrs["axis"])


@exports("split")
def split(w: GraphWriter, node: Node) -> Any:
    """Split into given sizes."""
    inputs = [*w.operands(node), w.shape(node.attrs["sizes"])]
    return w.node("Split", inputs, outputs=len(node.results), axis=node.attrs["axis"])


@exports("tile")
def tile(w: GraphWriter, node: Node) -> Any:
    """Tile."""
    return w.node("Tile", [*w.operands(node), w.shape(node.attrs["repeats"])])


@exports("depth_to_space")
def depth_to_space(w: GraphWriter, node: Node) -> Any:
    """DepthToSpace."""
    return w.node("DepthToSpace", w.operands(node), blocksize=node.attrs["block"], mode=node.attrs["mode"])


@exports("space_to_depth")
def space_to_depth(w: GraphWriter, node: Node) -> Any:
    """SpaceToDepth."""
    return w.node("SpaceToDepth", w.operands(node), blocksize=node.attrs["block"])


@exports("triangle")
def triangle(w: GraphWriter, node: Node) -> Any:
    """Trilu."""
    return w.node("Trilu", w.operands(node), upper=int(node.attrs["upper"]))


@exports("reverse_sequence")
def reverse_sequence(w: GraphWriter, node: Node) -> Any:
    """ReverseSequence works on the first two axes."""
    a = node.attrs
    rank = node.types[0].rank
    batch, time = a["batch_axis"] % rank, a["time_axis"] % rank
    if {batch, time} != {0, 1}:
        w.unsupported("ONNX reverses sequences along the first two axes only")
    return w.node("ReverseSequence", w.operands(node), batch_axis=batch, time_axis=time)


def _window_start(w: GraphWriter, starts: str, shape: Any, sizes: Any) -> tuple[str, str]:
    """The first element of a window, clamped so that it fits, and how far it may move."""
    room = w.node("Sub", [w.shape(shape), w.shape(sizes)])
    return w.node("Min", [w.node("Max", [starts, w.ints(*[0] * len(shape))]), room]), room


@exports("dynamic_update_slice")
def dynamic_update_slice(w: GraphWriter, node: Node) -> Any:
    """The update padded to the whole shape, chosen where it lies."""
    x, update, starts = w.operands(node)
    shape, sizes = node.types[0].shape, node.types[1].shape
    if not shape:
        return w.node("Identity", [update])
    first, room = _window_start(w, starts, shape, sizes)
    widths = w.node("Concat", [first, w.node("Sub", [room, first])], axis=0)
    inside = w.node("Expand", [w.constant(True, "bool"), w.shape(sizes)])
    return w.node("Where", [w.node("Pad", [inside, widths]), w.node("Pad", [update, widths]), x])


@exports("dynamic_slice")
def dynamic_slice(w: GraphWriter, node: Node) -> Any:
    """Slice with computed bounds."""
    x, starts = w.operands(node)
    sizes, shape = node.attrs["sizes"], node.types[0].shape
    if not shape:
        return w.node("Identity", [x])
    first, _ = _window_start(w, starts, shape, sizes)
    last = w.node("Add", [first, w.shape(sizes)])
    return w.node("Slice", [x, first, last, w.ints(*range(len(shape)))])
