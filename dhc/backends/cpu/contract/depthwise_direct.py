"""Depthwise convolutions on targets with masks: the input is read where it lies.

A register tile is rows x vectors of one output channel; an input row is loaded once for all output rows that it
touches. Masked loads give zeros beyond the ends of a row, and rows beyond the input are read from a row of zeros, so
that nothing has to be copied. With an x stride of 2, pairs of vectors are sorted into even and odd columns.
"""

from __future__ import annotations

import math

from dhc.backends.cpu.contract.conv_results import conv_writer, write_rows
from dhc.backends.cpu.contract.copying import inside_mask
from dhc.backends.cpu.contract.depthwise import is_depthwise
from dhc.backends.cpu.contract.fused_tile import is_short
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

CONSTANTS = ("in_channels", "multiplier", "pad_y", "pad_x")
_MOST_TAPS = 25
_ROWS = (4, 2, 1)
_VECTORS = (2, 1)
# Rows that a thread takes at a time.
_BLOCK_ROWS = 32


def is_direct(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether :func:`emit_depthwise_direct` serves a convolution."""
    if not target.masks or not is_depthwise(spec) or len(spec.kernel) > 2:
        return False
    x_fits = spec.stride[-1] == 1 or (spec.stride[-1] == 2 and spec.dilation[-1] == 1)
    near = (spec.padded(spec.kernel, 1)[1] - 1) * spec.padded(spec.dilation, 1)[1] <= 8
    return x_fits and near and math.prod(spec.kernel) <= _MOST_TAPS


def emit_depthwise_direct(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel; buffers and parameters as for other convolutions, the weights as they are, no scratch."""
    module = Module(target, KERNEL)
    item, lanes = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype)
    taps, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    span = (taps[2] - 1) * spec.dilation[-1]
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue, scratch=False)
    out_at = buffers.index("out")
    short = is_short(module, spec.dtype, lanes, spec.epilogue)
    finish = None if short else _emit_finish(module, spec, lanes, out_at)
    tiles = {
        (rows, vectors): _emit_tile(module, spec, rows, vectors, lanes, out_at, finish)
        for rows in _ROWS
        for vectors in _VECTORS
    }
    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    in_h, in_w, out_h, out_w = names["in_h"], names["in_w"], names["out_h"], names["out_w"]
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    zero_bytes = (_VECTORS[0] * lanes * stride[2] + span + lanes) * item
    zeros = f.stack(-(-zero_bytes // 64) * 64)
    with f.loop(0, -(-zero_bytes // item)) as j:
        f.store(f.constant(0.0, ELEMENT[spec.dtype]), f.at(zeros, j * item), item)
    out_channels = names["in_channels"] * names["multiplier"]
    blocks = f.value(f.ceildiv(out_h, _BLOCK_ROWS))
    begin, end = even_share(f, names["batch"] * out_channels * blocks, f.argument("tid"), f.argument("nthreads"))
    with f.loop(begin, end) as unit:
        r_first, plane = (unit % blocks) * _BLOCK_ROWS, unit // blocks
        channel = plane % out_channels
        r_last = f.value(f.minimum(out_h, r_first + _BLOCK_ROWS))
        in_plane = f.at(source, (plane // names["multiplier"]) * in_h * in_w * item)
        weights = f.at(weight, channel * (taps[1] * taps[2] * item))
        r = f.variable("i64", r_first)
        for rows in _ROWS:
            with f.while_(lambda rows=rows: r.get() + rows <= r_last):  # type: ignore[misc]
                y = r.get() * stride[1] - names["pad_y"]
                place = (plane * out_h + r.get()) * out_w
                x = f.variable("i64", 0)
                for vectors in _VECTORS:
                    with f.while_(lambda vectors=vectors, x=x: x.get() + (vectors - 1) * lanes < out_w):  # type: ignore[misc]
                        column = x.get() * stride[2] - names["pad_x"]
                        f.call(
                            tiles[rows, vectors],
                            [f.argument("buffers"), in_plane, weights, zeros, y, column, in_h, in_w,
                             place + x.get(), out_w, out_w - x.get(), channel],
                        )  # fmt: skip
                        x.set(x.get() + vectors * lanes)
                r.set(r.get() + rows)
    f.ret(0)
    pad = spec.padded(spec.pad_begin, 0)
    constants = (spec.in_channels, spec.out_channels // spec.in_channels, *pad[1:])
    return finished(module, target, "depthwise_direct", buffers, PARAMS, 0, constants)


def _emit_finish(module: Module, spec: ConvSpec, lanes: int, out_at: int) -> Function:
    """``void finish(buffers, sums, rows, pitch, place, out_w, count, channel)``: for long epilogues, written once."""
    item = ITEM_BYTES[spec.dtype]
    arguments = (
        "ptr buffers",
        "ptr sums",
        "i64 rows",
        "i64 pitch",
        "i64 place",
        "i64 out_w",
        "i64 count",
        "i64 channel",
    )
    f = module.function("finish", "void", tuple((a.split()[0], a.split()[1]) for a in arguments))
    writer = conv_writer(f, spec, lanes, out_at)
    writer.begin_row(f.argument("channel"))
    count = f.argument("count")
    with f.loop(0, f.argument("rows")) as r, f.loop(0, count, lanes) as j:
        value = f.load(
            f"<{lanes} x {ELEMENT[spec.dtype]}>",
            f.at(f.argument("sums"), (r * f.argument("pitch") + j) * item),
            lanes * item,
        )
        writer.write(value, f.argument("place") + r * f.argument("out_w") + j, f.const(0), count - j)
    f.ret()
    return f


def _emit_tile(
    module: Module, spec: ConvSpec, rows: int, vectors: int, lanes: int, out_at: int, finish: Function | None
) -> Function:
    """``void tile(buffers, plane, weights, zeros, y, x, in_h, in_w, place, out_w, count, channel)``.

    ``y`` and ``x``: where the first tap of the first result lies.
    """
    item, element = ITEM_BYTES[spec.dtype], ELEMENT[spec.dtype]
    vector = f"<{lanes} x {element}>"
    taps, stride = spec.padded(spec.kernel, 1)[1:], spec.padded(spec.stride, 1)[1:]
    dilation = spec.padded(spec.dilation, 1)[1:]
    arguments = ("ptr buffers", "ptr plane", "ptr weights", "ptr zeros", "i64 y", "i64 x", "i64 in_h", "i64 in_w")
    arguments += ("i64 place", "i64 out_w", "i64 count", "i64 channel")
    f = module.function(f"tile{rows}x{vectors}", "void", tuple((a.split()[0], a.split()[1]) for a in arguments))
    y, x, in_h, in_w = (f.argument(name) for name in ("y", "x", "in_h", "in_w"))
    plane = f.at(f.argument("plane"), x * item)
    masks: dict[int, Value] = {}
    splats = {}
    for ky in range(taps[0]):
        for kx in range(taps[1]):
            scalar = f.load(element, f.at(f.argument("weights"), (ky * taps[1] + kx) * item), item)
            splats[ky, kx] = f.splat(scalar, lanes)

    def read(row: Value, offset: int) -> Value:
        """A vector of the row, ``offset`` elements behind the first tap."""
        if offset not in masks:
            masks[offset] = inside_mask(f, x + offset, in_w, lanes)
        return f.masked_load(vector, f.at(row, offset * item), masks[offset], item)

    def columns(row: Value, kx: int) -> list[Value]:
        """The vectors that a tap multiplies."""
        if stride[1] == 1:
            return [read(row, kx * dilation[1] + v * lanes) for v in range(vectors)]
        base, odd = kx - kx % 2, kx % 2
        found = []
        for v in range(vectors):
            for half in range(2):
                key = base + (2 * v + half) * lanes
                if key not in loaded:
                    loaded[key] = read(row, key)
            low, high = (loaded[base + (2 * v + half) * lanes] for half in range(2))
            found.append(f.shuffle(low, high, range(odd, 2 * lanes, 2)))
        return found

    sums = [[f.variable(vector, "zeroinitializer") for _ in range(vectors)] for _ in range(rows)]
    uses: dict[int, list[tuple[int, int]]] = {}
    for r in range(rows):
        for ky in range(taps[0]):
            uses.setdefault(r * stride[0] + ky * dilation[0], []).append((r, ky))
    for offset in sorted(uses):
        at = y + offset
        inside = (at >= 0) & (at < in_h)
        row = f.select(inside, f.at(plane, at * in_w * item), f.argument("zeros"))
        loaded: dict[int, Value] = {}
        for kx in range(taps[1]):
            values = columns(row, kx)
            for r, ky in uses[offset]:
                for v in range(vectors):
                    sums[r][v].set(f.fma(splats[ky, kx], values[v], sums[r][v].get()))
    count = f.argument("count")
    if finish is not None:
        held = f.stack(rows * vectors * lanes * item)
        for r in range(rows):
            for v in range(vectors):
                f.store(sums[r][v].get(), f.at(held, (r * vectors + v) * lanes * item), lanes * item)
        width = f.minimum(count, vectors * lanes)
        arguments_now = [f.argument("buffers"), held, rows, vectors * lanes, f.argument("place"), f.argument("out_w")]
        f.call(finish, [*arguments_now, width, f.argument("channel")])
        f.ret()
        return f
    writer = conv_writer(f, spec, lanes, out_at)
    writer.begin_row(f.argument("channel"))
    write_rows(f, writer, sums, f.argument("place"), f.argument("out_w"), count, lanes)
    f.ret()
    return f
