"""The plan of a convolution kernel: phases, tile shape, copying mode, and the weights in the order the tiles read them.

Generator and weight packing share it. :mod:`~dhc.backends.cpu.contract.window` says what the parts mean.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec
from dhc.backends.cpu.contract.tile import TileShape, row_tiles, tile_shape
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps, row_tile_parts
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

PARAMS = ("batch", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w")
# What follows PARAMS is known at compile time, but kept out of the code so that one kernel serves many layers:
# these, then a record for each phase (see constant_parameters), then three displacements for each copied row.
CONSTANTS = (
    "groups",
    "in_channels",  # of a group
    "out_channels",  # of a group
    "taps",  # of all phases
    "larger_tiles",
    "smaller_tiles",
    "scratch_bytes",
    "copy_bytes",  # of it, for copied rows
    "blocked",  # whether it has room for waiting sums
    "in_stride_z",
    "in_stride_y",
    "out_stride_z",
    "out_stride_y",
    "flatten",
    "phases",
)


_MOST_INTERLEAVED = 4


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of a phase: tap indices, their displacements, and where its outputs lie."""

    taps: tuple[int, ...]
    displacements: tuple[int, ...]
    out_first: int


@dataclass(frozen=True)
class Phase:
    """Output positions that share their taps."""

    z: Axis
    y: Axis
    xs: tuple[Axis, ...]  # more than one: neighbouring outputs in x, computed together

    @property
    def taps(self) -> int:
        """Number of taps."""
        return len(self.z.taps) * len(self.y.taps) * sum(len(x.taps) for x in self.xs)


@dataclass(frozen=True)
class Plan:
    """What a spec and a target decide about a kernel, shared by the generator and the weight packing."""

    phases: tuple[Phase, ...]
    in_stride: tuple[int, int, int]
    out_stride: tuple[int, int, int]
    shape: TileShape
    tiles: tuple[tuple[int, int], ...]
    row_counts: tuple[int, ...]  # of the tile functions: the tiles' rows, or one fewer
    # Taps that share copied rows, as (rows, elements) from the first; ((0, 0),) when each tap has its own row.
    tap_offsets: tuple[tuple[int, int], ...]

    @property
    def interleave(self) -> int:
        """How many neighbouring outputs in x are computed together."""
        return len(self.phases[0].xs)

    @property
    def shared_copy(self) -> bool:
        """Whether neighbouring outputs in x read the same inputs, as those of a window as large as its stride do."""
        return all(x.displacements == phase.xs[0].displacements for phase in self.phases for x in phase.xs)

    @property
    def wide(self) -> bool:
        """Whether x taps share a copied row."""
        return len(self.tap_offsets) > 1

    @property
    def span(self) -> int:
        """Elements from a row's first x tap to its last."""
        return max(offset for _, offset in self.tap_offsets)

    @property
    def halo(self) -> int:
        """Copied rows that a block has more than output rows; 0 when y taps have their own rows."""
        return max(rows for rows, _ in self.tap_offsets)


