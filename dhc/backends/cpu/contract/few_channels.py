"""Convolutions of few input channels on targets with masks: first layers, which read images where they lie.

Sums are short here, so that gathering the columns of every tap would cost as much as the products. A register tile is
output channels x columns of one output row: each row of the input that it needs is loaded for each x tap, zeros beyond
the row's ends by masks; rows outside the input are left out. With an x stride of 2, pairs of vectors are sorted into
even and odd columns.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.copying import inside_mask
from dhc.backends.cpu.contract.fused_tile import FusedTile
from dhc.backends.cpu.contract.pointwise import is_pointwise, output_tiles
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, even_share
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

CONSTANTS = (
    "groups",
    "in_channels",  # of a group
    "out_channels",  # of a group
    "larger_tiles",
    "smaller_tiles",
    "kernel_y",
    "stride_y",
    "dilation_y",
    "pad_y",
    "pad_x",
)
_MOST_CHANNELS = 4
_MOST_X_TAPS = 11
# Fewer are served by depthwise kernels, for more of them a copy of the columns pays.
_OUTPUTS = range(8, 25)


def has_few_channels(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether :func:`emit_few_channels` serves a convolution, and well."""
    if not target.masks or len(spec.kernel) > 2 or is_pointwise(spec) or spec.kernel[-1] > _MOST_X_TAPS:
        return False
    x_fits = spec.stride[-1] == 1 or (spec.stride[-1] == 2 and spec.dilation[-1] == 1)
    near = (spec.kernel[-1] - 1) * spec.dilation[-1] <= 64
    few = spec.in_channels // spec.groups <= _MOST_CHANNELS
    return x_fits and near and few and spec.out_channels // spec.groups in _OUTPUTS


