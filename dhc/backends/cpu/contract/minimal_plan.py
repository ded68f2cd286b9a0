"""How the work of a minimal filtering kernel is cut up, and its weights in the order the tiles read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.minimal_transform import SIZES, transformed_weights
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.tile import TileShape, tile_shape
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
    "room",  # tiles of one channel that scratch memory holds, over all planes of a block
    "most_planes",  # output planes of a block where planes are large
    "input_bytes",  # of scratch memory, for transformed inputs
    "scratch_bytes",
)
# Tiles of a plane in a block: at least so many, more while their transformed inputs are few bytes.
_TILES, _MOST_TILES, _TILE_BYTES = 64, 192, 384 * 1024
_NARROW_BYTES = 512 * 1024
# Transformed inputs that a thread holds of several planes.
_MOST_BYTES = 8 << 20
_WIDTHS = (1, 2, 4)


@dataclass(frozen=True)
class MinimalPlan:
    """What a spec and a target decide about a kernel.

    Attributes:
        rows: ``(m, k)`` of the y axis: outputs of a tile, taps.
        columns: of the x axis; with a stride, the taps of one phase.
        stride: of the x axis. Inputs ``stride`` columns apart are a phase, each a sum of its own in the transformed
            domain.
        lanes: vector length.
        vectors: vectors of output channels in a slice.
        heights: numbers of tiles that a register tile may have, largest first.
        last_vectors: vectors of the last slice.
        slices: number of slices of a group's output channels.
        room: tiles of one channel that scratch memory holds, over all planes of a block.
        most_planes: output planes of a block where planes are large.
        input_bytes: scratch memory for transformed inputs.
        product_bytes: scratch memory for products.
        narrow: the register tile of few output channels, whose products have tiles in the lanes
            (:mod:`.minimal_narrow`); None for more of them.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    stride: int
    lanes: int
    vectors: int
    heights: tuple[int, ...]
    last_vectors: int
    slices: int
    room: int
    most_planes: int
    input_bytes: int
    product_bytes: int
    narrow: TileShape | None

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of a transformed tile."""
        return self.rows[0] + self.rows[1] - 1, self.columns[0] + self.columns[1] - 1

    @property
    def positions(self) -> int:
        """Positions of a transformed tile."""
        return self.sizes[0] * self.sizes[1]

    @property
    def width(self) -> int:
        """Output channels of a slice."""
        return self.vectors * self.lanes


def axes(spec: ConvSpec, tile: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """``(m, k)`` of the y and of the x axis for tiles of so many rows and columns of outputs."""
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    return (tile[0], kernel[1]), (tile[1], -(-kernel[2] // stride[2]))


def is_minimal(spec: ConvSpec, tile: tuple[int, ...]) -> bool:
    """Whether a kernel can be written: float32, no dilation, stride 1, or 2 in x for windows of one row."""
    stride, kernel = spec.padded(spec.stride, 1), spec.padded(spec.kernel, 1)
    if spec.dtype != "f32" or set(spec.dilation) != {1} or min(spec.in_channels, spec.out_channels) < 1:
        return False
    if stride[:2] != (1, 1) or stride[2] > 2 or (stride[2] == 2 and (kernel[1] > 1 or kernel[2] < 3)):
        return False
    rows, columns = axes(spec, tile)
    sizes = tuple(m + k - 1 for m, k in (rows, columns))
    return sizes[0] in SIZES and sizes[1] in SIZES and sizes != (1, 1) and tile[1] in _WIDTHS


def narrow_shape(spec: ConvSpec, target: CpuTarget) -> TileShape | None:
    """The register tile (output channels x vectors of tiles) where the output channels are few enough, else None."""
    outs = spec.out_channels // spec.groups
    return tile_shape(target, spec.dtype, outs) if outs <= tile_shape(target, spec.dtype).rows else None


def make_plan(spec: ConvSpec, target: CpuTarget) -> MinimalPlan:
    """Decides the register tile and the sizes of scratch memory."""
    rows, columns = axes(spec, spec.minimal)
    stride = spec.stride[-1]
    shape = tile_shape(target, spec.dtype)
    lanes = shape.lanes
    positions = (sum(rows) - 1) * (sum(columns) - 1)
    ins, outs = spec.in_channels // spec.groups * stride, spec.out_channels // spec.groups
    total = -(-outs // lanes)
    vectors = min(shape.vectors, total)
    slices = -(-total // vectors)
    heights = {12: (12, 8, 4), 8: (8, 4, 2), 6: (6, 4, 2)}[shape.rows]
    taps = spec.padded(spec.kernel, 1)[0]
    narrow = narrow_shape(spec, target)
    if narrow:
        # Inputs and products of a block share the cache; tiles come in the steps of a register tile.
        held, made = (1, 1) if taps == 1 else (4 + taps - 1, 4)
        fitting = _NARROW_BYTES // (positions * 4 * (held * ins + made * outs)) // narrow.columns
        tiles = narrow.columns * max(1, min(_MOST_TILES // narrow.columns, fitting))
    else:
        fitting = _TILE_BYTES // (positions * ins * 4) // lanes * lanes
        tiles = max(_TILES, min(_MOST_TILES, fitting))
    # Neighbouring output planes share transformed inputs, as far as those do not fill too much memory.
    most_planes = 1
    while taps > 1 and most_planes < 4 and (2 * most_planes + taps - 1) * tiles * ins * positions * 4 <= _MOST_BYTES:
        most_planes *= 2
    room = tiles * (most_planes + taps - 1)
    plane_bytes = (room * ins + 2 * lanes) * 4
    if narrow:
        product_bytes = room * positions * narrow.rows * 4
    else:
        product_bytes = (room + max(heights) + lanes) * positions * vectors * lanes * 4
    return MinimalPlan(
        rows, columns, stride, lanes, vectors, heights, total - (slices - 1) * vectors, slices, room, most_planes,
        -(-positions * (plane_bytes + 64) // 64) * 64, -(-product_bytes // 64) * 64,
        narrow,
    )  # fmt: skip


def constant_parameters(spec: ConvSpec, plan: MinimalPlan) -> tuple[int, ...]:
    """The values of :data:`CONSTANTS`."""
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    taps, pads = spec.padded(spec.kernel, 1)[0], spec.padded(spec.pad_begin, 0)
    sizes = (plan.room, plan.most_planes, plan.input_bytes, plan.input_bytes + plan.product_bytes)
    return (spec.groups, ins, outs, taps, *pads, *sizes)


def pack_weights(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Transforms constant weights ``[OC, C / groups, ((kz,) ky,) kx]`` for the kernel of ``spec``.

    Returns:
        A flat array, ordered (group, slice of output channels, position, z tap, channel, phase, output channel of the
        slice); output channels are filled up with zeros to whole vectors where they are the vectors.
    """
    import numpy as np

    plan = make_plan(spec, target)
    groups, (taps_z, taps_y, taps_x) = spec.groups, spec.padded(spec.kernel, 1)
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    phases, taps = plan.stride, plan.columns[1]
    whole = outs if plan.narrow else ((plan.slices - 1) * plan.vectors + plan.last_vectors) * plan.lanes
    packed = np.zeros((groups, plan.positions * taps_z * ins * phases * whole), np.float32)
    for group in range(groups):
        plain = weights.reshape(groups, outs, ins, taps_z, taps_y, taps_x)[group]
        # Phase p has the taps p, p + stride, ...; zeros fill up the shorter ones.
        full = np.zeros((outs, ins, taps_z, taps_y, taps * phases), weights.dtype)
        full[..., :taps_x] = plain
        chosen = full.reshape(outs, ins, taps_z, taps_y, taps, phases).transpose(3, 4, 2, 1, 5, 0)
        at = 0
        for first in range(0, whole, plan.width):
            width = min(plan.width, whole - first)
            some = np.ascontiguousarray(chosen[..., first : first + width])
            part = transformed_weights(some, plan.rows, plan.columns)
            size = plan.positions * taps_z * ins * phases * width
            packed[group, at : at + size].reshape(*part.shape[:4], width)[..., : part.shape[4]] = part
            at += size
    return packed.reshape(-1)
