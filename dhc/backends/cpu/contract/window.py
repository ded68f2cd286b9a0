"""Convolutions and transposed convolutions of 1 to 3 dimensions, plain ``[N, C, D, H, W]`` layout in and out.

Both are sums over taps with fixed displacements. A *phase* is a set of output positions that share their taps: a
convolution has one, a transposed convolution has one for each residue of the output position modulo the stride, each of
them a plain stride-1 gather without inserted zeros. Within a phase, output ``t * out_stride + out_first`` reads input
``t * in_stride + displacement`` for every tap.

A thread takes blocks of output rows. For a block it copies the input rows that the taps need into scratch memory in the
second-level cache, zeros in place of padding, so that the register tiles see one long row of columns without borders:

- *wide*: one copied row for each (channel, z tap, y tap), the x taps read it at displaced addresses; the few columns
  between rows are computed and thrown away;
- *narrow* (or strided in x): one copied row for each tap, rows without gaps, so that maps of 7 or 14 columns fill whole
  vectors.

Weights are packed at compile time in the order the tiles read them. Each result is one sum in the order (channel, tap).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, KernelCode, kernel_name
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, emit_store, even_share, row_tiles, tile_shape
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

PARAMS = ("batch", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w")


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
    x: Axis

    @property
    def taps(self) -> int:
        """Number of taps."""
        return len(self.z.taps) * len(self.y.taps) * len(self.x.taps)


@dataclass(frozen=True)
class Plan:
    """What a spec and a target decide about a kernel, shared by the generator and the weight packing."""

    phases: tuple[Phase, ...]
    in_stride: tuple[int, int, int]
    out_stride: tuple[int, int, int]
    shape: TileShape
    tiles: tuple[tuple[int, int], ...]
    tap_offsets: tuple[int, ...]  # of the x taps within a copied row, in elements; (0,) when each tap has its own row

    @property
    def wide(self) -> bool:
        """Whether x taps share a copied row."""
        return len(self.tap_offsets) > 1


def make_plan(spec: ConvSpec | ConvTransposeSpec, target: CpuTarget) -> Plan:
    """Decides phases, tile shape and copying mode."""
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation, pad = spec.padded(spec.dilation, 1), spec.padded(spec.pad_begin, 0)
    rows = spec.out_channels // spec.groups
    shape = tile_shape(target, spec.dtype, rows)
    tiles = row_tiles(rows, shape.rows)
    if tiles:
        shape = TileShape(tiles[0][0], shape.vectors, shape.lanes)
    if isinstance(spec, ConvSpec):
        axes = [
            Axis(tuple(range(k)), tuple(t * d - p for t in range(k)), 0)
            for k, d, p in zip(kernel, dilation, pad, strict=True)
        ]
        phases: tuple[Phase, ...] = (Phase(*axes),)
        wide = not spec.narrow and stride[2] == 1 and 1 < kernel[2] <= 16 and dilation[2] * (kernel[2] - 1) <= 64
        offsets = tuple(t * dilation[2] for t in range(kernel[2])) if wide else (0,)
        return Plan(phases, stride, (1, 1, 1), shape, tiles, offsets)
    choices = []
    for k, s, d, p in zip(kernel, stride, dilation, pad, strict=True):
        axis = []
        for first in range(s):
            taps = tuple(t for t in range(k) if (first + p - t * d) % s == 0)
            axis.append(Axis(taps, tuple((first + p - t * d) // s for t in taps), first))
        choices.append(axis)
    phases = tuple(Phase(*axes) for axes in itertools.product(*choices))
    return Plan(phases, (1, 1, 1), stride, shape, tiles, (0,))


def pack_weights(
    spec: ConvSpec | ConvTransposeSpec, target: CpuTarget, weights: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Lays out constant weights for the kernel of ``spec``.

    Args:
        spec: the kernel's (normalised) spec.
        target: its target.
        weights: ``[OC, C / groups, k...]``, for a transposed convolution ``[C, OC / groups, k...]``.

    Returns:
        A flat array, ordered (group, phase, tile of output channels, channel, tap, output channel in tile).
    """
    import numpy as np

    plan = make_plan(spec, target)
    groups, kernel = spec.groups, spec.padded(spec.kernel, 1)
    outs, ins = spec.out_channels // groups, spec.in_channels // groups
    if isinstance(spec, ConvSpec):
        full = weights.reshape(groups, outs, ins, *kernel)
    else:
        full = weights.reshape(groups, ins, outs, *kernel).transpose(0, 2, 1, 3, 4, 5)
    parts = []
    for group in range(groups):
        for phase in plan.phases:
            chosen = full[group][:, :, list(phase.z.taps)][:, :, :, list(phase.y.taps)][:, :, :, :, list(phase.x.taps)]
            flat = chosen.reshape(outs, ins * phase.taps)
            first = 0
            for rows, count in plan.tiles:
                for _ in range(count):
                    parts.append(flat[first : first + rows].T.reshape(-1))
                    first += rows
    return np.ascontiguousarray(np.concatenate(parts)) if parts else np.zeros(0, weights.dtype)