def make_plan(spec: ConvSpec | ConvTransposeSpec, target: CpuTarget) -> Plan:
    """Decides phases, tile shape and copying mode."""
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation, pad = spec.padded(spec.dilation, 1), spec.padded(spec.pad_begin, 0)
    rows = spec.out_channels // spec.groups
    shape = tile_shape(target, spec.dtype, rows)
    tiles = row_tiles(rows, shape.rows)
    row_counts: tuple[int, ...] = ()
    if tiles:
        shape = TileShape(tiles[0][0], shape.vectors, shape.lanes)
        # Both functions also where one would do: kernels of more layers are then the same.
        row_counts = (tiles[0][0], tiles[0][0] - 1) if rows >= tile_shape(target, spec.dtype).rows else (rows,)
    if isinstance(spec, ConvSpec):
        axes = [
            Axis(tuple(range(k)), tuple(t * d - p for t in range(k)), 0)
            for k, d, p in zip(kernel, dilation, pad, strict=True)
        ]
        phases: tuple[Phase, ...] = (Phase(axes[0], axes[1], (axes[2],)),)
        wide = not spec.narrow and stride[2] == 1 and 1 < kernel[2] <= 16 and dilation[2] * (kernel[2] - 1) <= 64
        shared_rows = wide and stride[1] == 1 and dilation[1] * (kernel[1] - 1) <= 4 and kernel[1] * kernel[2] <= 25
        lines = [t * dilation[1] for t in range(kernel[1])] if shared_rows else [0]
        columns = [t * dilation[2] for t in range(kernel[2])] if wide else [0]
        offsets = tuple(itertools.product(lines, columns))
        return Plan(phases, stride, (1, 1, 1), shape, tiles, row_counts, offsets)
    choices = []
    for k, s, d, p in zip(kernel, stride, dilation, pad, strict=True):
        axis = []
        for first in range(s):
            taps = tuple(t for t in range(k) if (first + p - t * d) % s == 0)
            axis.append(Axis(taps, tuple((first + p - t * d) // s for t in taps), first))
        choices.append(axis)
    xs = [tuple(choices[2])] if stride[2] <= _MOST_INTERLEAVED else [(x,) for x in choices[2]]
    phases = tuple(Phase(z, y, together) for z in choices[0] for y in choices[1] for together in xs)
    return Plan(phases, (1, 1, 1), stride, shape, tiles, row_counts, ((0, 0),))


def pack_weights(
    spec: ConvSpec | ConvTransposeSpec, target: CpuTarget, weights: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Lays out constant weights for the kernel of ``spec``.

    Args:
        spec: the kernel's (normalised) spec.
        target: its target.
        weights: ``[OC, C / groups, k...]``, for a transposed convolution ``[C, OC / groups, k...]``.

    Returns:
        A flat array, ordered (group, phase, x residue, tile of output channels, channel, tap, output channel
        in tile).
    """
    import numpy as np

    plan = make_plan(spec, target)
    groups, kernel = spec.groups, spec.padded(spec.kernel, 1)
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    if isinstance(spec, ConvSpec):
        full = weights.reshape(groups, outs, ins, *kernel)
    else:
        full = weights.reshape(groups, ins, outs, *kernel).transpose(0, 2, 1, 3, 4, 5)
    full = in_steps(spec, full, 2)
    parts: list[np.ndarray[Any, Any]] = []
    for group in range(groups):
        for phase in plan.phases:
            for x in phase.xs:
                chosen = full[group][:, :, list(phase.z.taps)][:, :, :, list(phase.y.taps)][:, :, :, :, list(x.taps)]
                parts += row_tile_parts(chosen.reshape(outs, -1), plan.tiles)
    return as_stored(spec, np.concatenate(parts) if parts else np.zeros(0, weights.dtype))


def constant_parameters(spec: ConvSpec | ConvTransposeSpec, plan: Plan, scratch: tuple[int, ...]) -> tuple[int, ...]:
    """The values of :data:`CONSTANTS` and the tables behind them."""
    counts = [count for _, count in plan.tiles] + [0, 0]
    pointwise = (
        isinstance(spec, ConvSpec) and set(spec.kernel) == {1} and set(spec.stride) == {1} and not any(spec.pad_begin)
    )
    values = [spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups]
    values += [sum(phase.taps for phase in plan.phases), *counts[:2], *scratch, *plan.in_stride[:2]]
    values += [*plan.out_stride[:2], int(pointwise), len(plan.phases)]
    phases: list[int] = []
    displacements: list[int] = []
    taps_before = 0
    for phase in plan.phases:
        # A record: where the outputs begin in z, y and x; then for each x residue its first copied row, its number of
        # copied rows, and the taps whose weights lie before its own.
        phases += [phase.z.out_first, phase.y.out_first, 0 if plan.interleave > 1 else phase.xs[0].out_first]
        for x in phase.xs:
            xs = x.displacements[:1] if plan.wide else x.displacements
            ys = phase.y.displacements[:1] if plan.halo else phase.y.displacements
            rows = list(itertools.product(phase.z.displacements, ys, xs))
            phases += [len(displacements) // 3, len(rows), taps_before]
            displacements += [value for row in rows for value in row]
            taps_before += len(phase.z.taps) * len(phase.y.taps) * len(x.taps)
    return (*values, *phases, *displacements)
