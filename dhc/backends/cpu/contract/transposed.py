"""Strided transposed convolutions of 1 to 3 dimensions, plain ``[N, C, D, H, W]`` layout in and out.

Outputs whose positions are equal modulo the stride share their taps: a stride of 2 in two dimensions makes four plain
windows of stride 1 over the input, without inserted zeros. A thread takes blocks of input rows and copies them once for
each channel and z tap into its scratch memory, zeros in place of padding; all windows of y and x read that copy at
displaced addresses. The outputs of neighbouring residues in x are interleaved when they are stored.

As in :mod:`~dhc.backends.cpu.contract.window` the register tiles see one long row of columns, and the few columns
between rows are computed and thrown away: maps narrower than a vector are better off there. Each result is one sum in
the order (channel, z tap, y tap, x tap), whatever the blocks and threads.
"""

from __future__ import annotations

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
from dhc.backends.cpu.contract.spec import KERNEL, ConvTransposeSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, even_share
from dhc.backends.cpu.contract.transposed_plan import Part, TransposedPlan, make_plan
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Function, Module, Value, Variable
from dhc.backends.cpu.target import CpuTarget

PARAMS = ("batch", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w")
# What follows PARAMS is known at compile time, but kept out of the code so that layers share kernels: these, then for
# each residue in z the displacements of its taps, in as many places as the residue with the most taps needs.
CONSTANTS = ("groups", "in_channels", "out_channels", "larger_tiles", "smaller_tiles", "scratch_bytes")

_Accumulate = dict[tuple[int, int, tuple[tuple[int, int], ...]], Function]


def emit_transposed(spec: ConvTransposeSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a transposed convolution whose phases share copied rows (``is_shared``).

    Buffers: ``input``, ``weight`` (packed by ``transposed_plan.pack_weights``), [``bias``], [``epilogue0``...],
    ``out``, ``scratch``. Parameters: :data:`PARAMS`, missing leading dimensions are 1, then the code's ``constants``.
    """
    plan = make_plan(spec, target)
    module = Module(target, KERNEL)
    item, columns, lanes = ITEM_BYTES[spec.dtype], plan.shape.columns, plan.shape.lanes
    halo, span = plan.halo, plan.span
    factors = Factors.with_weights_as_rows(spec, lanes)
    deepest = max(len(z.taps) for z in plan.depths)

    # Scratch memory of a thread: half the second-level cache, or what one tile needs when that is more.
    slack = columns + span + 2 * lanes
    least = spec.steps * deepest * odd_lines((halo + 1) * (columns + span) + 3 * lanes, item) + slack
    scratch_bytes = -(-max(target.l2_bytes // 2 // item, least) * item // 64) * 64

    accumulate: _Accumulate = {}
    for rows, _ in plan.tiles:
        for vectors in {plan.shape.vectors, 1}:
            for part in _parts(plan):
                key = (rows, vectors, part.offsets)
                if key not in accumulate:
                    offsets = tuple((row, column * item) for row, column in part.offsets)
                    shape = TileShape(rows, vectors, lanes)
                    accumulate[key] = emit_accumulate(
                        module, f"tile{len(accumulate)}", shape, columns, spec.dtype, offsets,
                        packed_rows=True, factors=factors,
                    )  # fmt: skip
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(
        module, "store", spec, lanes, columns, out_at,
        interleave=plan.stride[2], plane=plan.shape.rows * columns,
    )  # fmt: skip
    if spec.pairs:
        copy_row = emit_copy_row_pairs(module, "copy_row", 1)
    else:
        copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, 1)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    depths_at = len(names)
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    sums = f.stack((plan.stride[2] * plan.shape.rows * columns + lanes) * item)
    ins, outs, groups = names["in_channels"], names["out_channels"], names["groups"]
    steps = f.value(f.ceildiv(ins, 2)) if spec.pairs else ins
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    in_plane, out_plane = in_d * in_h * in_w, out_d * out_h * out_w
    tile_total = names["larger_tiles"] + names["smaller_tiles"]
    t_h, t_w = f.value(f.ceildiv(out_h, plan.stride[1])), f.value(f.ceildiv(out_w, plan.stride[2]))
    plane_taps = sum(len(part.offsets) for part in _parts(plan))
    every_tap = plane_taps * sum(len(z.taps) for z in plan.depths)

    taps_before = 0
    for number, depth in enumerate(plan.depths):
        z_taps = len(depth.taps)
        t_d = f.value(f.maximum(0, f.ceildiv(out_d - depth.first, plan.stride[0])))
        copied_rows = f.value(f.maximum(steps * z_taps, 1))

        # Blocks of columns and rows that fit the scratch memory, evened out over the threads.
        room = (names["scratch_bytes"] // item - slack) // copied_rows - (lanes + 2 * (64 // item))
        cap = f.value(f.maximum(8 * columns, f.const(target.l1_bytes * 3 // 4 // item) // copied_rows))
        chosen = row_blocks(
            f, plan.shape, item, halo, span, room=room, cap=cap, width=t_w, rows=(t_d, t_h), plane_rows=t_h,
            planes=t_d, nthreads=nthreads, tiles=tile_total,
        )  # fmt: skip
        x_size, r_size, pitch_row, pitch = chosen.x_size, chosen.r_size, chosen.pitch_row, chosen.pitch
        blocks = f.value(names["batch"] * groups * t_d * chosen.r_blocks * chosen.x_blocks)
        splits = split_count(f, blocks, nthreads, tile_total)
        begin, end = even_share(f, blocks * splits, tid, nthreads)
        last_copied = f.variable("i64", -1)

        with f.loop(begin, end) as unit:
            block, split = unit // splits, unit % splits
            x_block, r_block, plane, group, image = digits(block, chosen.x_blocks, chosen.r_blocks, t_d, groups)
            x_first, y_first = x_block * x_size, r_block * r_size
            x_count = f.value(f.minimum(x_size, t_w - x_first))
            r_count = f.value(f.minimum(r_size, t_h - y_first))
            total = f.value((r_count - 1) * pitch_row + x_count)

            with f.if_(last_copied.get().equals(block).equals(0)):
                last_copied.set(block)
                channel0 = f.at(source, (image * groups + group) * ins * in_plane * item)
                with f.loop(0, z_taps) as tap, f.loop(0, r_count + halo) as r:
                    z = plane + f.parameter(tap + (depths_at + number * deepest))
                    y = y_first + r + plan.first_row
                    inside = (z >= 0) & (z < in_d) & (y >= 0) & (y < in_h)
                    # A row outside the input is a row of which no column is inside.
                    width = f.select(inside, in_w, 0)
                    start = f.select(inside, (z * in_h + y) * in_w * item, 0)
                    to = f.at(scratch, (tap * pitch + r * pitch_row) * item)
                    first = x_first + plan.first_column
                    across = [in_plane * item, ins, first, width, x_count + span, to, pitch * (z_taps * item)]
                    f.call(copy_row, [f.at(channel0, start), *across])

            z_out = plane * plan.stride[0] + depth.first
            out_image = ((image * groups + group) * outs * out_d + z_out) * out_h * out_w
            tile_begin, tile_end = even_share(f, tile_total, split, splits)

            def residues(
                rows: int, row: Value, _: Value, z_taps: int = z_taps, taps_before: int = taps_before,
                x_first: Value = x_first, y_first: Value = y_first, x_count: Value = x_count, total: Value = total,
                pitch: Value = pitch, pitch_row: Value = pitch_row, group: Value = group, out_image: Value = out_image,
            ) -> None:  # fmt: skip
                before = taps_before
                for line in plan.parts:
                    _rows_of_residue(
                        f, plan, line, item, accumulate, store,
                        rows=rows, steps=steps * z_taps, sums=sums, scratch=scratch,
                        weights=[
                            f.at(
                                weight,
                                _place(group, every_tap, before, line, i, z_taps, outs, steps, row) * factors.row_bytes,
                            )
                            for i in range(len(line))
                        ],
                        pitch=pitch, pitch_row=pitch_row, total=total, x_count=x_count, x_first=x_first,
                        y_first=y_first, out_h=out_h, out_w=out_w, out_plane=out_plane,
                        place=out_image + row * out_plane, channel=group * outs + row,
                    )  # fmt: skip
                    before += z_taps * sum(len(part.offsets) for part in line)

            over_row_tiles(f, names, [rows for rows, _ in plan.tiles], tile_begin, tile_end, residues)
        taps_before += z_taps * plane_taps

    f.ret(0)
    counts = [count for _, count in plan.tiles] + [0, 0]
    constants = [
        spec.groups,
        spec.in_channels // spec.groups,
        spec.out_channels // spec.groups,
        *counts[:2],
        scratch_bytes,
    ]
    for depth in plan.depths:
        constants += [*depth.displacements, *[0] * (deepest - len(depth.taps))]
    return finished(module, target, "convt", buffers, PARAMS, scratch_bytes, constants)


def _parts(plan: TransposedPlan) -> list[Part]:
    return [part for line in plan.parts for part in line]


def _place(
    group: Value, every_tap: int, before: int, line: tuple[Part, ...], index: int, z_taps: int, outs: Value,
    steps: Value, row: Value,
) -> Value:  # fmt: skip
    """Where the weights of a tile begin for one residue in x of a residue in y, in elements."""
    earlier = before + z_taps * sum(len(part.offsets) for part in line[:index])
    own = z_taps * len(line[index].offsets)
    return (group * every_tap + earlier) * (outs * steps) + row * own * steps


def _rows_of_residue(
    f: Function, plan: TransposedPlan, line: tuple[Part, ...], item: int, accumulate: _Accumulate, store: Function, *,
    rows: int, steps: Value, sums: Value, scratch: Value, weights: list[Value], pitch: Value,
    pitch_row: Value, total: Value, x_count: Value, x_first: Value, y_first: Value, out_h: Value, out_w: Value,
    out_plane: Value, place: Value, channel: Value,
) -> None:  # fmt: skip
    """The outputs of a block in one tile of channels and one residue in y: sums of every residue in x, then stores."""
    lanes, columns = plan.shape.lanes, plan.shape.columns
    stride_y, stride_x = plan.stride[1], plan.stride[2]

    def finish(q: Value, width: int) -> None:
        """Writes the runs of real outputs among ``width`` computed columns from ``q`` on."""

        def write(at: Variable, r: Variable, x: Variable, count: Value) -> None:
            y = (y_first + r.get()) * stride_y + line[0].y.first
            column = (x_first + x.get()) * stride_x
            outputs = f.value(f.minimum(count * stride_x, out_w - column))
            with f.if_(y < out_h):
                start = place + (y * out_w + column)
                tile = f.at(sums, (at.get() - q) * item)
                f.call(store, [f.argument("buffers"), tile, rows, outputs, start, out_plane, channel, 0])

        over_runs(f, q, width, total, x_count, pitch_row, write)

    def run(q: Value, vectors: int) -> None:
        for i, (part, a) in enumerate(zip(line, weights, strict=True)):
            to = f.at(sums, i * plan.shape.rows * columns * item)
            b = f.at(scratch, (q + (pitch_row * part.row + part.column)) * item)
            count = steps if part.offsets else f.const(0)
            tile = accumulate[rows, vectors, part.offsets]
            f.call(tile, [a, 0, 0, b, pitch * item, pitch_row * item, count, to, f.const(0, "i1")])
        finish(q, vectors * lanes)

    over_columns(f, plan.shape, total, run)
