"""When a Winograd kernel is worth it, how its work is cut up, and its weights in the order the tiles read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.tile import tile_shape
from dhc.backends.cpu.contract.winograd_transform import TILES, transformed_weights
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

# What follows PARAMS is known at compile time, but kept out of the code so that one kernel serves many layers.
CONSTANTS = (
    "groups",
    "in_channels",  # of a group
    "out_channels",  # of a group
    "taps_z",
    "pad_z",
    "pad_y",
    "pad_x",
    "dilation_z",
    "dilation_y",
    "room",  # tiles of one channel that scratch memory holds, over all planes of a block
    "most_planes",  # output planes of a block
    "wide_tiles",  # most tiles of a plane in a block where rows of tiles fill whole vectors
    "input_bytes",  # of scratch memory, for transformed inputs
    "scratch_bytes",
)

# Tiles of a plane in a block: with 64 channels their transformed inputs and products stay in a second-level cache of
# 1 MB; with more channels the weights, which are read once for a block, weigh more. Measured, 32 to 128 tiles differ
# little. At least two vectors.
_TILES = {2: 64, 4: 64, 6: 48}
# With no more input channels than these, half as many tiles of a wide map are 2 to 8 % faster.
_FEW_CHANNELS = 64
# Wider dilations would need more room for a row of outputs than the first-level cache has.
_MOST_DILATION = 16
# Transformed inputs that a thread holds of several planes.
_MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class WinogradPlan:
    """What a spec and a target decide about a kernel.

    Attributes:
        m: size of the output tiles.
        lanes: vector length.
        vectors: vectors of output channels in a slice.
        rows: numbers of tiles that a register tile may have, largest first.
        last_vectors: vectors of the last slice.
        slices: number of slices of a group's output channels.
        room: tiles of one channel that scratch memory holds, over all planes of a block.
        most_planes: output planes of a block.
        input_bytes: scratch memory for transformed inputs.
        product_bytes: scratch memory for products.
        tile_step: tiles of a plane in a block are a multiple of it: whole columns of phases, if possible whole tiles.
    """

    m: int
    lanes: int
    vectors: int
    rows: tuple[int, ...]
    last_vectors: int
    slices: int
    room: int
    most_planes: int
    input_bytes: int
    product_bytes: int
    tile_step: int

    @property
    def positions(self) -> int:
        """Positions of a transformed tile."""
        return (self.m + 2) ** 2

    @property
    def columns(self) -> int:
        """Output channels of a slice."""
        return self.vectors * self.lanes


def is_winograd(spec: ConvSpec) -> bool:
    """Whether a kernel can be written: float32, 3x3 windows in y and x without strides, dilated not too far."""
    kernel = spec.padded(spec.kernel, 1)
    fits = spec.dtype == "f32" and len(spec.kernel) >= 2 and kernel[1:] == (3, 3)
    near = spec.dilation[-1] <= _MOST_DILATION
    return fits and near and set(spec.stride) == {1} and spec.in_channels > 0 and spec.out_channels > 0


def make_plan(spec: ConvSpec, target: CpuTarget) -> WinogradPlan:
    """Decides the register tile and the sizes of scratch memory."""
    m = spec.winograd
    assert m in TILES
    shape = tile_shape(target, spec.dtype)
    lanes, positions = shape.lanes, (m + 2) ** 2
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    total = -(-outs // lanes)
    vectors = min(shape.vectors, total)
    slices = -(-total // vectors)
    rows = {12: (12, 8, 4), 8: (8, 4, 2), 6: (6, 4, 2)}[shape.rows]
    taps = spec.padded(spec.kernel, 1)[0]
    # Neighbouring output planes share transformed inputs, as far as those do not fill too much memory.
    most_planes = 1
    bytes_of_plane = _TILES[m] * ins * positions * 4
    while taps > 1 and most_planes < 4 and (2 * most_planes + taps - 1) * bytes_of_plane <= _MOST_BYTES:
        most_planes *= 2
    room = _TILES[m] * (most_planes + taps - 1)
    plane_bytes = (room * ins + 2 * lanes) * 4
    product_bytes = (room + max(rows) + lanes) * positions * vectors * lanes * 4
    dilation = spec.dilation[-1]
    step = math.lcm(dilation, min(rows))
    return WinogradPlan(
        m, lanes, vectors, rows, total - (slices - 1) * vectors, slices, room, most_planes,
        -(-positions * (plane_bytes + 64) // 64) * 64, -(-product_bytes // 64) * 64,
        step if step <= 32 else dilation,
    )  # fmt: skip


def constant_parameters(spec: ConvSpec, plan: WinogradPlan) -> tuple[int, ...]:
    """The values of :data:`CONSTANTS`."""
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    taps, pads = spec.padded(spec.kernel, 1)[0], spec.padded(spec.pad_begin, 0)
    wide_tiles = 32 if ins <= _FEW_CHANNELS else _TILES[plan.m]
    sizes = (plan.room, plan.most_planes, wide_tiles, plan.input_bytes, plan.input_bytes + plan.product_bytes)
    dilation_z, dilation_y, _ = spec.padded(spec.dilation, 1)
    return (spec.groups, ins, outs, taps, *pads, dilation_z if taps > 1 else 1, dilation_y, *sizes)


def pack_weights(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Transforms constant weights ``[OC, C / groups, (kz,) 3, 3]`` for the kernel of ``spec``.

    Returns:
        A flat array, ordered (group, slice of output channels, position, z tap, channel, output channel of the slice);
        output channels are filled up with zeros to whole vectors.
    """
    import numpy as np

    plan = make_plan(spec, target)
    groups, taps = spec.groups, spec.padded(spec.kernel, 1)[0]
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    whole = ((plan.slices - 1) * plan.vectors + plan.last_vectors) * plan.lanes
    packed = np.zeros((groups, plan.positions * taps * ins * whole), np.float32)
    for group in range(groups):
        chosen = weights.reshape(groups, outs, ins, taps, 3, 3)[group].transpose(3, 4, 2, 1, 0)
        at = 0
        for first in range(0, whole, plan.columns):
            width = min(plan.columns, whole - first)
            part = transformed_weights(plan.m, np.ascontiguousarray(chosen[..., first : first + width]))
            size = plan.positions * taps * ins * width
            packed[group, at : at + size].reshape(*part.shape[:3], width)[..., : part.shape[3]] = part
            at += size
    return packed.reshape(-1)
