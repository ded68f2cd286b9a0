"""Convolutions on small maps: vectors over output channels, tile rows over output positions.

Maps of 7 x 7 or 14 x 14 do not fill vectors of 16 columns, so here the weights are the vectors: they come packed by
blocks of output channels, and an input value is broadcast for each position of the tile. A pointwise convolution
broadcasts from the input as it lies; any other has the values of each tap gathered first, rows of positions without
gaps. A block of weights is read from memory once for all positions, ahead of its use. A tile's results are transposed
in registers, and whole rows of a channel are finished and stored at once.

Sums over many channels go block by block, partial sums of all tiles wait in scratch memory. Each result is one sum in
the order (channel, tap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.blocks import clearly_less, split_count
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.pair_copying import emit_copy_row_pairs
from dhc.backends.cpu.contract.pointwise import is_pointwise
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, even_share, row_tiles, tile_shape
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

CONSTANTS = (
    "groups",
    "in_channels",  # of a group
    "out_channels",  # of a group
    "in_place",  # broadcast from the input itself
    "larger_tiles",  # of positions; the smaller ones have one row fewer
    "tiles",
    "block_tiles",
    "pitch",  # elements between gathered rows
    "channel_step",  # channels gathered at a time
    "copy_bytes",
    "scratch_bytes",
    *(f"{what}_{axis}" for what in ("kernel", "stride", "dilation", "pad") for axis in "zyx"),
)
# Positions that a block has at most: its finished rows wait in the first-level cache.
_BLOCK_POSITIONS = 256
# Weights are asked for so many bytes ahead: hardware prefetchers stop at every page.
_AHEAD = 4096


@dataclass(frozen=True)
class _Plan:
    shape: TileShape  # rows: positions; vectors: of output channels
    larger: int  # tiles with all rows
    tiles: int
    block_tiles: int
    pitch: int
    channel_step: int
    copy_bytes: int
    waiting_bytes: int

    @property
    def scratch_bytes(self) -> int:
        return self.copy_bytes + self.waiting_bytes


def _width(spec: ConvSpec, target: CpuTarget) -> TileShape:
    shape = tile_shape(target, spec.dtype, spec.positions)
    tiles = row_tiles(spec.positions, shape.rows)
    # Few output channels do not come with zeros for many more, which would be read from memory like weights.
    needed = -(-(spec.out_channels // spec.groups) // shape.lanes)
    vectors = min(shape.vectors, 1 << max(needed - 1, 0).bit_length())
    return TileShape(tiles[0][0] if tiles else 1, vectors, shape.lanes)


def _in_place(spec: ConvSpec) -> bool:
    """Whether the input is broadcast as it lies."""
    return is_pointwise(spec) and not spec.pairs


def _blocks(spec: ConvSpec, shape: TileShape) -> int:
    return -(-(spec.out_channels // spec.groups) // shape.columns)


def _make_plan(spec: ConvSpec, target: CpuTarget) -> _Plan:
    item, shape = ITEM_BYTES[spec.dtype], _width(spec, target)
    tiles = row_tiles(spec.positions, shape.rows)
    larger, total = (tiles[0][1], sum(count for _, count in tiles)) if tiles else (0, 0)
    blocks = -(-total // max(1, _BLOCK_POSITIONS // shape.rows))
    block_tiles = -(-total // max(blocks, 1)) if total else 1
    per_line = 64 // item
    pitch = (-(-(block_tiles * shape.rows + shape.lanes) // per_line) | 1) * per_line
    ins, taps, in_place = spec.steps, math.prod(spec.kernel), _in_place(spec)
    if in_place:
        row, budget = spec.positions * item, target.l2_bytes // 2
    else:
        row, budget = taps * pitch * item, target.l2_bytes // 4
    steps = -(-ins // max(1, -(-(ins * row) // budget)))
    copy_bytes = 64 if in_place else -(-(steps * taps * pitch * item) // 64) * 64
    waiting = block_tiles * shape.rows * _blocks(spec, shape) * shape.columns * item if steps < ins else 0
    return _Plan(shape, larger, total, block_tiles, pitch, max(steps, 1), copy_bytes, waiting)


def pack_channels(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights as ``[group][block of output channels][channel][tap][channel in block]``, the last block with zeros."""
    import numpy as np

    shape = _width(spec, target)
    outs, blocks = spec.out_channels // spec.groups, _blocks(spec, shape)
    full = in_steps(spec, weights.reshape(spec.groups, outs, spec.in_channels // spec.groups, -1), 2)
    full = full.reshape(spec.groups, outs, -1)
    padded = np.zeros((spec.groups, blocks * shape.columns, full.shape[2]), full.dtype)
    padded[:, :outs] = full
    parts = padded.reshape(spec.groups, blocks, shape.columns, -1)
    return as_stored(spec, parts.transpose(0, 1, 3, 2))


def _emit_tile(module: Module, rows: int, shape: TileShape, factors: Factors, pitch: int) -> Function:
    """``void tile(a, a_stride, b, steps, waiting, resume, last, to)``: one tile of sums.

    ``sum over s of a[s * a_stride + r] * b[s][j]`` goes on from ``waiting`` with ``resume``, and back there; with
    ``last`` it goes to ``to[j * pitch + r]``, up to ``lanes - 1`` elements behind each row are overwritten.
    """
    lanes, vector, item = shape.lanes, factors.vector, ITEM_BYTES[factors.dtype]
    line = shape.columns * factors.column_bytes
    f = module.function(
        f"tile{rows}",
        "void",
        (
            ("ptr", "a"),
            ("i64", "a_stride"),
            ("ptr", "b"),
            ("i64", "steps"),
            ("ptr", "waiting"),
            ("i1", "resume"),
            ("i1", "last"),
            ("ptr", "to"),
        ),
    )
    held = [
        [f.at(f.argument("waiting"), (r * shape.vectors + v) * lanes * item) for v in range(shape.vectors)]
        for r in range(rows)
    ]
    sums = [[f.variable(vector, "zeroinitializer") for _ in row] for row in held]
    with f.if_(f.argument("resume")):
        for row, places in zip(sums, held, strict=True):
            for total, place in zip(row, places, strict=True):
                total.set(f.load(vector, place, lanes * item))
    a, b = f.variable("ptr", f.argument("a")), f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        a_now, b_now = a.get(), b.get()
        columns = [factors.column(f, f.at(b_now, v * lanes * factors.column_bytes)) for v in range(shape.vectors)]
        for offset in range(0, line, 64):
            f.prefetch(f.at(b_now, _AHEAD + offset))
        for r in range(rows):
            row_factor = factors.row(f, f.at(a_now, r * factors.row_bytes))
            for v in range(shape.vectors):
                sums[r][v].set(factors.multiply_add(f, row_factor, columns[v], sums[r][v].get()))
        a.set(f.at(a_now, f.argument("a_stride")))
        b.set(f.at(b_now, line))

    def finish() -> None:
        zero = Value(f, vector, "zeroinitializer")
        for v in range(shape.vectors):
            for first in range(0, rows, lanes):
                some = [sums[r][v].get() if r < rows else zero for r in range(first, first + lanes)]
                for j, value in enumerate(transposed(f, some, lanes)):
                    f.store(value, f.at(f.argument("to"), ((v * lanes + j) * pitch + first) * item), item)

    def wait() -> None:
        for row, places in zip(sums, held, strict=True):
            for total, place in zip(row, places, strict=True):
                f.store(total.get(), place, lanes * item)

    f.if_else(f.argument("last"), finish, wait)
    f.ret()
    return f


def emit_channels(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution with a known number of output positions.

    The output of a pointwise convolution has the size of its input, as ``choose`` makes sure: it is read in place.

    Buffers: ``input``, ``weight`` (packed by :func:`pack_channels`), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: as for other convolutions.
    """
    module = Module(target, KERNEL)
    plan = _make_plan(spec, target)
    item, shape = ITEM_BYTES[spec.dtype], plan.shape
    lanes, width = shape.lanes, shape.columns
    finished_pitch = _BLOCK_POSITIONS + shape.rows + lanes + 64 // item
    counts = [shape.rows, shape.rows - 1][: min(2, shape.rows)]
    factors = Factors.with_weights_as_columns(spec, lanes)
    tiles = {rows: _emit_tile(module, rows, shape, factors, finished_pitch) for rows in counts}
    x_strides = sorted({1, 2, spec.padded(spec.stride, 1)[2]})
    copy_row = {stride: _renamed_copy(module, spec, lanes, stride) for stride in x_strides}
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(module, "store", spec, lanes, finished_pitch, out_at)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    kernel, stride, dilation, pad = (
        [names[f"{what}_{axis}"] for axis in "zyx"] for what in ("kernel", "stride", "dilation", "pad")
    )
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    waiting_at = f.at(scratch, names["copy_bytes"])
    results = f.stack((width * finished_pitch + lanes) * item)
    per_step = 2 if spec.pairs else 1  # channels
    steps = f.value(f.ceildiv(ins, per_step)) if spec.pairs else ins
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_h, out_w = names["out_h"], names["out_w"]
    size = names["out_d"] * out_h * out_w
    in_size = in_d * in_h * in_w
    if spec.pairs and is_pointwise(spec):
        # All positions are one row, which is copied at once.
        in_d, in_h, in_w, out_h, out_w = f.const(1), f.const(1), in_size, f.const(1), size
    taps = kernel[0] * kernel[1] * kernel[2]
    pitch, channel_step, in_place = names["pitch"], names["channel_step"], names["in_place"].equals(1)
    tile_total, block_tiles = names["tiles"], names["block_tiles"]
    out_blocks = f.value(f.ceildiv(outs, width))
    blocks = f.value(f.ceildiv(tile_total, block_tiles))
    maps = names["batch"] * groups
    # Positions are divided where output channels cannot be as fairly.
    evened = f.value(f.maximum(f.ceildiv(blocks, nthreads), 1) * nthreads)
    even_tiles = f.value(f.maximum(f.ceildiv(tile_total, evened), 1))
    by_positions = clearly_less(
        f.value((evened // nthreads) * even_tiles * out_blocks), f.value(f.ceildiv(out_blocks, nthreads) * tile_total)
    )
    by_positions = f.value(maps.equals(1) & (blocks % nthreads > 0) & (blocks < nthreads * 8) & by_positions)
    each_tiles = f.value(f.select(by_positions, even_tiles, block_tiles))
    blocks = f.value(f.ceildiv(tile_total, each_tiles))
    units = maps * blocks
    splits = f.value(f.select(by_positions, 1, split_count(f, units, nthreads, out_blocks)))
    begin, end = even_share(f, units * splits, tid, nthreads)

    def position(tile: Value) -> Value:
        """The first position of a tile."""
        return tile * shape.rows - f.value(f.maximum(0, tile - names["larger_tiles"]))

    with f.loop(begin, end) as unit:
        block, split = unit // splits, unit % splits
        first_tile = (block % blocks) * each_tiles
        last_tile = f.value(f.minimum(tile_total, first_tile + each_tiles))
        channel_map = block // blocks  # of (image, group)
        group = channel_map % groups
        first, last = position(first_tile), position(last_tile)
        out_begin, out_end = even_share(f, out_blocks, split, splits)
        group_weight = f.at(weight, group * out_blocks * taps * steps * (width * factors.column_bytes))
        with f.loop(0, f.maximum(steps, 1), channel_step) as channel:
            channels = f.value(f.minimum(channel_step, steps - channel))
            from_channel = f.at(source, (channel_map * ins + channel * per_step) * in_size * item)

            read = f.value(f.minimum(channels * 2, ins - channel * 2)) if spec.pairs else channels

            def gather(
                first: Value = first, last: Value = last, read: Value = read, from_channel: Value = from_channel
            ) -> None:
                first_row, last_row = first // out_w, (last - 1) // out_w
                with f.loop(0, taps) as tap, f.loop(first_row, last_row + 1) as row:
                    plane, x_tap = tap // kernel[2], tap % kernel[2]
                    z = (row // out_h) * stride[0] + (plane // kernel[1]) * dilation[0] - pad[0]
                    y = (row % out_h) * stride[1] + (plane % kernel[1]) * dilation[1] - pad[1]
                    inside = (z >= 0) & (z < in_d) & (y >= 0) & (y < in_h)
                    x_first = f.value(f.maximum(first - row * out_w, 0))
                    x_last = f.value(f.minimum(last - row * out_w, out_w))
                    arguments: list[Int] = [
                        f.at(from_channel, f.select(inside, (z * in_h + y) * in_w * item, 0)),
                        in_size * item,
                        read,
                        x_first * stride[2] + x_tap * dilation[2] - pad[2],
                        f.select(inside, in_w, 0),
                        x_last - x_first,
                        f.at(scratch, (tap * pitch + row * out_w + x_first - first) * item),
                        taps * pitch * item,
                    ]
                    for step in x_strides:
                        with f.if_(stride[2].equals(step)):
                            f.call(copy_row[step], arguments)

            f.if_else(in_place, lambda: None, gather)
            a_base = f.select(in_place, f.at(from_channel, first * item), scratch)
            a_stride = f.select(in_place, in_size * item, pitch * item)
            done = channel + channels >= steps
            with f.loop(out_begin, out_end) as out_block:
                b = f.at(group_weight, (out_block * steps + channel) * taps * (width * factors.column_bytes))
                waiting_block = out_block * block_tiles * (shape.rows * width * item)
                with f.loop(first_tile, last_tile) as tile:
                    offset = position(tile) - first
                    held = f.at(waiting_at, waiting_block + (tile - first_tile) * (shape.rows * width * item))
                    arguments: list[Int] = [f.at(a_base, offset * item), a_stride, b, channels * taps, held]
                    arguments += [channel > 0, done, f.at(results, offset * item)]

                    def run(rows: int, arguments: list[Int] = arguments) -> None:
                        f.call(tiles[rows], arguments)

                    if len(counts) > 1:
                        f.if_else(tile < names["larger_tiles"], lambda: run(counts[0]), lambda: run(counts[1]))
                    else:
                        run(counts[0])
                with f.if_(done):
                    channel_out = group * outs + out_block * width
                    place = (channel_map * outs + out_block * width) * size + first
                    rows_left = f.minimum(width, outs - out_block * width)
                    f.call(
                        store,
                        [f.argument("buffers"), results, rows_left, last - first, place, size, channel_out, 0],
                    )
    f.ret(0)
    constants = [spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups]
    constants += [int(_in_place(spec)), plan.larger, plan.tiles, plan.block_tiles, plan.pitch, plan.channel_step]
    constants += [plan.copy_bytes, plan.scratch_bytes]
    for values, fill in ((spec.kernel, 1), (spec.stride, 1), (spec.dilation, 1), (spec.pad_begin, 0)):
        constants += spec.padded(values, fill)
    return finished(module, target, "channels", buffers, PARAMS, plan.scratch_bytes, constants)


def _renamed_copy(module: Module, spec: ConvSpec, lanes: int, stride: int) -> Function:
    name = f"copy_row{stride}"
    if spec.pairs:
        return emit_copy_row_pairs(module, name, stride)
    return emit_copy_row(module, name, spec.dtype, lanes, stride)
