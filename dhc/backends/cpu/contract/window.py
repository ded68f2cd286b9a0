"""Convolutions and transposed convolutions of 1 to 3 dimensions, plain ``[N, C, D, H, W]`` layout in and out.

Both are sums over taps with fixed displacements. A *phase* is a set of output positions that share their taps: a
convolution has one, a transposed convolution has one for each residue of the output position modulo the stride, each of
them a plain stride-1 gather without inserted zeros. Phases that differ in x alone are computed together and interleaved
when they are stored. Within a phase, output ``t * out_stride + out_first`` reads input
``t * in_stride + displacement`` for every tap.

A thread takes blocks of output rows. For a block it copies the input rows that the taps need into scratch memory in the
second-level cache, zeros in place of padding, so that the register tiles see one long row of columns without borders:

- *wide*: one copied row for each (channel, z tap, y tap), the x taps read it at displaced addresses; the few columns
  between rows are computed and thrown away. Near y taps share rows as well: the rows of a block and their neighbours
  are then copied once for each (channel, z tap);
- *narrow* (or strided in x): one copied row for each tap, rows without gaps, so that maps of 7 or 14 columns fill whole
  vectors.

Weights are packed at compile time in the order the tiles read them. Each result is one sum in the order (channel, tap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dhc.backends.cpu.contract.blocks import (
    digits,
    odd_lines,
    over_columns,
    over_row_tiles,
    over_runs,
    row_blocks,
    split_count,
)
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.pair_copying import emit_copy_row_pairs
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, ConvTransposeSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, even_share
from dhc.backends.cpu.contract.window_plan import CONSTANTS, PARAMS, constant_parameters, make_plan
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Int, Module, Value, Variable
from dhc.backends.cpu.target import CpuTarget

# Columns that a block has at most when its channels come in blocks.
_BLOCK_COLUMNS = 224


def emit_window(spec: ConvSpec | ConvTransposeSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution or transposed convolution.

    Buffers: ``input``, ``weight`` (packed by ``window_plan.pack_weights``), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: :data:`PARAMS`, missing leading dimensions are 1, then the code's ``constants``.
    """
    plan = make_plan(spec, target)
    module = Module(target, KERNEL)
    item, shape, lanes = ITEM_BYTES[spec.dtype], plan.shape, plan.shape.lanes
    columns = shape.columns
    ins_fixed = spec.steps
    factors = Factors.with_weights_as_rows(spec, lanes)
    inner_taps = len(plan.tap_offsets)
    interleave = plan.interleave
    copies = max(phase.taps for phase in plan.phases) // inner_taps
    if plan.shared_copy:
        copies //= interleave
    span, halo = plan.span, plan.halo

    # Scratch memory of a thread: half the second-level cache, or what one vector tile needs when that is more.
    # When its channels do not fit beside enough columns, they come in blocks, and the sums of all tiles wait in memory.
    slack = columns + span + 2 * lanes
    least = ins_fixed * copies * odd_lines((halo + 1) * (columns + span) + 3 * lanes, item) + slack
    budget = max(target.l2_bytes // 2 // item, least)
    copy_bytes = -(-budget * item // 64) * 64
    tile_sums = interleave * shape.rows * columns
    tiles_fixed = sum(count for _, count in plan.tiles)
    block_room = (halo + 1) * (_BLOCK_COLUMNS + span) + 2 * lanes + 2 * (64 // item)
    block_row = odd_lines(block_room, item)
    blocked = ins_fixed * copies * block_row + slack > budget >= copies * block_row + slack
    waiting_bytes = tiles_fixed * _waiting_tiles(shape) * tile_sums * item if blocked else 0
    # A line more: the last run of the last tile is read in whole vectors.
    scratch_bytes = copy_bytes + (-(-waiting_bytes // 64) * 64 + 64 if blocked else 0)

    offsets = tuple((rows, offset * item) for rows, offset in plan.tap_offsets)
    accumulate = {}
    for rows in plan.row_counts:
        for vectors in sorted({shape.vectors, 1}):
            accumulate[rows, vectors] = emit_accumulate(
                module,
                f"tile{rows}x{vectors}",
                TileShape(rows, vectors, lanes),
                columns,
                spec.dtype,
                offsets,
                packed_rows=True,
                factors=factors,
            )
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(
        module, "store", spec, lanes, columns, out_at,
        column_stride=plan.out_stride[2] // interleave, interleave=interleave, plane=shape.rows * columns,
    )  # fmt: skip
    if spec.pairs:
        copy_row = emit_copy_row_pairs(module, "copy_row", plan.in_stride[2])
    else:
        copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, plan.in_stride[2])

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    phases_at = len(names)
    record = 3 + 3 * interleave
    taps_at = names["phases"] * record + phases_at
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    per_step = 2 if spec.pairs else 1  # channels
    steps = f.value(f.ceildiv(ins, per_step)) if spec.pairs else ins
    in_strides: tuple[Int, ...] = (names["in_stride_z"], names["in_stride_y"], plan.in_stride[2])
    out_strides: tuple[Int, ...] = (names["out_stride_z"], names["out_stride_y"], plan.out_stride[2])
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    sums = f.stack((interleave * shape.rows * columns + lanes) * item)
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    # Without neighbours the whole map is one row. An output beyond the input (end pads) has no such shortcut.
    flat = names["flatten"].equals(1) & in_d.equals(out_d) & in_h.equals(out_h) & in_w.equals(out_w)
    in_w, out_w = (f.select(flat, d * h * w, w) for d, h, w in ((in_d, in_h, in_w), (out_d, out_h, out_w)))
    in_d, in_h, out_d, out_h = (f.select(flat, 1, size) for size in (in_d, in_h, out_d, out_h))
    in_plane, out_plane = in_d * in_h * in_w, out_d * out_h * out_w
    tile_total = names["larger_tiles"] + names["smaller_tiles"]

    with f.loop(0, names["phases"]) as phase_index:
        entry = [f.parameter(phase_index * record + (phases_at + i)) for i in range(record)]
        first_z, first_y, first_x = entry[:3]
        parts = [tuple(entry[i : i + 3]) for i in range(3, record, 3)]  # first tap, number of taps, taps before
        tap_count = entry[4]
        if not plan.shared_copy:
            for part in parts[1:]:
                tap_count = tap_count + part[1]
        size = [
            f.value(f.maximum(0, f.ceildiv(out - first, stride)))
            for out, first, stride in zip((out_d, out_h, out_w), (first_z, first_y, first_x), out_strides, strict=True)
        ]
        t_rows, t_h, t_w = size[0] * size[1], size[1], size[2]
        copied_rows = f.value(f.maximum(tap_count * steps, 1))

        # Blocks of x columns and rows that fit the scratch memory, evened out over the threads.
        room = (names["copy_bytes"] // item - slack) // copied_rows
        needed = f.value(f.minimum((t_rows + halo) * (t_w + span), block_room))
        in_blocks = names["blocked"].equals(1) & (room < needed)
        room = f.select(in_blocks, block_room, room)
        row_room = room - (lanes + 2 * (64 // item))
        # Few columns at a time, so that the copied rows stay near; enough to pay for setting the tiles up.
        cap = f.maximum(8 * columns, f.const(target.l1_bytes * 3 // 4 // item) // copied_rows)
        cap = f.value(f.select(in_blocks, _BLOCK_COLUMNS, cap))
        # Blocks with a halo stay within a plane.
        plane_rows, planes = (t_h, size[0]) if halo else (t_rows, f.const(1))
        chosen = row_blocks(
            f, shape, item, halo, span, room=row_room, cap=cap, width=t_w, rows=(t_rows,), plane_rows=plane_rows,
            planes=planes, nthreads=nthreads, tiles=tile_total,
        )  # fmt: skip
        x_size, r_size, pitch_row, pitch = chosen.x_size, chosen.r_size, chosen.pitch_row, chosen.pitch
        # Channels, or pairs of them, of a block: all, or as many as the copied columns leave room for.
        fitting = (names["copy_bytes"] // item - slack) // f.value(f.maximum(tap_count * pitch, 1))
        channel_step = f.value(f.maximum(1, f.select(in_blocks, f.minimum(fitting, steps), steps)))
        blocks = names["batch"] * groups * planes * chosen.r_blocks * chosen.x_blocks
        splits = split_count(f, blocks, nthreads, tile_total)
        contiguous = chosen.x_blocks.equals(1) if not plan.wide and isinstance(spec, ConvSpec) else None
        begin, end = even_share(f, blocks * splits, tid, nthreads)
        last_copied = f.variable("i64", -1)

        with f.loop(begin, end) as unit:
            block, split = unit // splits, unit % splits
            x_block, r_block, plane, group, image = digits(block, chosen.x_blocks, chosen.r_blocks, planes, groups)
            x_first, y_first = x_block * x_size, r_block * r_size
            r_first = plane * plane_rows + y_first  # counted over all planes
            x_count = f.value(f.minimum(x_size, t_w - x_first))
            r_count = f.value(f.minimum(r_size, plane_rows - y_first))

            # Where the copied rows of each x residue begin in the scratch memory.
            regions: list[Value] = [scratch]
            for part in parts[:-1]:
                regions.append(
                    scratch if plan.shared_copy else f.at(regions[-1], part[1] * channel_step * pitch * item)
                )

            total = (r_count - 1) * pitch_row + x_count
            run_row, run_pitch = x_count, pitch_row
            if contiguous is not None:
                whole = r_count * pitch_row
                run_row = f.select(contiguous, whole, x_count)
                run_pitch = f.select(contiguous, whole, pitch_row)
            tile_begin, tile_end = even_share(f, tile_total, split, splits)
            group_weight = f.at(weight, group * names["taps"] * steps * outs * factors.row_bytes)
            out_image = (image * groups + group) * outs * out_plane

            def column_tiles(
                rows: int,
                row: Value,
                tile: Value,
                channel: Value,
                channels: Value,
                f: Any = f,
                total: Value = total,
                group_weight: Value = group_weight,
                pitch: Value = pitch,
                group: Value = group,
                run_row: Value = run_row,
                run_pitch: Value = run_pitch,
                r_first: Value = r_first,
                t_h: Value = t_h,
                x_first: Value = x_first,
                out_image: Value = out_image,
                first: tuple[Value, ...] = (first_z, first_y, first_x),
                parts: list[tuple[Value, ...]] = parts,
                regions: list[Value] = regions,
                channel_step: Value = channel_step,
                pitch_row: Value = pitch_row,
            ) -> None:
                tile_weights = [
                    f.at(
                        group_weight,
                        ((before * outs + row * (taps * inner_taps)) * steps + channel * (taps * inner_taps * rows))
                        * factors.row_bytes,
                    )
                    for _, taps, before in parts
                ]

                last = channel + channels >= steps
                waiting = f.at(scratch, tile * (_waiting_tiles(shape) * tile_sums * item) + names["copy_bytes"])

                def finish(q: Value, width: Int, tile_at: Value) -> None:
                    """Writes the runs of real outputs among ``width`` computed columns from ``q`` on."""

                    def write(at: Variable, r: Variable, x: Variable, count: Value) -> None:
                        position = r_first + r.get()
                        z = (position // t_h) * out_strides[0] + first[0]
                        y = (position % t_h) * out_strides[1] + first[1]
                        column = (x_first + x.get()) * out_strides[2] + first[2]
                        place = out_image + row * out_plane + (z * out_h + y) * out_w + column
                        outputs = count
                        if interleave > 1:
                            outputs = f.value(f.minimum(count * interleave, out_w - column))
                        sums_at = f.at(tile_at, (at.get() - q) * item)
                        channel_out = group * outs + row
                        f.call(store, [f.argument("buffers"), sums_at, rows, outputs, place, out_plane, channel_out, 0])

                    over_runs(f, q, width, total, run_row, run_pitch, write)

                number = f.variable("i64", 0)

                def run(q: Value, vectors: int) -> None:
                    held = f.at(waiting, number.get() * (tile_sums * item))
                    tile_at = f.select(channel_step < steps, held, sums)
                    number.set(number.get() + 1)
                    for i, (part, a, region) in enumerate(zip(parts, tile_weights, regions)):
                        to = f.at(tile_at, i * shape.rows * columns * item)
                        b = f.at(region, q * item)
                        f.call(
                            accumulate[rows, vectors],
                            [a, 0, 0, b, pitch * item, pitch_row * item, part[1] * channels, to, channel > 0],
                        )
                    with f.if_(last):
                        finish(q, vectors * lanes, tile_at)

                over_columns(f, shape, total, run)

            with f.loop(0, f.maximum(steps, 1), channel_step) as channel:
                channels = f.value(f.minimum(channel_step, steps - channel))
                fresh = last_copied.get().equals(block) & (channel_step >= steps)
                with f.if_(fresh.equals(0)):
                    last_copied.set(block)
                    channel0 = f.at(source, ((image * groups + group) * ins + channel * per_step) * in_plane * item)
                    read = f.minimum(channels * 2, ins - channel * 2) if spec.pairs else channels
                    copied = list(zip(parts, regions))[: 1 if plan.shared_copy else interleave]
                    for part, region in copied:
                        with f.loop(0, part[1]) as tap, f.loop(0, r_count + halo) as r:
                            dz, dy, dx = (f.parameter(taps_at + ((part[0] + tap) * 3 + i)) for i in range(3))
                            if halo:
                                z_out, y_out = plane, y_first + r
                            else:
                                z_out, y_out = (r_first + r) // t_h, (r_first + r) % t_h
                            z = z_out * in_strides[0] + dz
                            y = y_out * in_strides[1] + dy
                            inside = (z >= 0) & (z < in_d) & (y >= 0) & (y < in_h)
                            # A row outside the input is a row of which no column is inside.
                            width = f.select(inside, in_w, 0)
                            start = f.select(inside, (z * in_h + y) * in_w * item, 0)
                            f.call(
                                copy_row,
                                [
                                    f.at(channel0, start),
                                    in_plane * item,
                                    read,
                                    x_first * in_strides[2] + dx,
                                    width,
                                    x_count + span,
                                    f.at(region, (tap * pitch + r * pitch_row) * item),
                                    part[1] * pitch * item,
                                ],
                            )

                def whole_channels(
                    rows: int, row: Value, tile: Value, channel: Value = channel, channels: Value = channels,
                    column_tiles: Callable[..., None] = column_tiles,
                ) -> None:  # fmt: skip
                    column_tiles(rows, row, tile, channel, channels)

                over_row_tiles(f, names, plan.row_counts, tile_begin, tile_end, whole_channels)

    f.ret(0)
    sizes = (scratch_bytes, copy_bytes, int(blocked))
    return finished(module, target, "conv", buffers, PARAMS, scratch_bytes, constant_parameters(spec, plan, sizes))


def _waiting_tiles(shape: TileShape) -> int:
    """How many tiles cover the columns of a block: whole ones, and single vectors for the rest."""
    return _BLOCK_COLUMNS // shape.columns + shape.vectors + 1
