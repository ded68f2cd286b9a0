"""Pointwise convolutions (one tap, stride 1, no padding): a product of the weights with the maps as they lie.

Channels are the rows of ``b`` and all positions of an image its columns, so nothing has to be gathered: tiles read the
input in place. Where many tiles of output channels read the same columns, or where rows lie a large power of two apart
and would meet in the same sets of the caches, the columns of a block are copied to panels of the tile's width first.
The columns beyond the last whole tile always are: a tile reads whole vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.blocks import clearly_less, divided, over_row_tiles, split_count
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.fused_tile import emit_copy_panel, emit_fused_tile
from dhc.backends.cpu.contract.pair_copying import emit_copy_panel_pairs
from dhc.backends.cpu.contract.spec import KERNEL, ConvSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, even_share, load_lanes, row_tiles, tile_shape
from dhc.backends.cpu.contract.weight_tiles import as_stored, in_steps, row_tile_parts
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

CONSTANTS = ("groups", "in_channels", "out_channels", "larger_tiles", "smaller_tiles", "scratch_bytes", "copies")
# From so many tiles of output channels on a copy of the columns pays.
_COPY_TILES = 12


def is_pointwise(spec: ConvSpec) -> bool:
    """Whether every output position reads the input position of the same index, where the sizes are equal."""
    return set(spec.kernel) == {1} and set(spec.stride) == {1} and not any(spec.pad_begin)


def output_tiles(spec: ConvSpec, target: CpuTarget) -> tuple[TileShape, tuple[tuple[int, int], ...], tuple[int, ...]]:
    """The tile's shape, tiles of output channels as (rows, how many), and rows of the tile functions."""
    rows = spec.out_channels // spec.groups
    full = tile_shape(target, spec.dtype)
    shape = tile_shape(target, spec.dtype, rows)
    tiles = row_tiles(rows, shape.rows)
    first = tiles[0][0] if tiles else 1
    # Both functions also where one would do: kernels of more layers are then the same.
    counts = (first, first - 1) if rows >= full.rows else (first,)
    return TileShape(first, shape.vectors, shape.lanes), tiles, counts


