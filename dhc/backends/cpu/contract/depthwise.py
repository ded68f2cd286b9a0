"""Depthwise convolution: every output channel sees one input channel.

There is nothing to share between channels, so the register tile is rows x vectors of one output channel: an input
row is loaded once for all output rows that it touches. The channel's rows are copied into first-level cache memory
first, with zeros in place of padding and the x stride taken out, so that the tile has neither borders nor strides. The
weights are used as they are.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.blocks import digits
from dhc.backends.cpu.contract.conv_results import conv_writer, write_rows
from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

# Taps in y and x are unrolled; larger windows take the general path.
MOST_TAPS = 81
# More outputs of one input are a product worth a register tile of its own.
MOST_OUTPUTS = 24
_X_BLOCK = 512
# Constant parameters after PARAMS: kept out of the code so that one kernel serves many layers.
CONSTANTS = ("in_channels", "multiplier", "pad_z", "pad_y", "pad_x")


def is_depthwise(spec: ConvSpec) -> bool:
    """Whether :func:`emit_depthwise` serves a convolution."""
    kernel = spec.padded(spec.kernel, 1)
    few = spec.out_channels // spec.groups <= MOST_OUTPUTS
    return spec.in_channels == spec.groups and few and kernel[1] * kernel[2] <= MOST_TAPS


def emit_depthwise(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a depthwise convolution; buffers and parameters as for other convolutions.

    The weights are the plain ``[OC, 1, k...]`` array.
    """
    module = Module(target, KERNEL)
    item, lanes = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype)
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation, pad = spec.padded(spec.dilation, 1), spec.padded(spec.pad_begin, 0)
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")

    # x taps by residue: a copied row holds every stride[2]-th column, one row for each residue that a tap needs.
    residues = sorted({t * dilation[2] % stride[2] for t in range(kernel[2])})
    x_taps = [(residues.index(t * dilation[2] % stride[2]), t * dilation[2] // stride[2]) for t in range(kernel[2])]
    span_x = max(offset for _, offset in x_taps)
    span_y = (kernel[1] - 1) * dilation[1] + 1
    most_vectors = 2
    row_choices = (4, 1) if kernel[1] * stride[1] <= 24 else (1,)
    tile_rows = row_choices[0]

    def slab_rows(rows: int) -> int:
        return (rows - 1) * stride[1] + span_y

    row_bytes = (-(-(_X_BLOCK + span_x + (most_vectors + 1) * lanes) * item // 64) | 1) * 64
    least = kernel[0] * slab_rows(tile_rows) * len(residues) * row_bytes
    scratch_bytes = max(least, target.l1_bytes) + 4096

    tiles: dict[tuple[int, int], Function] = {}
    for rows in row_choices:
        for vectors in (most_vectors, 1):
            tiles[rows, vectors] = _emit_tile(module, spec, rows, vectors, lanes, x_taps, out_at)
    copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, stride[2])

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    in_channels, multiplier, pad_z, pad_y, pad_x = (names[name] for name in CONSTANTS)
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * scratch_bytes)
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]

    x_size = f.value(f.maximum(f.minimum(out_w, _X_BLOCK), 1))
    x_blocks = f.value(f.ceildiv(out_w, x_size))
    part = ((x_size + (span_x + (most_vectors + 1) * lanes)) * item + 63) // 64 * 64  # one residue of one row
    row_pitch = part * len(residues)
    budget_rows = f.const(scratch_bytes - 4096) // (row_pitch * kernel[0])
    fitting = (budget_rows - span_y) // stride[1] + 1
    r_size = f.value(f.maximum(fitting // tile_rows, 1)) * tile_rows
    r_size = f.value(f.maximum(f.minimum(r_size, f.ceildiv(out_h, tile_rows) * tile_rows), 1))
    r_blocks = f.value(f.ceildiv(out_h, r_size))
    plane_pitch = row_pitch * ((r_size - 1) * stride[1] + span_y)
    out_channels = in_channels * multiplier
    begin, end = even_share(f, names["batch"] * out_channels * out_d * r_blocks * x_blocks, tid, nthreads)
    last_copied = f.variable("i64", -1)
    with f.loop(begin, end) as unit:
        # Output channels of one input channel are neighbours, so that they share a copy.
        copy_key, sub = unit // multiplier, unit % multiplier
        x_block, r_block, z_out, channel_in, image = digits(copy_key, x_blocks, r_blocks, out_d, in_channels)
        channel = channel_in * multiplier + sub
        x_first, r_first = x_block * x_size, r_block * r_size
        x_count = f.value(f.minimum(x_size, out_w - x_first))
        r_count = f.value(f.minimum(r_size, out_h - r_first))

        with f.if_(last_copied.get().equals(copy_key).equals(0)):
            last_copied.set(copy_key)
            row_total = (r_count - 1) * stride[1] + span_y
            y_first = r_first * stride[1] - pad_y
            # Rows of the slab: [0, above) before the input, [above, below) in it, [below, rows) after it.
            above = f.value(f.minimum(row_total, f.maximum(0, 0 - y_first)))
            below = f.value(f.maximum(above, f.minimum(row_total, in_h - y_first)))
            with f.loop(0, kernel[0]) as kz:
                z = z_out * stride[0] + kz * dilation[0] - pad_z
                inside = (z >= 0) & (z < in_d)
                width = f.select(inside, in_w, 0)
                start = f.select(inside, (channel_in + image * in_channels) * in_d + z, 0) * in_h
                slab = f.at(scratch, kz * plane_pitch)
                for i, residue in enumerate(residues):
                    first = x_first * stride[2] - pad_x + residue
                    to = f.at(slab, part * i) if i else slab
                    for low, high, some in (
                        (f.const(0), above, f.const(0)),
                        (above, below, width),
                        (below, row_total, f.const(0)),
                    ):
                        at = f.at(source, (start + (y_first + low)) * in_w * item)
                        f.call(
                            copy_row,
                            [
                                at,
                                in_w * item,
                                high - low,
                                first,
                                some,
                                x_count + span_x,
                                f.at(to, low * row_pitch),
                                row_pitch,
                            ],
                        )

        place0 = (((image * out_channels + channel) * out_d + z_out) * out_h + r_first) * out_w + x_first
        channel_weight = f.at(weight, channel * (kernel[0] * kernel[1] * kernel[2] * item))
        r = f.variable("i64", 0)
        for rows_now in row_choices:
            with f.while_(lambda rows_now=rows_now: r.get() + rows_now <= r_count):  # type: ignore[misc]
                slab = f.at(scratch, r.get() * stride[1] * row_pitch)
                x = f.variable("i64", 0)
                for vectors in (most_vectors, 1):
                    with f.while_(lambda vectors=vectors, x=x: x.get() + (vectors - 1) * lanes < x_count):  # type: ignore[misc]
                        f.call(
                            tiles[rows_now, vectors],
                            [
                                f.argument("buffers"),
                                f.at(slab, x.get() * item),
                                channel_weight,
                                part,
                                row_pitch,
                                plane_pitch,
                                place0 + r.get() * out_w + x.get(),
                                out_w,
                                x_count - x.get(),
                                channel,
                            ],
                        )
                        x.set(x.get() + vectors * lanes)
                r.set(r.get() + rows_now)
    f.ret(0)
    constants = (spec.in_channels, spec.out_channels // spec.in_channels, *pad)
    return finished(module, target, "depthwise", buffers, PARAMS, scratch_bytes, constants)


def _emit_tile(
    module: Module, spec: ConvSpec, rows: int, vectors: int, lanes: int, x_taps: list[tuple[int, int]], out_at: int
) -> Function:
    """``void tile(buffers, slab, weights, part, row_pitch, plane_pitch, place, out_w, count, channel)``."""
    item, element = ITEM_BYTES[spec.dtype], ELEMENT[spec.dtype]
    vector = f"<{lanes} x {element}>"
    kernel, stride = spec.padded(spec.kernel, 1), spec.padded(spec.stride, 1)
    dilation = spec.padded(spec.dilation, 1)
    f = module.function(
        f"tile{rows}x{vectors}",
        "void",
        (
            ("ptr", "buffers"),
            ("ptr", "slab"),
            ("ptr", "weights"),
            ("i64", "part"),
            ("i64", "row_pitch"),
            ("i64", "plane_pitch"),
            ("i64", "place"),
            ("i64", "out_w"),
            ("i64", "count"),
            ("i64", "channel"),
        ),
    )
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(vectors)] for _ in range(rows)]
    # Which (output row, y tap) an input row of the slab serves, in the order of y taps for each output row.
    uses: dict[int, list[tuple[int, int]]] = {}
    for r in range(rows):
        for ky in range(kernel[1]):
            uses.setdefault(r * stride[1] + ky * dilation[1], []).append((r, ky))
    with f.loop(0, kernel[0]) as kz:
        plane = f.at(f.argument("slab"), kz * f.argument("plane_pitch"))
        weights = f.at(f.argument("weights"), kz * (kernel[1] * kernel[2] * item))
        splats: dict[tuple[int, int], Value] = {}
        for ky in range(kernel[1]):
            for kx in range(kernel[2]):
                splats[ky, kx] = f.splat(f.load(element, f.at(weights, (ky * kernel[2] + kx) * item), item), lanes)
        for row in sorted(uses):
            at_row = f.at(plane, f.argument("row_pitch") * row)
            for kx, (residue, offset) in enumerate(x_taps):
                at = f.at(at_row, f.argument("part") * residue) if residue else at_row
                columns = [f.load(vector, f.at(at, (offset + v * lanes) * item), item) for v in range(vectors)]
                for r, ky in uses[row]:
                    for v in range(vectors):
                        sums[r][v].set(f.fma(splats[ky, kx], columns[v], sums[r][v].get()))
    writer = conv_writer(f, spec, lanes, out_at)
    writer.begin_row(f.argument("channel"))
    write_rows(f, writer, sums, f.argument("place"), f.argument("out_w"), f.argument("count"), lanes)
    f.ret()
    return f
