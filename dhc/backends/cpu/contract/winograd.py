"""Convolutions by 3x3 windows with Winograd's minimal filtering, plain ``[N, C, (D,) H, W]`` layout in and out.

For 4 x 4 outputs at a time a window costs 36 products instead of 144. A thread takes blocks of tiles. For a block it

1. transforms the inputs of all channels to scratch memory, ``V[position][z plane][channel][tile]``;
2. for each slice of output channels (the vectors of one register tile): multiplies, for each of the 36 positions, tiles
   x channels by channels x output channels, to ``M[tile][position][output channel]``;
3. transforms the products of the slice to outputs, with bias and epilogue.

Weights are transformed and laid out at compile time; each is read once for a block. Windows of several planes (3x3x3)
are sums over z taps and channels in the transformed domain: the planes of a block lie one behind the other, so that the
channels of ``kz`` neighbouring planes are one long sum; z taps that meet no plane of the map are left out.

A dilated convolution is one without dilation on each of its phases, the positions with equal remainders in each axis.
Phases of y and z are counted like further rows and planes. Those of x lie side by side: a row of tiles is its first
column of tiles in all phases, then the next column, so that inputs and outputs of neighbouring tiles are neighbours.

Each result is one sum in the order (z tap, channel), whatever the block. :mod:`.winograd_transform` says how results
differ from those of a plain sum.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.blocks import digits, split_count
from dhc.backends.cpu.contract.position_products import emit_product_tiles, emit_products
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.contract.winograd_plan import CONSTANTS, constant_parameters, make_plan
from dhc.backends.cpu.contract.winograd_stages import (
    ITEM,
    emit_input_stage,
    emit_output_stage,
    emit_tile_store,
    input_tiles,
    output_tiles,
)
from dhc.backends.cpu.llvm.builder import Module, Value
from dhc.backends.cpu.target import CpuTarget


def emit_winograd(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution whose ``winograd`` names the size of its output tiles.

    Buffers: ``input``, ``weight`` (packed by ``winograd_plan.pack_weights``), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: :data:`~.window_plan.PARAMS`, missing leading dimensions are 1, then ``constants``.
    """
    plan = make_plan(spec, target)
    module = Module(target, KERNEL)
    m, lanes, positions, columns = plan.m, plan.lanes, plan.positions, plan.columns
    dilation = spec.dilation[-1]
    in_tiles, out_tiles = input_tiles(lanes, dilation), output_tiles(m, lanes, dilation)
    widths = sorted({plan.vectors, plan.last_vectors}, reverse=True)
    accumulate = emit_product_tiles(module, plan.rows, widths, lanes, positions * columns, spec.dtype)
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_tile_store(
        module,
        "store",
        m,
        lanes,
        spec.epilogue,
        bias=spec.bias,
        first_operand=out_at - len(spec.epilogue.operands()),
        out_buffer=out_at,
    )
    inputs = emit_input_stage(module, "inputs", m, lanes, dilation)
    shapes = spec.epilogue.operands()
    written = (out_at, *(out_at - len(shapes) + i for i, shape in enumerate(shapes) if shape == "same"))
    outputs = emit_output_stage(module, "outputs", m, lanes, store, columns, dilation, written=written)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs, taps = (names[name] for name in ("groups", "in_channels", "out_channels", "taps_z"))
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    transformed = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    products = f.at(transformed, names["input_bytes"])
    in_plane, out_plane = in_d * in_h * in_w, out_d * out_h * out_w
    # What the second-level cache holds has just been written by another kernel and is near.
    far = names["batch"] * groups * (ins * in_plane + outs * out_plane) * ITEM > target.l2_bytes

    # Without z taps the planes of all images are alike; else each image has its own.
    flat = taps.equals(1)
    images = f.select(flat, 1, names["batch"])
    planes = f.select(flat, names["batch"] * out_d, out_d)
    dilation_y = names["dilation_y"]
    tall = dilation_y * m  # rows that a row of tiles of each phase covers
    tiles_x = f.value(f.ceildiv(out_w, m * dilation)) * dilation
    tiles = tiles_x * ((out_h // tall) * dilation_y + f.minimum(dilation_y, out_h % tall))

    def origin(tile: Value) -> tuple[Value, Value, Value]:
        """First row and column of a tile's outputs, and its number in its row."""
        row, number = tile // tiles_x, tile % tiles_x
        column = number * m if dilation == 1 else number // dilation * (m * dilation) + number % dilation
        return f.value((row // dilation_y) * tall + row % dilation_y), f.value(column), number

    def planes_of(block: Value) -> tuple[Value, Value, Value]:
        """Of a block of planes: phase, its first plane among those of the phase, how many it has."""
        phase, number = block % dilation_z, block // dilation_z
        own = f.value(f.ceildiv(planes - phase, dilation_z))
        first, end = even_share(f, own, number, z_blocks // dilation_z)
        return phase, f.value(first), end - first

    # Blocks: all tiles of some planes where planes are small, else some tiles of one plane (of a few with z taps).
    even = in_tiles == lanes and max(lanes, dilation) % min(lanes, dilation) == 0
    aligned = (tiles_x % lanes).equals(0) if even else f.const(0, "i1")
    spill = f.select(aligned, 0, lanes - 1)  # the last tiles of a row are written in whole vectors

    def pitch_of(count: Value) -> Value:
        return f.value(f.ceildiv(count + spill, lanes)) * lanes

    fitting = names["room"] // pitch_of(f.value(f.maximum(tiles, 1)))
    dilation_z = names["dilation_z"]  # 1 without z taps
    of_phase = f.value(f.ceildiv(planes, dilation_z))
    z_size = f.value(f.minimum(f.maximum(f.select(flat, fitting, names["most_planes"]), 1), f.maximum(of_phase, 1)))
    z_even = f.value(f.ceildiv(of_phase, z_size))
    z_size = f.value(f.maximum(f.ceildiv(of_phase, f.maximum(z_even, 1)), 1))
    z_held = z_size + taps - 1
    t_most = (names["room"] // z_held) // lanes * lanes - spill
    t_most = f.select(aligned, f.minimum(t_most, names["wide_tiles"]), t_most)
    # Blocks begin with a whole column of phases.
    step = f.select(aligned, max(lanes, dilation), plan.tile_step)
    if dilation > 1:
        t_most = t_most // step * step
    t_blocks = f.value(f.ceildiv(tiles, t_most))
    z_blocks = f.value(f.ceildiv(of_phase, z_size)) * dilation_z
    others = images * groups * z_blocks
    # Few slices of output channels, which would share the tiles of one block, come out uneven.
    slices = f.value(f.ceildiv(outs, columns))
    uneven = (slices % nthreads > 0) & (slices < nthreads * 4) & (tiles > step)
    roomy = ((tiles >= nthreads * 32) | uneven) & (others < nthreads)
    t_blocks = f.select(roomy, f.value(f.ceildiv(t_blocks, nthreads)) * nthreads, t_blocks)
    t_size = f.value(f.ceildiv(f.value(f.ceildiv(tiles, f.maximum(t_blocks, 1))), step)) * step
    t_size = f.value(f.maximum(f.minimum(t_size, f.minimum(t_most, tiles)), 1))
    t_blocks = f.value(f.ceildiv(tiles, t_size))
    pitch = pitch_of(t_size)
    plane_stride = (z_held * ins * pitch + 2 * lanes) * ITEM
    step_bytes = pitch * ITEM

    blocks = others * t_blocks
    splits = split_count(f, blocks, nthreads, slices)
    begin, end = even_share(f, blocks * splits, tid, nthreads)
    whole = f.value(f.ceildiv(outs, lanes)) * lanes  # output channels with those that fill the last vector
    last = f.variable("i64", -1)
    with f.loop(begin, end) as unit:
        block, split = unit // splits, unit % splits
        t_block, z_block, group, image = digits(block, t_blocks, z_blocks, groups)
        t_first = t_block * t_size
        t_count = f.value(f.minimum(t_size, tiles - t_first))
        phase, z_first, z_count = planes_of(z_block)

        with f.if_(last.get().equals(block).equals(0)):
            last.set(block)
            with f.loop(0, f.select(z_count > 0, z_count + taps - 1, 0)) as held:
                position = (z_first + held) * dilation_z + phase
                number = f.select(flat, position // out_d, image)
                z = f.select(flat, position % out_d, position) - names["pad_z"]
                inside = (z >= 0) & (z < in_d)
                height = f.select(inside, in_h, 0)
                start = (number * groups + group) * ins * in_plane + f.select(inside, z, 0) * in_h * in_w
                # Sums leave out planes beyond the map; a single tap there would read zeros.
                t = f.variable("i64", f.select(inside | flat, 0, t_count))
                with f.while_(lambda t=t, t_count=t_count: t.get() < t_count):  # type: ignore[misc]
                    now = t.get()
                    y, x, number = origin(t_first + now)
                    count = f.minimum(f.minimum(in_tiles, tiles_x - number), t_count - now)
                    if dilation > lanes:
                        count = f.minimum(count, dilation - number % dilation)
                    y_next, x_next, _ = origin(f.value(t_first + now + count))
                    f.call(
                        inputs,
                        [
                            f.at(source, start * ITEM),
                            in_plane * ITEM,
                            ins,
                            y - names["pad_y"],
                            dilation_y,
                            x - names["pad_x"],
                            height,
                            in_w,
                            f.at(transformed, (held * ins * pitch + now) * ITEM),
                            step_bytes,
                            plane_stride,
                            f.select(far, ((y_next - y) * in_w + (x_next - x)) * ITEM, 0),
                        ],
                    )
                    t.set(now + count)

        slice_begin, slice_end = even_share(f, slices, split, splits)
        with f.loop(slice_begin, slice_end) as index:
            first = index * columns
            here = f.value(f.minimum(columns, whole - first))  # output channels of this slice, whole vectors
            slice_weight = f.at(weight, (group * whole + first) * taps * ins * (positions * ITEM))

            def multiply(vectors: int, slice_weight: Value = slice_weight, z_count: Value = z_count,
                         t_count: Value = t_count, phase: Value = phase, z_first: Value = z_first) -> None:  # fmt: skip
                width = vectors * lanes * ITEM
                with f.loop(0, positions) as e, f.loop(0, z_count) as z:
                    # Taps whose plane lies in the map.
                    z_in = (z_first + z) * dilation_z + phase - names["pad_z"]
                    tap = f.maximum(f.value(f.ceildiv(0 - f.minimum(z_in, 0), dilation_z)), 0)
                    behind = f.value(f.ceildiv(f.value(f.maximum(in_d - z_in, 0)), dilation_z))
                    tap = f.select(flat, 0, f.minimum(tap, taps))
                    sums = f.select(flat, 1, f.maximum(f.minimum(behind, taps) - tap, 0)) * ins
                    b = f.at(slice_weight, (e * taps + tap) * ins * width)
                    a = f.at(transformed, e * plane_stride + (z + tap) * ins * step_bytes)
                    to = f.at(products, (z * pitch * positions + e) * (columns * ITEM))
                    emit_products(
                        f, accumulate, plan.rows, vectors, t_count, a, step_bytes, b, width, sums, to,
                        positions * columns * ITEM,
                    )  # fmt: skip

            if len(widths) == 1:
                multiply(widths[0])
            else:
                f.if_else(here.equals(columns), lambda: multiply(widths[0]), lambda: multiply(widths[1]))

            with f.loop(0, z_count) as z:
                position = (z_first + z) * dilation_z + phase
                number = f.select(flat, position // out_d, image)
                z_out = f.select(flat, position % out_d, position)
                channel = group * outs + first
                place = ((number * groups * outs + channel) * out_d + z_out) * out_h * out_w
                t = f.variable("i64", 0)
                with f.while_(lambda t=t, t_count=t_count: t.get() < t_count):  # type: ignore[misc]
                    now = t.get()
                    y, x, number = origin(t_first + now)
                    count = f.value(f.minimum(f.minimum(out_tiles, tiles_x - number), t_count - now))
                    f.call(
                        outputs,
                        [
                            f.argument("buffers"),
                            f.at(products, (z * pitch + now) * (positions * columns * ITEM)),
                            count,
                            here // lanes,
                            f.minimum(m, f.value(f.ceildiv(out_h - y, dilation_y))),
                            f.minimum(count * m, out_w - x),
                            place + y * out_w + x,
                            dilation_y * out_w,
                            out_plane,
                            channel,
                            outs - first,
                            far,
                        ],
                    )
                    t.set(now + count)
    f.ret(0)
    scratch_bytes = plan.input_bytes + plan.product_bytes
    return finished(module, target, "winograd", buffers, PARAMS, scratch_bytes, constant_parameters(spec, plan))
