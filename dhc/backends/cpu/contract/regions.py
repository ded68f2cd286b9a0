"""Convolutions whose taps lie in the padding for much of the map: wide dilations, as pyramids of dilations have.

Positions whose taps meet the input alike make a box, a *region*: along each axis a new one begins where a tap enters
or leaves the input. A region is a plain sum over the taps that meet the input, nothing else is computed. Zeros times
finite weights would add nothing, so results are those of the whole sum.

A thread takes its share of the output channels of each block of positions of a region. It copies what each tap reads,
``[tap][channel][position]``, and broadcasts it to vectors of output channels, whose weights are read as they stream by.
Many input channels come block by block, while the sums wait in scratch memory; finished sums are transposed and stored.
Each result is one sum in the order (block of channels, tap, channel), whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.blocks import odd_lines
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.pair_copying import emit_copy_row_pairs
from dhc.backends.cpu.contract.region_boxes import axis_regions, emit_next_region, over_regions
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, even_share, tile_shape
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

AXES = "zyx"
CONSTANTS = (
    "groups",
    "in_channels",  # of a group
    "out_channels",  # of a group
    *(f"{what}_{axis}" for what in ("kernel", "stride", "dilation", "pad") for axis in AXES),
    "copy_bytes",
    "scratch_bytes",
)
# Positions that a block has at most, and blocks of output channels whose sums wait at a time.
_POSITIONS = 240
_WAITING_BLOCKS = 8
# Of a model of the cost: what one vector of copied inputs takes, the rows below which a tile does not become faster,
# the share of the limit that tiles reach, and weights that a step brings in.
_COPY_COST, _LEAST_ROWS, _SHARE, _BYTES_PER_STEP = 16.0, 6, 0.85, 16.0


def _rows(shape: TileShape) -> tuple[int, ...]:
    """Rows of the tile functions, largest first."""
    return {12: (12, 8, 4), 8: (8, 4, 2), 6: (6, 4, 2)}[shape.rows]


def region_cost(spec: ConvSpec, target: CpuTarget, in_size: Sequence[int], out_size: Sequence[int]) -> float:
    """Estimated cost in vector instructions, in the terms of :mod:`~.winograd_choice`."""
    shape = tile_shape(target, spec.dtype)
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    blocks = -(-outs // shape.columns)
    axes = [
        axis_regions(n, out, *parts)
        for n, out, *parts in zip(
            in_size, out_size, spec.kernel, spec.stride, spec.dilation, spec.pad_begin, strict=True
        )
    ]
    axes = [[(0, 1, 0, 1)]] * (3 - len(axes)) + axes
    cost = 0.0
    for z in axes[0]:
        for y in axes[1]:
            for x in axes[2]:
                taps = math.prod(last - first for _, _, first, last in (z, y, x))
                depth, height, width = (end - begin for begin, end, _, _ in (z, y, x))
                piece = min(width, _POSITIONS)
                rows = min(height, max(1, _POSITIONS // piece))
                whole, rest = divmod(piece * rows, shape.rows)
                tile_rows = whole * shape.rows + (max(rest, _LEAST_ROWS) if rest else 0)
                products = tile_rows * taps * ins * blocks * shape.vectors / _SHARE
                copies = rows * -(-piece // shape.lanes) * taps * ins * _COPY_COST * -(-blocks // _WAITING_BLOCKS)
                weights = taps * ins * blocks * shape.columns * ITEM_BYTES[spec.dtype] / _BYTES_PER_STEP
                count = depth * -(-height // rows) * -(-width // piece)
                cost += (products + copies + weights) * count
    return cost * spec.groups


def pays_regions(spec: ConvSpec, target: CpuTarget, in_size: Sequence[Any], out_size: Sequence[Any]) -> bool:
    """Whether sizes are known and this is estimated to be faster than the general method."""
    sizes = (*in_size, *out_size)
    known = len(sizes) == 2 * len(spec.kernel) and all(isinstance(n, int) and n > 0 for n in sizes)
    outs = spec.out_channels // spec.groups
    if not known or max(spec.dilation) == 1 or outs < target.lanes(spec.dtype):
        return False
    return 1.1 * region_cost(spec, target, in_size, out_size) < plain_cost(spec, target, out_size)


def plain_cost(spec: ConvSpec, target: CpuTarget, out_size: Sequence[int]) -> float:
    """The same of the general method."""
    positions = math.prod(out_size) * computed_share(spec, out_size[-1])
    sums = spec.out_channels * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
    return sums * positions / target.lanes(spec.dtype) / _SHARE


def computed_share(spec: ConvSpec, width: int) -> float:
    """How many columns the general method computes for one of the output: also those between rows that taps share.

    Where the dilation is wide each tap has its own copy, without columns between.
    """
    between = (spec.dilation[-1] - 1) * (spec.kernel[-1] - 1)
    return 1 + 0.75 * between / width if between < 64 else 1.0


def pack_regions(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights as ``[group][block of output channels][tap][step][channel in block]``, the last block with zeros."""
    import numpy as np

    columns = tile_shape(target, spec.dtype).columns
    outs = spec.out_channels // spec.groups
    blocks = -(-outs // columns)
    full = in_steps(spec, weights.reshape(spec.groups, outs, spec.in_channels // spec.groups, -1), 2)
    padded = np.zeros((spec.groups, blocks * columns, *full.shape[2:]), full.dtype)
    padded[:, :outs] = full
    parts = padded.reshape(spec.groups, blocks, columns, *full.shape[2:])
    return as_stored(spec, parts.transpose(0, 1, 4, 3, 2))


def emit_regions(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution whose weights are finite.

    Buffers: ``input``, ``weight`` (packed by :func:`pack_regions`), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: as for other convolutions; any sizes.
    """
    module = Module(target, KERNEL)
    item, shape = ITEM_BYTES[spec.dtype], tile_shape(target, spec.dtype)
    lanes, columns, row_counts = shape.lanes, shape.columns, _rows(shape)
    factors = Factors.with_weights_as_columns(spec, lanes)
    line = columns * factors.column_bytes
    x_stride = spec.stride[-1]
    vector = f"<{lanes} x {ELEMENT[spec.dtype]}>"
    most_pitch = odd_lines(_POSITIONS + shape.rows + lanes, item)
    copy_bytes = max(target.l2_bytes * 3 // 8, math.prod(spec.kernel) * most_pitch * item) // 64 * 64
    held_rows = -(-(_POSITIONS + shape.rows) // lanes) * lanes
    scratch_bytes = copy_bytes + _WAITING_BLOCKS * held_rows * columns * item
    finished_pitch = held_rows + lanes
    tiles = {
        rows: emit_accumulate(
            module, f"tile{rows}", TileShape(rows, shape.vectors, lanes), columns, spec.dtype, [(0, 0)],
            packed_rows=True, adjacent_rows=True, factors=factors,
        )
        for rows in row_counts
    }  # fmt: skip
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(module, "store", spec, lanes, finished_pitch, out_at)
    if spec.pairs:
        copy_row = emit_copy_row_pairs(module, "copy_row", x_stride)
    else:
        copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, x_stride)
    next_region = emit_next_region(module, "next_region")

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    per_step = 2 if spec.pairs else 1  # channels
    all_steps = f.value(f.ceildiv(ins, per_step)) if spec.pairs else ins
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    in_plane, out_plane = in_d * in_h * in_w, out_d * out_h * out_w
    kernel_y, kernel_x = names["kernel_y"], names["kernel_x"]
    all_taps = names["kernel_z"] * kernel_y * kernel_x
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    waiting = f.at(scratch, names["copy_bytes"])
    results = f.stack((columns * finished_pitch + lanes) * item)
    out_blocks = f.value(f.ceildiv(outs, columns))
    splits = f.value(f.maximum(f.minimum(nthreads, out_blocks), 1))
    units = f.variable("i64", 0)  # blocks of positions, counted over all regions
    found = {axis: f.stack(24) for axis in AXES}

    sizes = {"z": (in_d, out_d), "y": (in_h, out_h), "x": (in_w, out_w)}

    def region(axis: str, first: Value) -> tuple[Value, Value, Value]:
        """End, first tap and number of taps of the region that begins at ``first``."""
        arguments = [names[f"{what}_{axis}"] for what in ("kernel", "stride", "dilation", "pad")]
        f.call(next_region, [first, *sizes[axis], *arguments, found[axis]])
        end, tap, taps = (f.load("i64", f.at(found[axis], i * 8), 8) for i in range(3))
        return end, tap, taps

    def block(
        image_group: Value, z: Value, y: Value, x: Value, rows: Value, width: Value,
        taps_from: Sequence[Value], taps_of: Sequence[Value], split: Value,
    ) -> None:  # fmt: skip
        """All of ``rows`` x ``width`` positions for a share of the output channels."""
        group = image_group % groups
        count, taps = rows * width, taps_of[0] * taps_of[1] * taps_of[2]
        lines = (count + (shape.rows + lanes) + (64 // item - 1)) // (64 // item)
        pitch = f.value((lines | 1) * (64 // item))
        fitting = names["copy_bytes"] // (f.value(f.maximum(taps, 1)) * pitch * item)
        channel_step = f.value(f.maximum(f.minimum(fitting, all_steps), 1))
        row_taps = f.value(f.maximum(taps_of[2], 1))
        plane_taps = f.value(f.maximum(taps_of[1], 1)) * row_taps
        share_begin, share_end = even_share(f, out_blocks, split, splits)
        with f.loop(share_begin, share_end, _WAITING_BLOCKS) as first_block:
            end_block = f.value(f.minimum(first_block + _WAITING_BLOCKS, share_end))
            with f.loop(0, f.maximum(all_steps, 1), channel_step) as channel:
                channels = f.value(f.minimum(channel_step, all_steps - channel))
                read = f.value(f.minimum(channels * 2, ins - channel * 2)) if spec.pairs else channels
                from_channel = f.at(source, (image_group * ins + channel * per_step) * in_plane * item)

                def place(tap: Value) -> list[Value]:
                    """The tap's index along each axis of the kernel."""
                    tap_z, rest = tap // plane_taps, tap % plane_taps
                    return [tap_z + taps_from[0], rest // row_taps + taps_from[1], rest % row_taps + taps_from[2]]

                with f.loop(0, taps) as tap, f.loop(0, rows) as row:
                    at = place(tap)
                    z_in = z * names["stride_z"] + at[0] * names["dilation_z"] - names["pad_z"]
                    y_in = (y + row) * names["stride_y"] + at[1] * names["dilation_y"] - names["pad_y"]
                    f.call(
                        copy_row,
                        [
                            f.at(from_channel, (z_in * in_h + y_in) * in_w * item),
                            in_plane * item,
                            read,
                            x * x_stride + at[2] * names["dilation_x"] - names["pad_x"],
                            in_w,
                            width,
                            f.at(scratch, (tap * channel_step * pitch + row * width) * item),
                            pitch * item,
                        ],
                    )
                # Without a tap that meets the input the sums are zero.
                steps = f.select(taps > 0, channels, 0)
                with f.loop(first_block, end_block) as number, f.loop(0, f.maximum(taps, 1)) as tap:
                    at = place(tap)
                    index = (at[0] * kernel_y + at[1]) * kernel_x + at[2]
                    tap_weight = ((group * out_blocks + number) * all_taps + index) * all_steps + channel
                    b = f.at(weight, tap_weight * line)
                    a = f.at(scratch, tap * channel_step * pitch * item)
                    held = f.at(waiting, (number - first_block) * (held_rows * columns * item))
                    resume = (channel + tap) > 0
                    t = f.variable("i64", 0)
                    for tile_rows, smaller in zip(row_counts, (*row_counts[1:], 0), strict=True):
                        with f.while_(lambda t=t, smaller=smaller: t.get() + smaller < count):  # type: ignore[misc]
                            now = t.get()
                            to = f.at(held, now * (columns * item))
                            f.call(
                                tiles[tile_rows],
                                [f.at(a, now * item), 0, pitch * item, b, line, 0, steps, to, resume],
                            )
                            t.set(now + tile_rows)
            with f.loop(first_block, end_block) as number:
                held = f.at(waiting, (number - first_block) * (held_rows * columns * item))
                with f.loop(0, count, lanes) as first, f.loop(0, shape.vectors) as v:
                    square = f.at(held, (first * columns + v * lanes) * item)
                    some = [f.load(vector, f.at(square, i * columns * item), item) for i in range(lanes)]
                    for j, value in enumerate(transposed(f, some, lanes)):
                        f.store(value, f.at(results, ((v * lanes + j) * finished_pitch + first) * item), item)
                channel = number * columns
                left = f.minimum(columns, outs - channel)
                with f.loop(0, rows) as row:
                    to = (image_group * outs + channel) * out_plane + (z * out_h + y + row) * out_w + x
                    sums = f.at(results, row * width * item)
                    arguments = [sums, left, width, to, out_plane, group * outs + channel, 0]
                    f.call(store, [f.argument("buffers"), *arguments])

    def over(axis: str) -> AbstractContextManager[tuple[Value, Value, Value, Value]]:
        return over_regions(f, sizes[axis][1], lambda first: region(axis, first))

    with (
        f.loop(0, names["batch"] * groups) as image_group,
        over("z") as (z_first, z_end, *z_taps),
        over("y") as (y_first, y_end, *y_taps),
        over("x") as (x_first, x_end, *x_taps),
    ):
        width = f.value(f.minimum(x_end - x_first, _POSITIONS))
        rows = f.value(f.maximum(f.const(_POSITIONS) // width, 1))
        taps_from, taps_of = zip(z_taps, y_taps, x_taps, strict=True)
        loops = (f.loop(z_first, z_end), f.loop(y_first, y_end, rows), f.loop(x_first, x_end, width))
        with loops[0] as z, loops[1] as y, loops[2] as x, f.loop(0, splits) as split:
            unit = units.get()
            units.set(unit + 1)
            with f.if_((unit % nthreads).equals(tid)):
                some_rows, some = f.value(f.minimum(rows, y_end - y)), f.value(f.minimum(width, x_end - x))
                block(image_group, z, y, x, some_rows, some, taps_from, taps_of, split)
    f.ret(0)
    constants = [spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups]
    for values, fill in ((spec.kernel, 1), (spec.stride, 1), (spec.dilation, 1), (spec.pad_begin, 0)):
        constants += spec.padded(values, fill)
    constants += [copy_bytes, scratch_bytes]
    return finished(module, target, "regions", buffers, PARAMS, scratch_bytes, constants)
