"""Depthwise convolutions on small maps and with strides: vectors over channels.

A vector of neighbouring columns wastes lanes on narrow maps and needs its columns sorted out for strides. Here the rows
that a block of output rows needs are transposed in registers first, so that a vector holds as many channels of one
position, with zeros in place of padding; then a tap is one product with a vector of weights read from memory for every
position, wherever it lies. Results are transposed back, and whole runs of a channel are finished and stored at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share, load_lanes, row_tiles
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

CONSTANTS = (
    "channels",
    "taps",
    "larger_tiles",  # of an output row; the smaller ones are one position narrower
    "smaller_tiles",
    "columns",  # that the windows of a row touch
    "block_rows",
    "scratch_bytes",
    "offsets_at",
    "results_at",
    "stride_y",
    "dilation_y",
    "pad_y",
    "pad_x",
    "reach_y",  # rows that a window touches
)
# Positions of a block's results: they wait in the first-level cache.
_BLOCK_POSITIONS = 256
_MOST_WIDTH = 256
_WIDEST = 7
_MOST_TAPS = 49


def reached_columns(spec: ConvSpec) -> int:
    """Columns of the padded input that the windows of an output row of ``spec.positions`` touch."""
    return (spec.positions - 1) * spec.stride[-1] + (spec.kernel[-1] - 1) * spec.dilation[-1] + 1


def is_channelwise(spec: ConvSpec) -> bool:
    """Whether :func:`emit_depthwise_channels` can serve a convolution whose output size is known."""
    flat = len(spec.kernel) < 3 or (spec.kernel[0] == 1 and spec.stride[0] == 1 and spec.pad_begin[0] == 0)
    taps = spec.padded(spec.kernel, 1)
    return flat and spec.groups == spec.in_channels == spec.out_channels and taps[1] * taps[2] <= _MOST_TAPS


def pack_depthwise_channels(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights ``[C, 1, k...]`` as ``[block of channels][tap][channel in block]``, the last block filled with zeros."""
    import numpy as np

    lanes = target.lanes(spec.dtype)
    blocks = -(-spec.in_channels // lanes)
    padded = np.zeros((blocks * lanes, weights[0].size), weights.dtype)
    padded[: spec.in_channels] = weights.reshape(spec.in_channels, -1)
    return np.ascontiguousarray(padded.reshape(blocks, lanes, -1).transpose(0, 2, 1)).reshape(-1)


def _emit_spread(module: Module, dtype: str, lanes: int) -> Function:
    """``void spread(from, channel_stride, channels, count, offsets, to)``: runs of channels to vectors of channels.

    Element ``j < count`` of channel ``c`` goes to lane ``c`` of the vector at ``to + offsets[j]``; lanes from
    ``channels`` on repeat the last channel.
    """
    item = ITEM_BYTES[dtype]
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    f = module.function(
        "spread",
        "void",
        (("ptr", "from"), ("i64", "channel_stride"), ("i64", "channels"), ("i64", "count"), ("ptr", "offsets"),
         ("ptr", "to")),
    )  # fmt: skip
    stride, count = f.argument("channel_stride"), f.argument("count")
    last = f.argument("channels") - 1
    bases = [f.at(f.argument("from"), f.value(f.minimum(c, last)) * stride) for c in range(lanes)]

    def block(j: Value, left: Value | None) -> None:
        rows = []
        for base in bases:
            at = f.at(base, j * item)
            rows.append(f.load(vector, at, item) if left is None else load_lanes(f, vector, at, left, item))
        for i, value in enumerate(transposed(f, rows, lanes)):

            def put(i: int = i, value: Value = value) -> None:
                offset = f.load("i64", f.at(f.argument("offsets"), (j + i) * 8), 8)
                f.store(value, f.at(f.argument("to"), offset), lanes * item)

            if left is None:
                put()
            else:
                with f.if_(left > i):
                    put()

    whole = (count // lanes) * lanes
    with f.loop(0, whole, lanes) as j:
        block(j, None)
    with f.if_(whole < count):
        block(whole, count - whole)
    f.ret()
    return f


def _emit_tile(module: Module, width: int, spec: ConvSpec, lanes: int) -> Function:
    """``void tile(from, weights, row_step, to)``: ``width`` positions, sums over taps, vectors over channels.

    ``row_step`` bytes lie between the y taps' rows.
    """
    item = ITEM_BYTES[spec.dtype]
    vector, size = f"<{lanes} x {ELEMENT[spec.dtype]}>", lanes * item
    taps_y, taps_x = spec.padded(spec.kernel, 1)[1:]
    stride, dilation = spec.padded(spec.stride, 1)[2], spec.padded(spec.dilation, 1)[2]
    f = module.function(
        f"tile{width}", "void", (("ptr", "from"), ("ptr", "weights"), ("i64", "row_step"), ("ptr", "to"))
    )
    sums = [f.variable(vector, "zeroinitializer") for _ in range(width)]
    with f.loop(0, taps_y) as y:
        row = f.at(f.argument("from"), y * f.argument("row_step"))
        weights = f.at(f.argument("weights"), y * (taps_x * size))
        for x in range(taps_x):
            factor = f.load(vector, f.at(weights, x * size), size)
            for p, total in enumerate(sums):
                value = f.load(vector, f.at(row, (p * stride + x * dilation) * size), size)
                total.set(f.fma(value, factor, total.get()))
    for p, total in enumerate(sums):
        f.store(total.get(), f.at(f.argument("to"), p * size), size)
    f.ret()
    return f


def _emit_collect(module: Module, dtype: str, lanes: int, pitch: int) -> Function:
    """``void collect(from, count, to)``: lane ``c`` of vector ``j`` goes to ``to[c * pitch + j]``.

    Whole vectors are read and written: up to ``lanes - 1`` behind ``count``.
    """
    item = ITEM_BYTES[dtype]
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    f = module.function("collect", "void", (("ptr", "from"), ("i64", "count"), ("ptr", "to")))
    with f.loop(0, f.argument("count"), lanes) as j:
        source, to = f.at(f.argument("from"), j * (lanes * item)), f.at(f.argument("to"), j * item)
        rows = [f.load(vector, f.at(source, i * lanes * item), lanes * item) for i in range(lanes)]
        for c, value in enumerate(transposed(f, rows, lanes)):
            f.store(value, f.at(to, c * pitch * item), item)
    f.ret()
    return f


def emit_depthwise_channels(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a depthwise convolution with one output channel for each input channel.

    ``spec.positions`` is the width of the output here; the input is at most ``stride`` columns wider than the columns
    that its windows touch. Buffers: ``input``, ``weight`` (packed by :func:`pack_depthwise_channels`), [``bias``],
    [``epilogue0``...], ``out``, ``scratch``. Parameters: as for other convolutions.
    """
    module = Module(target, KERNEL)
    item, lanes = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype)
    size = lanes * item
    tiles = row_tiles(spec.positions, _WIDEST)
    widest, larger = tiles[0] if tiles else (1, 0)
    block_rows = max(1, _BLOCK_POSITIONS // max(1, spec.positions))
    kernel, stride = spec.padded(spec.kernel, 1)[1:], spec.padded(spec.stride, 1)[1:]
    dilation, pad = spec.padded(spec.dilation, 1)[1:], spec.padded(spec.pad_begin, 0)[1:]
    columns = reached_columns(spec)
    rows = (block_rows - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1
    held = max(_BLOCK_POSITIONS, _MOST_WIDTH) + lanes
    pitch = held + 64 // item
    # The rows of a block, a place for what no window touches, the places of the input's elements, the results.
    offsets_at = (rows * columns + 1) * size
    results_at = -(-(offsets_at + rows * (columns + stride[1]) * 8) // 64) * 64
    scratch_bytes = results_at + -(-held * size // 64) * 64
    functions = {width: _emit_tile(module, width, spec, lanes) for width in (widest, widest - 1) if width}
    spread, collect = _emit_spread(module, spec.dtype, lanes), _emit_collect(module, spec.dtype, lanes, pitch)
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(module, "store", spec, lanes, pitch, out_at)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    channels, columns_now, block = names["channels"], names["columns"], names["block_rows"]
    stride_y, pad_y, reach_y = names["stride_y"], names["pad_y"], names["reach_y"]
    in_h, in_w, out_h, out_w = names["in_h"], names["in_w"], names["out_h"], names["out_w"]
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), f.argument("tid") * names["scratch_bytes"])
    offsets, held_results = f.at(scratch, names["offsets_at"]), f.at(scratch, names["results_at"])
    finished_rows = f.stack(lanes * pitch * item)
    row_size = columns_now * size
    zero = Value(f, f"<{lanes} x {ELEMENT[spec.dtype]}>", "zeroinitializer")

    def clear(first: Int, last: Int) -> None:
        with f.loop(first * columns_now, last * columns_now) as j:
            f.store(zero, f.at(scratch, j * size), size)

    all_rows = (block - 1) * stride_y + reach_y
    clear(f.const(0), all_rows)
    trash = all_rows * row_size
    with f.loop(0, all_rows) as row, f.loop(0, in_w) as x:
        column = x + names["pad_x"]
        inside = (column >= 0) & (column < columns_now)
        f.store(f.select(inside, row * row_size + column * size, trash), f.at(offsets, (row * in_w + x) * 8), 8)

    channel_blocks = f.value(f.ceildiv(channels, lanes))
    row_blocks = f.value(f.ceildiv(out_h, block))
    units = names["batch"] * channel_blocks * row_blocks
    begin, end = even_share(f, units, f.argument("tid"), f.argument("nthreads"))
    with f.loop(begin, end) as unit:
        row_block, rest = unit % row_blocks, unit // row_blocks
        first = (rest % channel_blocks) * lanes
        count = f.value(f.minimum(lanes, channels - first))
        plane = (rest // channel_blocks) * channels + first
        r_first = row_block * block
        r_count = f.value(f.minimum(block, out_h - r_first))
        y_first = r_first * stride_y - pad_y
        row_count = (r_count - 1) * stride_y + reach_y
        above = f.value(f.minimum(row_count, f.maximum(0, 0 - y_first)))
        below = f.value(f.maximum(above, f.minimum(row_count, in_h - y_first)))
        clear(f.const(0), above)
        clear(below, row_count)
        arguments: list[Int] = [f.at(source, (plane * in_h + y_first + above) * in_w * item), in_h * in_w * item, count]
        f.call(spread, [*arguments, (below - above) * in_w, f.at(offsets, above * in_w * 8), scratch])
        weights = f.at(weight, first * names["taps"] * item)
        with f.loop(0, r_count) as r:
            x: Int = 0
            row_at, result_at = f.at(scratch, r * stride_y * row_size), f.at(held_results, r * out_w * size)
            for width, name in zip(functions, ("larger_tiles", "smaller_tiles"), strict=False):
                with f.loop(0, names[name]) as t:
                    at = x + t * width
                    f.call(
                        functions[width],
                        [f.at(row_at, at * (stride[1] * size)), weights, names["dilation_y"] * row_size,
                         f.at(result_at, at * size)],
                    )  # fmt: skip
                x = x + names[name] * width
        f.call(collect, [held_results, r_count * out_w, finished_rows])
        place = (plane * out_h + r_first) * out_w
        f.call(store, [f.argument("buffers"), finished_rows, count, r_count * out_w, place, out_h * out_w, first, 0])
    f.ret(0)
    smaller = sum(many for _, many in tiles) - larger
    constants = [spec.in_channels, kernel[0] * kernel[1], larger, smaller, columns, block_rows, scratch_bytes]
    constants += [offsets_at, results_at, stride[0], dilation[0], *pad, (kernel[0] - 1) * dilation[0] + 1]
    return finished(module, target, "depthwise_channels", buffers, PARAMS, scratch_bytes, constants)
