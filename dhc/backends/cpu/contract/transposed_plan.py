"""The plan of a strided transposed convolution: its phases, tile shape, and the weights in the order of their use.

Generator and weight packing share it. :mod:`~dhc.backends.cpu.contract.transposed` says what the parts mean.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.spec import ConvTransposeSpec
from dhc.backends.cpu.contract.tile import TileShape, row_tiles, tile_shape
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps, row_tile_parts
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

_MOST_RESIDUES = 4
_MOST_TAPS = 25
_MOST_HALO = 4
_MOST_SPAN = 32


@dataclass(frozen=True)
class Residue:
    """Output positions of one axis that are equal modulo the stride: their tap indices and those taps' displacements.

    Output ``t * stride + first`` reads input ``t + displacement`` for every tap.
    """

    first: int
    taps: tuple[int, ...]
    displacements: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Outputs of one residue in y and one in x, relative to the copied rows.

    Attributes:
        y: the residue in y.
        x: the residue in x.
        row: copied rows to the part's first tap.
        column: elements to it.
        offsets: (rows, elements) of each tap from there.
    """

    y: Residue
    x: Residue
    row: int
    column: int
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TransposedPlan:
    """What a spec and a target decide about a kernel.

    Attributes:
        depths: residues in z; each has copied rows of its own.
        parts: by residue in y, then in x.
        first_row: displacement in y of the first copied row.
        first_column: displacement in x of its first element.
        halo: copied rows that a block has more than rows of outputs for each residue.
        span: elements that a copied row has more than outputs for each residue.
        stride: in z, y, x.
        shape: the register tile.
        tiles: (rows of a tile, how many), all output channels of a group.
    """

    depths: tuple[Residue, ...]
    parts: tuple[tuple[Part, ...], ...]
    first_row: int
    first_column: int
    halo: int
    span: int
    stride: tuple[int, int, int]
    shape: TileShape
    tiles: tuple[tuple[int, int], ...]


def _residues(kernel: int, stride: int, dilation: int, pad: int) -> tuple[Residue, ...]:
    found = []
    for first in range(stride):
        taps = tuple(t for t in range(kernel) if (first + pad - t * dilation) % stride == 0)
        found.append(Residue(first, taps, tuple((first + pad - t * dilation) // stride for t in taps)))
    return tuple(found)


def make_plan(spec: ConvTransposeSpec, target: CpuTarget) -> TransposedPlan:
    """Decides phases and tile shape."""
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation, pad = spec.padded(spec.dilation, 1), spec.padded(spec.pad_begin, 0)
    z, y, x = (_residues(k, s, d, p) for k, s, d, p in zip(kernel, stride, dilation, pad, strict=True))
    first_row, halo = _extent(y)
    first_column, span = _extent(x)
    rows = spec.out_channels // spec.groups
    shape = tile_shape(target, spec.dtype, rows)
    tiles = row_tiles(rows, shape.rows)
    if tiles:
        shape = TileShape(tiles[0][0], shape.vectors, shape.lanes)
    parts = tuple(tuple(_part(one, other, first_row, first_column) for other in x) for one in y)
    return TransposedPlan(z, parts, first_row, first_column, halo, span, stride, shape, tiles)


def _extent(residues: tuple[Residue, ...]) -> tuple[int, int]:
    """The smallest displacement, and from it to the largest."""
    every = [d for r in residues for d in r.displacements]
    return min(every), max(every) - min(every)


def _part(y: Residue, x: Residue, first_row: int, first_column: int) -> Part:
    if not y.taps or not x.taps:
        return Part(y, x, 0, 0, ())
    row, column = min(y.displacements), min(x.displacements)
    offsets = tuple((dy - row, dx - column) for dy, dx in itertools.product(y.displacements, x.displacements))
    return Part(y, x, row - first_row, column - first_column, offsets)


def is_shared(spec: ConvTransposeSpec) -> bool:
    """Whether the phases are few and near enough to read the same copied rows."""
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation, pad = spec.padded(spec.dilation, 1), spec.padded(spec.pad_begin, 0)
    if max(stride[1:]) > _MOST_RESIDUES:
        return False
    axes = [_residues(*axis) for axis in list(zip(kernel, stride, dilation, pad, strict=True))[1:]]
    taps = 1
    for residues in axes:
        taps *= max(len(r.taps) for r in residues)
    return taps <= _MOST_TAPS and _extent(axes[0])[1] <= _MOST_HALO and _extent(axes[1])[1] <= _MOST_SPAN


def pays(spec: ConvTransposeSpec, target: CpuTarget, width: int) -> bool:
    """Whether outputs ``width`` wide make rows long enough for the columns computed between them not to matter."""
    lanes, stride = target.lanes(spec.dtype), spec.stride[-1]
    columns = -(-width // stride)
    if columns >= lanes or spec.out_channels // spec.groups < 64:
        return True  # with few outputs, copying costs more than columns that are thrown away
    span = _extent(_residues(spec.kernel[-1], stride, spec.dilation[-1], spec.pad_begin[-1]))[1]
    gapless = -(-columns * columns // lanes)
    with_gaps = -(-((columns + span) * columns - span) // lanes)
    return 1.15 * gapless >= with_gaps


def pack_weights(spec: ConvTransposeSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lays out constant weights ``[C, OC / groups, k...]`` for the kernel of ``spec``.

    Returns:
        A flat array, ordered (group, z residue, y residue, x residue, tile of output channels, step (an input channel
        or a pair), tap in z, tap in y, tap in x, output channel in tile).
    """
    import numpy as np

    plan = make_plan(spec, target)
    groups = spec.groups
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    full = weights.reshape(groups, ins, outs, *spec.padded(spec.kernel, 1)).transpose(0, 2, 1, 3, 4, 5)
    full = in_steps(spec, full, 2)
    packed: list[np.ndarray[Any, Any]] = []
    for group in range(groups):
        for z in plan.depths:
            for part in itertools.chain.from_iterable(plan.parts):
                chosen = full[group][:, :, list(z.taps)][:, :, :, list(part.y.taps)][..., list(part.x.taps)]
                packed += row_tile_parts(chosen.reshape(outs, -1), plan.tiles)
    return as_stored(spec, np.concatenate(packed) if packed else np.zeros(0, weights.dtype))
