"""Convolutions by minimal filtering: Winograd's method for windows other than 3x3, plain layout in and out.

Windows of one axis (1-D convolutions of 3 to 9 taps, with a stride of 2 too) take tiles of 4 neighbouring outputs: 10
products instead of 28 for 7 taps. Windows of 5 x 5 take 2 x 2 to 4 x 4 outputs: 36 products instead of 100, or 64
instead of 400. Windows of several planes (5x5x5) are sums over z taps and channels in the transformed domain, and so
are the phases of a stride: the inputs ``stride`` columns apart are inputs of their own.

A thread takes blocks of tiles. For a block it

1. transforms the inputs of all channels to scratch memory, ``V[position][z plane][channel][phase][tile]``;
2. for each slice of output channels (the vectors of one register tile): multiplies, for each position, tiles x sums by
   sums x output channels, to ``M[tile][position][output channel]`` (few output channels: :mod:`.minimal_narrow`);
3. transforms the products of the slice to outputs, with bias and epilogue.

Weights are transformed and laid out at compile time; each is read once for a plane of a block. Each result is one sum
in the order (z tap, channel, phase), whatever the block. :mod:`.minimal_transform` says how results differ from those
of a plain sum.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.blocks import digits, split_count
from dhc.backends.cpu.contract.minimal_narrow import emit_narrow_finish, emit_narrow_products
from dhc.backends.cpu.contract.minimal_plan import CONSTANTS, constant_parameters, make_plan
from dhc.backends.cpu.contract.minimal_stages import ITEM, emit_input_stage, emit_output_stage
from dhc.backends.cpu.contract.position_products import emit_product_tiles, emit_products
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.contract.winograd_stages import emit_tile_store
from dhc.backends.cpu.llvm.builder import Module, Value
from dhc.backends.cpu.target import CpuTarget


def emit_minimal(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a convolution whose ``minimal`` names the rows and columns of its output tiles.

    Buffers: ``input``, ``weight`` (packed by ``minimal_plan.pack_weights``), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: :data:`~.window_plan.PARAMS`, missing leading dimensions are 1, then ``constants``.
    """
    plan = make_plan(spec, target)
    module = Module(target, KERNEL)
    lanes, positions, columns = plan.lanes, plan.positions, plan.width
    (tile_y, _), (tile_x, _) = plan.rows, plan.columns
    group_tiles = lanes // tile_x  # tiles whose outputs are one vector
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    inputs = emit_input_stage(module, "inputs", plan)
    if plan.narrow:
        narrow_products = emit_narrow_products(module, plan)
        narrow_finish = emit_narrow_finish(module, spec, plan, out_at)
    else:
        widths = sorted({plan.vectors, plan.last_vectors}, reverse=True)
        accumulate = emit_product_tiles(module, plan.heights, widths, lanes, positions * columns, spec.dtype)
        store = emit_tile_store(
            module, "store", tile_y, lanes, spec.epilogue,
            bias=spec.bias, first_operand=out_at - len(spec.epilogue.operands()), out_buffer=out_at,
        )  # fmt: skip
        outputs = emit_output_stage(module, "outputs", plan, store)

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
    held_rows = ins * plan.stride  # transformed inputs of a plane: one for each channel and phase

    # Without z taps the planes of all images are alike; else each image has its own.
    flat = taps.equals(1)
    images = f.select(flat, 1, names["batch"])
    planes = f.select(flat, names["batch"] * out_d, out_d)
    tiles_x = f.value(f.ceildiv(out_w, tile_x))
    tiles = tiles_x * f.value(f.ceildiv(out_h, tile_y))

    # Blocks: all tiles of some planes where planes are small, else some tiles of one plane (of a few with z taps).
    aligned = (tiles_x % lanes).equals(0)
    spill = f.select(aligned, 0, lanes - 1)  # the last tiles of a row are written in whole vectors

    pitch_step = plan.narrow.columns if plan.narrow else lanes

    def pitch_of(count: Value) -> Value:
        return f.value(f.ceildiv(count + spill, pitch_step)) * pitch_step

    fitting = names["room"] // pitch_of(f.value(f.maximum(tiles, 1))) - (taps - 1)
    z_size = f.value(f.maximum(fitting, f.select(flat, 1, names["most_planes"])))
    z_size = f.value(f.minimum(z_size, f.maximum(planes, 1)))
    z_even = f.value(f.ceildiv(planes, z_size))
    z_size = f.value(f.maximum(f.ceildiv(planes, f.maximum(z_even, 1)), 1))
    z_held = z_size + taps - 1
    t_most = (names["room"] // z_held) // pitch_step * pitch_step - spill
    t_blocks = f.value(f.ceildiv(tiles, t_most))
    z_blocks = f.value(f.ceildiv(planes, z_size))
    others = images * groups * z_blocks
    roomy = (tiles >= nthreads * 32) & (others < nthreads)
    t_blocks = f.select(roomy, f.value(f.ceildiv(t_blocks, nthreads)) * nthreads, t_blocks)
    step = lanes if plan.narrow else f.select(aligned, lanes, min(plan.heights))
    t_size = f.value(f.ceildiv(f.value(f.ceildiv(tiles, f.maximum(t_blocks, 1))), step)) * step
    t_size = f.value(f.maximum(f.minimum(t_size, f.minimum(t_most, tiles)), 1))
    t_blocks = f.value(f.ceildiv(tiles, t_size))
    pitch = pitch_of(t_size)
    plane_stride = (z_held * held_rows * pitch + 2 * lanes) * ITEM
    step_bytes = pitch * ITEM

    slices = f.const(0) + f.value(f.ceildiv(outs, columns))
    blocks = others * t_blocks
    splits = split_count(f, blocks, nthreads, slices)
    begin, end = even_share(f, blocks * splits, tid, nthreads)
    sums = taps * held_rows
    # Output channels, with those that fill the last vector.
    whole = outs if plan.narrow else f.value(f.ceildiv(outs, lanes)) * lanes
    last = f.variable("i64", -1)
    with f.loop(begin, end) as unit:
        block, split = unit // splits, unit % splits
        t_block, z_block, group, image = digits(block, t_blocks, z_blocks, groups)
        t_first, z_first = t_block * t_size, z_block * z_size
        t_count = f.value(f.minimum(t_size, tiles - t_first))
        z_count = f.value(f.minimum(z_size, planes - z_first))

        with f.if_(last.get().equals(block).equals(0)):
            last.set(block)
            with f.loop(0, z_count + taps - 1) as held:
                position = z_first + held
                number = f.select(flat, position // out_d, image)
                z = f.select(flat, position % out_d, position) - names["pad_z"]
                inside = (z >= 0) & (z < in_d)
                height = f.select(inside, in_h, 0)
                start = (number * groups + group) * ins * in_plane + f.select(inside, z, 0) * in_h * in_w
                t = f.variable("i64", 0)
                with f.while_(lambda t=t, t_count=t_count: t.get() < t_count):  # type: ignore[misc]
                    now = t.get()
                    at = t_first + now
                    row, column = at // tiles_x, at % tiles_x
                    to = f.at(transformed, (held * held_rows * pitch + now) * ITEM)
                    y, x = row * tile_y - names["pad_y"], column * (tile_x * plan.stride) - names["pad_x"]
                    f.call(
                        inputs,
                        [f.at(source, start * ITEM), in_plane * ITEM, ins, y, x, height, in_w, to, step_bytes,
                         plane_stride],
                    )  # fmt: skip
                    t.set(now + f.minimum(f.minimum(lanes, tiles_x - column), t_count - now))

        slice_begin, slice_end = even_share(f, slices, split, splits)
        with f.loop(slice_begin, slice_end) as index:
            first = index * columns
            here = f.value(f.minimum(columns, whole - first))  # output channels of this slice, whole vectors
            slice_weight = f.at(weight, (group * whole + first) * sums * (positions * ITEM))

            def multiply(vectors: int, slice_weight: Value = slice_weight, z_count: Value = z_count,
                         t_count: Value = t_count) -> None:  # fmt: skip
                width = vectors * lanes * ITEM
                with f.loop(0, positions) as e, f.loop(0, z_count) as z:
                    b = f.at(slice_weight, e * sums * width)
                    a = f.at(transformed, e * plane_stride + z * held_rows * step_bytes)
                    to = f.at(products, (z * pitch * positions + e) * (columns * ITEM))
                    emit_products(
                        f, accumulate, plan.heights, vectors, t_count, a, step_bytes, b, width, sums, to,
                        positions * columns * ITEM,
                    )  # fmt: skip

            if plan.narrow:
                f.call(
                    narrow_products,
                    [transformed, plane_stride, slice_weight, products, pitch, held_rows, sums, z_count, t_count],
                )
            elif len(widths) == 1:
                multiply(widths[0])
            else:
                f.if_else(here.equals(columns), lambda: multiply(widths[0]), lambda: multiply(widths[1]))

            with f.loop(0, z_count) as z:
                position = z_first + z
                number = f.select(flat, position // out_d, image)
                z_out = f.select(flat, position % out_d, position)
                channel = group * outs + first
                place = ((number * groups * outs + channel) * out_d + z_out) * out_h * out_w
                if plan.narrow:
                    some = f.at(products, z * pitch * positions * (plan.narrow.rows * ITEM))
                    f.call(
                        narrow_finish,
                        [f.argument("buffers"), some, pitch, t_first, t_count, tiles_x, place, out_h, out_w, out_plane,
                         channel],
                    )  # fmt: skip
                else:
                    t = f.variable("i64", 0)
                    with f.while_(lambda t=t, t_count=t_count: t.get() < t_count):  # type: ignore[misc]
                        now = t.get()
                        at = t_first + now
                        row, column = at // tiles_x, at % tiles_x
                        count = f.value(f.minimum(f.minimum(group_tiles, tiles_x - column), t_count - now))
                        some = f.at(products, (z * pitch + now) * (positions * columns * ITEM))
                        y, x = row * tile_y, column * tile_x
                        f.call(
                            outputs,
                            [f.argument("buffers"), some, count, here // lanes, f.minimum(tile_y, out_h - y),
                             f.minimum(count * tile_x, out_w - x), place + y * out_w + x, out_w, out_plane, channel,
                             outs - first],
                        )  # fmt: skip
                        t.set(now + count)
    f.ret(0)
    scratch_bytes = plan.input_bytes + plan.product_bytes
    return finished(module, target, "minimal", buffers, PARAMS, scratch_bytes, constant_parameters(spec, plan))