def emit_few_channels(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel; buffers and parameters as for other convolutions, no scratch.

    The weights are packed by :func:`~dhc.backends.cpu.contract.pointwise.pack_pointwise`.
    """
    module = Module(target, KERNEL)
    item = ITEM_BYTES[spec.dtype]
    shape, tiles, counts = output_tiles(spec, target)
    lanes, columns = shape.lanes, shape.columns
    stride, pad = spec.padded(spec.stride, 1), spec.padded(spec.pad_begin, 0)
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue, scratch=False)
    out_at = buffers.index("out")
    functions = {}
    for vectors in sorted({shape.vectors, 1}):
        store = emit_conv_store(module, f"store{vectors}", spec, lanes, vectors * lanes, out_at)
        for rows in counts:
            functions[rows, vectors] = _emit_tile(module, spec, TileShape(rows, vectors, lanes), store, out_at)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    in_h, in_w, out_h, out_w = names["in_h"], names["in_w"], names["out_h"], names["out_w"]
    kernel_y, dilation_y = names["kernel_y"], names["dilation_y"]
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    sums = f.stack(shape.rows * columns * item)
    begin, end = even_share(f, names["batch"] * groups * out_h, f.argument("tid"), f.argument("nthreads"))
    with f.loop(begin, end) as unit:
        row, channel_map = unit % out_h, unit // out_h  # a row of an (image, group)
        group = channel_map % groups
        y = row * names["stride_y"] - names["pad_y"]
        low = f.value(f.ceildiv(f.value(f.maximum(0, 0 - y)), dilation_y))
        high = f.value(f.minimum(kernel_y, f.ceildiv(f.value(f.maximum(0, in_h - y)), dilation_y)))
        from_map = f.at(source, channel_map * ins * in_h * in_w * item)
        group_weight = f.at(weight, group * outs * ins * kernel_y * (spec.kernel[-1] * item))
        x = f.variable("i64", 0)
        with f.while_(lambda: x.get() < out_w):
            first = x.get()
            left = out_w - first
            start = f.at(from_map, (y * in_w + first * stride[2] - names["pad_x"]) * item)

            def output_channels(
                vectors: int,
                first: Value = first,
                left: Value = left,
                start: Value = start,
                row: Value = row,
                channel_map: Value = channel_map,
                group: Value = group,
                group_weight: Value = group_weight,
                low: Value = low,
                high: Value = high,
            ) -> None:
                place = (channel_map * outs * out_h + row) * out_w + first
                first_row: Int = 0
                for rows, name in zip(counts, ("larger_tiles", "smaller_tiles"), strict=False):
                    with f.loop(0, names[name]) as index:
                        channel = index * rows + first_row
                        a = f.at(group_weight, channel * ins * kernel_y * (spec.kernel[-1] * item))
                        f.call(
                            functions[rows, vectors],
                            [a, start, ins, low, high, kernel_y, in_h * in_w * item, dilation_y * in_w * item,
                             first * stride[2] - names["pad_x"], in_w, f.argument("buffers"), sums,
                             place + channel * out_h * out_w, out_h * out_w, group * outs + channel, left],
                        )  # fmt: skip
                    first_row = first_row + names[name] * rows
                x.set(first + vectors * lanes)

            if shape.vectors > 1:
                f.if_else(
                    left > (shape.vectors - 1) * lanes,
                    lambda: output_channels(shape.vectors),
                    lambda: output_channels(1),
                )
            else:
                output_channels(1)
    f.ret(0)
    many = [count for _, count in tiles] + [0, 0]
    constants = [spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups, *many[:2]]
    for values, fill in ((spec.kernel, 1), (spec.stride, 1), (spec.dilation, 1), (spec.pad_begin, 0)):
        constants.append(spec.padded(values, fill)[1])
    return finished(module, target, "few_channels", buffers, PARAMS, 0, (*constants, pad[2]))


def _emit_tile(module: Module, spec: ConvSpec, shape: TileShape, store: Function, out_at: int) -> Function:
    """``void tile(a, from, channels, low, high, kernel_y, plane, line, x, in_w, ...)``.

    The sums over input channels, y taps from ``low`` up to ``high`` and all x taps; ``from``: where the first tap of
    the first result lies, column ``x`` of its row. ``plane`` and ``line``: bytes between channels and between y taps.
    """
    item, lanes, element = ITEM_BYTES[spec.dtype], shape.lanes, ELEMENT[spec.dtype]
    vector = f"<{lanes} x {element}>"
    taps, stride, dilation = spec.kernel[-1], spec.stride[-1], spec.dilation[-1]
    names = ("channels", "low", "high", "kernel_y", "plane", "line", "x", "in_w")
    own = (("ptr", "a"), ("ptr", "from"), *(("i64", name) for name in names))
    f = module.function(f"tile{shape.rows}x{shape.vectors}", "void", own + FusedTile.ARGUMENTS)
    fused = FusedTile(f, shape, spec.dtype, spec.epilogue, store, bias=spec.bias, out_buffer=out_at)
    fused.prefetch()
    if stride == 1:
        offsets = sorted({kx * dilation + v * lanes for kx in range(taps) for v in range(shape.vectors)})
    else:
        offsets = sorted({kx - kx % 2 + v * lanes for kx in range(taps) for v in range(2 * shape.vectors)})
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(shape.vectors)] for _ in range(shape.rows)]
    weights_step = taps * shape.rows * item
    x, in_w = f.argument("x"), f.argument("in_w")

    def accumulate(masked: bool) -> None:
        masks = {offset: inside_mask(f, x + offset, in_w, lanes) for offset in offsets} if masked else {}
        with f.loop(0, f.argument("channels")) as c, f.loop(f.argument("low"), f.argument("high")) as ky:
            row = f.at(f.argument("from"), c * f.argument("plane") + ky * f.argument("line"))
            a = f.at(f.argument("a"), (c * f.argument("kernel_y") + ky) * weights_step)
            loaded: dict[int, Value] = {}

            def read(offset: int) -> Value:
                if offset not in loaded:
                    at = f.at(row, offset * item)
                    loaded[offset] = (
                        f.masked_load(vector, at, masks[offset], item) if masked else f.load(vector, at, item)
                    )
                return loaded[offset]

            for kx in range(taps):
                if stride == 1:
                    columns = [read(kx * dilation + v * lanes) for v in range(shape.vectors)]
                else:
                    even = kx - kx % 2
                    pairs = [
                        (read(even + 2 * v * lanes), read(even + (2 * v + 1) * lanes)) for v in range(shape.vectors)
                    ]
                    columns = [f.shuffle(*pair, range(kx % 2, 2 * lanes, 2)) for pair in pairs]
                for r in range(shape.rows):
                    scalar = f.splat(f.load(element, f.at(a, (kx * shape.rows + r) * item), item), lanes)
                    for v in range(shape.vectors):
                        sums[r][v].set(f.fma(scalar, columns[v], sums[r][v].get()))

    inside = (x >= 0) & (x + (offsets[-1] + lanes) <= in_w)
    f.if_else(inside, lambda: accumulate(False), lambda: accumulate(True))
    fused.finish(sums)
    return f
