"""Minimal filtering for few output channels: the products have tiles in the lanes of their vectors, as the inputs do.

A vector over 8 output channels would be half empty. Here a register tile is output channels x vectors of tiles, the
products are ``M[z plane][position][block of tiles][output channel][tile]``, and the outputs of neighbouring tiles are
interleaved to rows when they are stored.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.blocks import over_columns
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.minimal_plan import MinimalPlan
from dhc.backends.cpu.contract.minimal_stages import ITEM
from dhc.backends.cpu.contract.minimal_transform import emit_outputs
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, interleaved
from dhc.backends.cpu.llvm.builder import Function, Module, Value


def emit_narrow_products(module: Module, plan: MinimalPlan) -> Function:
    """Writes ``void multiply(transformed, plane_stride, weight, products, pitch, held_rows, sums, z_count, t_count)``.

    Multiplies ``t_count`` tiles of ``z_count`` planes. Their inputs are ``transformed[position][z plane][row]``:
    positions ``plane_stride`` bytes apart, rows of ``pitch`` tiles, ``held_rows`` rows in a plane; ``sums`` rows from
    the plane's first on are summed.
    """
    shape = plan.narrow
    assert shape is not None
    rows, columns = shape.rows, shape.columns
    accumulate = {
        vectors: emit_accumulate(
            module, f"tile{vectors}", TileShape(rows, vectors, plan.lanes), columns, "f32", [(0, 0)], packed_rows=True
        )
        for vectors in sorted({shape.vectors, 1})
    }
    pointers = ("transformed", "weight", "products")
    names = ("transformed", "plane_stride", "weight", "products", "pitch", "held_rows", "sums", "z_count", "t_count")
    f = module.function("multiply", "void", tuple(("ptr" if name in pointers else "i64", name) for name in names))
    transformed, plane_stride, weight, products, pitch, held_rows, sums, z_count, t_count = map(f.argument, names)
    row_bytes = pitch * ITEM
    position_bytes = pitch * (rows * ITEM)
    with f.loop(0, plan.positions) as e, f.loop(0, z_count) as z:
        a = f.at(weight, e * sums * (rows * ITEM))
        b = f.at(transformed, e * plane_stride + z * held_rows * row_bytes)
        to = f.at(products, (z * plan.positions + e) * position_bytes)

        def multiply(t: Value, vectors: int, a: Value = a, b: Value = b, to: Value = to) -> None:
            place = f.at(to, _tile_at(t, shape))
            f.call(accumulate[vectors], [a, 0, 0, f.at(b, t * ITEM), row_bytes, 0, sums, place, f.const(0, "i1")])

        over_columns(f, shape, t_count, multiply)
    f.ret()
    return f


def _tile_at(t: Value, shape: TileShape) -> Value:
    """Bytes to the products of tile ``t``, a multiple of the lanes: blocks of as many tiles as a register tile has."""
    return t // shape.columns * (shape.rows * shape.columns * ITEM) + t % shape.columns * ITEM


def emit_narrow_finish(module: Module, spec: ConvSpec, plan: MinimalPlan, out_at: int) -> Function:
    """Writes ``void finish(buffers, products, pitch, t_first, t_count, tiles_x, place, out_h, out_w, plane, channel)``.

    Transforms and stores the products of a plane's ``t_count`` tiles from tile ``t_first`` on. The plane of the first
    output channel begins at element ``place``; channels lie ``plane`` apart, ``channel`` is the number of the first.
    """
    shape, lanes, (tile_y, _), (tile_x, _) = plan.narrow, plan.lanes, plan.rows, plan.columns
    assert shape is not None
    width = lanes * tile_x  # outputs of a row of a vector of tiles
    store = emit_conv_store(module, "store", spec, lanes, width, out_at)
    outputs = _emit_outputs(module, plan, shape)
    integers = ("pitch", "t_first", "t_count", "tiles_x", "place", "out_h", "out_w", "plane", "channel")
    f = module.function("finish", "void", (("ptr", "buffers"), ("ptr", "products"), *(("i64", n) for n in integers)))
    pitch, t_first, t_count, tiles_x, place, out_h, out_w, plane, channel = map(f.argument, integers)
    held = f.stack((tile_y * shape.rows * width + lanes) * ITEM)
    with f.loop(0, t_count, lanes) as t:
        f.call(outputs, [f.at(f.argument("products"), _tile_at(t, shape)), pitch * (shape.rows * ITEM), held])
        some = f.value(f.minimum(lanes, t_count - t))
        done = f.variable("i64", 0)
        with f.while_(lambda: done.get() < some):
            # Tiles of one row of tiles.
            number = t_first + t + done.get()
            y, x = number // tiles_x * tile_y, number % tiles_x * tile_x
            count = f.value(f.minimum(some - done.get(), tiles_x - number % tiles_x))
            run = f.minimum(count * tile_x, out_w - x)
            with f.loop(0, f.minimum(tile_y, out_h - y)) as i:
                source = f.at(held, (i * (shape.rows * width) + done.get() * tile_x) * ITEM)
                start = place + (y + i) * out_w + x
                f.call(store, [f.argument("buffers"), source, shape.rows, run, start, plane, channel, 0])
            done.set(done.get() + count)
    f.ret()
    return f


def _emit_outputs(module: Module, plan: MinimalPlan, shape: TileShape) -> Function:
    """``void outputs(products, position_bytes, held)``: a vector of tiles to ``held[row][output channel][column]``."""
    lanes, (size_y, size_x) = plan.lanes, plan.sizes
    tile_y, tile_x = plan.rows[0], plan.columns[0]
    vector = f"<{lanes} x float>"
    f = module.function("outputs", "void", (("ptr", "products"), ("i64", "position_bytes"), ("ptr", "held")))
    with f.loop(0, shape.rows) as r:
        at = f.at(f.argument("products"), r * (shape.columns * ITEM))
        values = []
        for _ in range(plan.positions):
            values.append(f.load(vector, at, ITEM))
            at = f.at(at, f.argument("position_bytes"))
        by_column = [emit_outputs(f, tile_y, values[j::size_x]) for j in range(size_x)]
        assert len(values[0::size_x]) == size_y
        for i in range(tile_y):
            row = emit_outputs(f, tile_x, [column[i] for column in by_column])
            for j, value in enumerate(interleaved(f, row, lanes)):
                place = ((r + i * shape.rows) * tile_x + j) * (lanes * ITEM)
                f.store(value, f.at(f.argument("held"), place), ITEM * lanes)
    f.ret()
    return f