def pack_pointwise(spec: ConvSpec, target: CpuTarget, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights ``[OC, C / groups, 1...]`` as ``[group][tile of output channels][channel][channel in tile]``, flat."""
    import numpy as np

    _, tiles, _ = output_tiles(spec, target)
    outs = spec.out_channels // spec.groups
    full = in_steps(spec, weights.reshape(spec.groups, outs, spec.in_channels // spec.groups, -1), 2)
    full = full.reshape(spec.groups, outs, -1)
    parts: list[np.ndarray[Any, Any]] = []
    for group in full:
        parts += row_tile_parts(group, tiles)
    return as_stored(spec, np.concatenate(parts) if parts else np.zeros(0, weights.dtype))


def emit_pointwise(spec: ConvSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a pointwise convolution whose output has the input's sizes.

    Buffers: ``input``, ``weight`` (packed by :func:`pack_pointwise`), [``bias``], [``epilogue0``...], ``out``,
    ``scratch``. Parameters: as for other convolutions.
    """
    module = Module(target, KERNEL)
    item = ITEM_BYTES[spec.dtype]
    shape, tiles, counts = output_tiles(spec, target)
    columns, lanes = shape.columns, shape.lanes
    factors = Factors.with_weights_as_rows(spec, lanes)
    scratch_bytes = max(target.l2_bytes // 2, spec.steps * columns * item)
    scratch_bytes = -(-scratch_bytes // 64) * 64
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    stores, functions = {}, {}
    for vectors in sorted({shape.vectors, 1}):
        stores[vectors] = emit_conv_store(module, f"store{vectors}", spec, lanes, vectors * lanes, out_at)
        for rows in counts:
            functions[rows, vectors] = emit_fused_tile(
                module, f"tile{rows}x{vectors}", TileShape(rows, vectors, lanes), spec.dtype, spec.epilogue,
                stores[vectors], bias=spec.bias, out_buffer=out_at, factors=factors,
            )  # fmt: skip
    if spec.pairs:
        copy_panel = emit_copy_panel_pairs(module, "copy_panel", shape)
    else:
        copy_panel = emit_copy_panel(module, "copy_panel", spec.dtype, shape, load_lanes)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    steps = f.value(f.ceildiv(ins, 2)) if spec.pairs else ins
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), tid * names["scratch_bytes"])
    sums = f.stack(shape.rows * columns * item)
    size = names["out_d"] * names["out_h"] * names["out_w"]
    row_bytes = size * item
    tile_total = names["larger_tiles"] + names["smaller_tiles"]

    # Blocks of columns that fit the second-level cache, evened out over the threads.
    panels = f.value(f.ceildiv(size, columns))
    panel_bytes = f.value(f.maximum(steps, 1)) * (columns * item)
    most = f.value(f.maximum(1, names["scratch_bytes"] // panel_bytes))
    blocks = f.value(f.ceildiv(panels, most))
    maps = names["batch"] * groups
    uneven = (panels >= nthreads) & (maps < nthreads)
    evened = f.value(f.maximum(f.ceildiv(blocks, nthreads), 1) * nthreads)
    # The last columns may be few; dividing the output channels is then fairer. Costs are in vectors of columns.
    last_cost = f.select(size - (panels - 1) * columns > lanes, shape.vectors, 1)
    all_columns = f.value(((panels - 1) * shape.vectors + last_cost) * f.ceildiv(tile_total, nthreads))
    most_columns = (evened // nthreads) * f.value(f.ceildiv(panels, evened)) * shape.vectors * tile_total
    by_rows = f.value(uneven & maps.equals(1) & clearly_less(all_columns, f.value(most_columns)))
    blocks = f.select(uneven & by_rows.equals(0), evened, blocks)
    block_panels = f.value(f.maximum(1, f.ceildiv(panels, f.maximum(blocks, 1))))
    blocks = f.value(f.ceildiv(panels, block_panels))
    units = maps * blocks
    splits = f.value(f.select(by_rows, nthreads, split_count(f, units, nthreads, tile_total)))
    begin, end = even_share(f, units * splits, tid, nthreads)
    far = (row_bytes % 2048).equals(0) & (ins > 16)
    copies = names["copies"].equals(1) | far
    last_copied = f.variable("i64", -1)

    with f.loop(begin, end) as unit:
        block, split = divided(unit, units, splits, by_rows, f)
        first_panel = (block % blocks) * block_panels
        last_panel = f.value(f.minimum(panels, first_panel + block_panels))
        channel_map = block // blocks  # of (image, group)
        group = channel_map % groups
        b = f.at(source, channel_map * ins * row_bytes)
        tile_begin, tile_end = even_share(f, tile_total, split, splits)
        group_weight = f.at(weight, group * outs * steps * factors.row_bytes)
        out_map = channel_map * outs * size

        with f.if_(last_copied.get().equals(block).equals(0)):
            last_copied.set(block)
            with f.loop(first_panel, last_panel) as panel:
                left = size - panel * columns
                with f.if_(copies | (left < columns)):
                    to = f.at(scratch, (panel - first_panel) * panel_bytes)
                    f.call(copy_panel, [f.at(b, panel * (columns * item)), row_bytes, ins, left, to])

        def column_tiles(
            rows: int,
            row: Value,
            _: Value,
            panel_range: tuple[Value, Value] = (first_panel, last_panel),
            b: Value = b,
            group: Value = group,
            group_weight: Value = group_weight,
            out_map: Value = out_map,
        ) -> None:
            a = f.at(group_weight, row * steps * factors.row_bytes)
            with f.loop(*panel_range) as panel:
                left = size - panel * columns
                copied = copies | (left < columns)
                b_at = f.select(
                    copied,
                    f.at(scratch, (panel - panel_range[0]) * panel_bytes),
                    f.at(b, panel * (columns * item)),
                )
                b_stride = f.select(copied, columns * item, row_bytes)
                arguments: list[Int] = [a, b_at, b_stride, steps, f.argument("buffers"), sums]
                arguments += [out_map + row * size + panel * columns, size, group * outs + row, left]

                def run(vectors: int, arguments: list[Int] = arguments) -> None:
                    f.call(functions[rows, vectors], arguments)

                if shape.vectors > 1:
                    f.if_else(left > lanes, lambda: run(shape.vectors), lambda: run(1))
                else:
                    run(1)

        over_row_tiles(f, names, counts, tile_begin, tile_end, column_tiles)
    f.ret(0)
    many = [count for _, count in tiles] + [0, 0]
    # What the tiles read as pairs is always a copy.
    copied = spec.pairs or sum(many) >= _COPY_TILES
    constants = (spec.groups, spec.in_channels // spec.groups, spec.out_channels // spec.groups, *many[:2])
    return finished(
        module, target, "pointwise", buffers, PARAMS, scratch_bytes, (*constants, scratch_bytes, int(copied))
    )