def emit_window(spec: ConvSpec | ConvTransposeSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution or transposed convolution.

    Buffers: ``input``, ``weight`` (packed by :func:`pack_weights`), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: :data:`PARAMS`, missing leading dimensions are 1.
    """
    plan = make_plan(spec, target)
    module = Module(target, kernel_name(spec, target))
    item, shape, lanes = ITEM_BYTES[spec.dtype], plan.shape, plan.shape.lanes
    columns = shape.columns
    groups, ins, outs = spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups
    inner_taps = len(plan.tap_offsets)
    copies = max(phase.taps for phase in plan.phases) // inner_taps
    span = max(plan.tap_offsets)

    # Scratch memory of a thread: half the second-level cache, or what one vector tile needs when that is more.
    slack = columns + span + 2 * lanes
    least = ins * copies * _odd_lines(columns + span + lanes, item) + slack
    budget = max(target.l2_bytes // 2 // item, least, ins * copies * (64 + 24) + slack)
    scratch_bytes = -(-budget * item // 64) * 64

    offsets = tuple(offset * item for offset in plan.tap_offsets)
    accumulate = {}
    for rows, _ in plan.tiles:
        for vectors in sorted({shape.vectors, 1}):
            accumulate[rows, vectors] = emit_accumulate(
                module,
                f"tile{rows}x{vectors}",
                TileShape(rows, vectors, lanes),
                columns,
                spec.dtype,
                offsets,
                packed_rows=True,
            )
    operands = spec.epilogue.operands()
    buffers = [
        "input",
        "weight",
        *(["bias"] if spec.bias else []),
        *[f"epilogue{i}" for i in range(len(operands))],
        "out",
        "scratch",
    ]
    out_at = buffers.index("out")
    store = emit_store(
        module,
        "store",
        spec.dtype,
        lanes,
        columns,
        spec.epilogue,
        bias="row" if spec.bias else "none",
        bias_buffer=2,
        first_operand=out_at - len(operands),
        out_buffer=out_at,
        column_stride=plan.out_stride[2],
    )
    copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, plan.in_stride[2])

    # Tables: taps as (dz, dy, dx) for each copied row, and for each phase where its taps, weights and outputs are.
    taps: list[int] = []
    phases: list[int] = []
    weight_at = 0
    for phase in plan.phases:
        xs = phase.x.displacements[:1] if plan.wide else phase.x.displacements
        rows_of_phase = list(itertools.product(phase.z.displacements, phase.y.displacements, xs))
        phases += [
            len(taps) // 3,
            len(rows_of_phase),
            weight_at,
            phase.z.out_first,
            phase.y.out_first,
            phase.x.out_first,
        ]
        taps += [value for row in rows_of_phase for value in row]
        weight_at += outs * ins * phase.taps
    tap_table = module.table("taps", taps or [0])
    phase_table = module.table("phases", phases)
    group_weights = weight_at

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * scratch_bytes)
    sums = f.stack(shape.rows * columns * item)
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    pointwise = (
        isinstance(spec, ConvSpec) and set(spec.kernel) == {1} and set(spec.stride) == {1} and not any(spec.pad_begin)
    )
    if pointwise:
        # Without neighbours the whole map is one row. An output beyond the input (end pads) has no such shortcut.
        flat = in_d.equals(out_d) & in_h.equals(out_h) & in_w.equals(out_w)
        in_w, out_w = (f.select(flat, d * h * w, w) for d, h, w in ((in_d, in_h, in_w), (out_d, out_h, out_w)))
        in_d, in_h, out_d, out_h = (f.select(flat, 1, size) for size in (in_d, in_h, out_d, out_h))
    in_plane, out_plane = in_d * in_h * in_w, out_d * out_h * out_w
    tile_total = sum(count for _, count in plan.tiles)

    with f.loop(0, len(plan.phases)) as phase_index:
        entry = [f.table_item(phase_table, phase_index * 6 + i) for i in range(6)]
        first_tap, tap_count, phase_weight, first_z, first_y, first_x = entry
        size = [
            f.value(f.maximum(0, f.ceildiv(out - first, stride)))
            for out, first, stride in zip(
                (out_d, out_h, out_w), (first_z, first_y, first_x), plan.out_stride, strict=True
            )
        ]
        t_rows, t_h, t_w = size[0] * size[1], size[1], size[2]
        copied_rows = f.value(f.maximum(tap_count * ins, 1))

        # Blocks of x columns and rows that fit the scratch memory, evened out over the threads.
        room = f.const(budget - slack) // copied_rows
        row_room = room - (lanes + 2 * (64 // item))
        x_most = f.value(f.maximum(columns, (f.value(f.minimum(row_room, 2048)) - span) // columns * columns))
        x_blocks = f.value(f.ceildiv(t_w, x_most))
        x_blocks = f.select(t_rows < nthreads, f.ceildiv(x_blocks, nthreads) * nthreads, x_blocks)
        x_size = f.value(f.maximum(f.ceildiv(f.value(f.ceildiv(t_w, f.maximum(x_blocks, 1))), columns), 1)) * columns
        x_size = f.value(f.maximum(f.minimum(x_size, t_w), 1))
        x_blocks = f.value(f.ceildiv(t_w, x_size))
        pitch_row = x_size + span  # columns from one row of the block to the next
        r_most = f.value(f.maximum(1, f.minimum(row_room // pitch_row, f.value(f.maximum(1, 4096 // pitch_row)))))
        r_blocks = f.value(f.ceildiv(t_rows, r_most))
        r_blocks = f.select(t_rows >= nthreads, f.ceildiv(r_blocks, nthreads) * nthreads, r_blocks)
        r_size = f.value(f.maximum(1, f.ceildiv(t_rows, f.maximum(r_blocks, 1))))
        r_blocks = f.value(f.ceildiv(t_rows, r_size))
        filled = (r_size - 1) * pitch_row + f.ceildiv(pitch_row, lanes) * lanes
        pitch = _odd_lines_value(filled, item)
        blocks = names["batch"] * groups * r_blocks * x_blocks
        even = (blocks % nthreads).equals(0) | (blocks >= nthreads * 8)
        splits = f.select(even, 1, f.minimum(nthreads, max(tile_total, 1)))
        contiguous = x_blocks.equals(1) if not plan.wide and plan.out_stride == (1, 1, 1) else None
        begin, end = even_share(f, blocks * splits, tid, nthreads)
        last_copied = f.variable("i64", -1)

        with f.loop(begin, end) as unit:
            block, split = unit // splits, unit % splits
            x_block, rest = block % x_blocks, block // x_blocks
            r_block, rest = rest % r_blocks, rest // r_blocks
            group, image = rest % groups, rest // groups
            x_first, r_first = x_block * x_size, r_block * r_size
            x_count = f.value(f.minimum(x_size, t_w - x_first))
            r_count = f.value(f.minimum(r_size, t_rows - r_first))

            with f.if_(last_copied.get().equals(block).equals(0)):
                last_copied.set(block)
                channel0 = f.at(source, (image * spec.in_channels + group * ins) * in_plane * item)
                with f.loop(0, tap_count) as tap:
                    dz, dy, dx = (f.table_item(tap_table, (first_tap + tap) * 3 + i) for i in range(3))
                    with f.loop(0, r_count) as r:
                        position = r_first + r
                        z = (position // t_h) * plan.in_stride[0] + dz
                        y = (position % t_h) * plan.in_stride[1] + dy
                        inside = (z >= 0) & (z < in_d) & (y >= 0) & (y < in_h)
                        # A row outside the input is a row of which no column is inside.
                        width = f.select(inside, in_w, 0)
                        start = f.select(inside, (z * in_h + y) * in_w * item, 0)
                        f.call(
                            copy_row,
                            [
                                f.at(channel0, start),
                                in_plane * item,
                                ins,
                                x_first * plan.in_stride[2] + dx,
                                width,
                                x_count + span,
                                f.at(scratch, (tap * pitch + r * pitch_row) * item),
                                tap_count * pitch * item,
                            ],
                        )

            total = (r_count - 1) * pitch_row + x_count
            run_row, run_pitch = x_count, pitch_row
            if contiguous is not None:
                whole = r_count * pitch_row
                run_row = f.select(contiguous, whole, x_count)
                run_pitch = f.select(contiguous, whole, pitch_row)
            tile_begin, tile_end = even_share(f, tile_total, split, splits)
            group_weight = f.at(weight, (group * group_weights + phase_weight) * item)
            steps = tap_count * ins
            out_image = (image * spec.out_channels + group * outs) * out_plane

            def column_tiles(
                rows: int,
                row: Value,
                f: Any = f,
                steps: Value = steps,
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
            ) -> None:
                a = f.at(group_weight, row * (steps * (inner_taps * item)))

                def finish(q: Value, width: Int) -> None:
                    """Writes the runs of real outputs among ``width`` computed columns from ``q`` on."""
                    at = f.variable("i64", q)
                    stop = f.value(f.minimum(q + width, total))
                    r = f.variable("i64", q // run_pitch)
                    x = f.variable("i64", q % run_pitch)
                    with f.while_(lambda: at.get() < stop):
                        left = run_row - x.get()

                        def write() -> None:
                            count = f.value(f.minimum(left, stop - at.get()))
                            position = r_first + r.get()
                            z = (position // t_h) * plan.out_stride[0] + first[0]
                            y = (position % t_h) * plan.out_stride[1] + first[1]
                            column = (x_first + x.get()) * plan.out_stride[2] + first[2]
                            place = out_image + row * out_plane + (z * out_h + y) * out_w + column
                            f.call(
                                store,
                                [
                                    f.argument("buffers"),
                                    f.at(sums, (at.get() - q) * item),
                                    rows,
                                    count,
                                    place,
                                    out_plane,
                                    group * outs + row,
                                    0,
                                ],
                            )
                            at.set(at.get() + count)
                            x.set(x.get() + count)

                        def skip() -> None:
                            at.set(at.get() + (run_pitch - x.get()))
                            x.set(0)
                            r.set(r.get() + 1)

                        f.if_else(left > 0, write, skip)

                def run(q: Value, vectors: int) -> None:
                    f.call(accumulate[rows, vectors], [a, 0, 0, f.at(scratch, q * item), pitch * item, steps, sums])
                    finish(q, vectors * lanes)

                q = f.variable("i64", 0)
                if shape.vectors > 1:
                    with f.while_(lambda: q.get() + (shape.vectors - 1) * lanes < total):
                        run(q.get(), shape.vectors)
                        q.set(q.get() + columns)
                with f.while_(lambda: q.get() < total):
                    run(q.get(), 1)
                    q.set(q.get() + lanes)

            first_tile, first_row = 0, 0
            for rows, count in plan.tiles:
                low = f.maximum(tile_begin, first_tile)
                high = f.minimum(tile_end, first_tile + count)
                with f.loop(low, high) as index:
                    column_tiles(rows, (index - first_tile) * rows + first_row)
                first_tile, first_row = first_tile + count, first_row + rows * count
    f.ret(0)
    return KernelCode(module.name, module.text(), tuple(buffers), PARAMS, scratch_bytes)


def _odd_lines(elements: int, item: int) -> int:
    """Rounds up to an odd number of cache lines: even strides of copied rows would collide in the caches' sets."""
    per_line = 64 // item
    return (-(-elements // per_line) | 1) * per_line


def _odd_lines_value(elements: Value, item: int) -> Value:
    per_line = 64 // item
    return (((elements + (per_line - 1)) // per_line) | 1) * per_line
