"""The two outer stages of a minimal filtering kernel: inputs to transformed tiles, products to outputs.

Inputs are transformed with neighbouring tiles in the lanes of a vector, as the plain layout has them: rows of the map
are transformed along y while they are contiguous, then columns are dealt out to the tiles' positions, and to the phases
of a stride. Products come with output channels in the lanes, which fills vectors however few tiles a map has; each
group of tiles that makes one vector of outputs is transposed on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.contract.copying import emit_copy_row, inside_mask
from dhc.backends.cpu.contract.minimal_plan import MinimalPlan
from dhc.backends.cpu.contract.minimal_transform import emit_inputs, emit_outputs
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.llvm.builder import Function, Module, Value

ITEM = 4  # the transforms are for float32


def emit_input_stage(module: Module, name: str, plan: MinimalPlan) -> Function:
    """Writes ``void inputs(from, from_stride, channels, y, x, height, width, to, to_stride, plane_stride)``.

    Transforms a vector of neighbouring tiles of each channel: those of which the first begins at row ``y``, column
    ``x`` of the map, whose channels lie ``from_stride`` bytes apart. Outside of ``height`` x ``width`` the map is zero.
    Position ``e`` of phase ``p`` of the tiles of channel ``c`` goes to the vector at
    ``to + e * plane_stride + (c * phases + p) * to_stride``.
    """
    lanes, (size_y, size_x) = plan.lanes, plan.sizes
    period, reach = plan.columns[0] * plan.stride, plan.stride * size_x
    count = period + -(-(reach - period) // lanes)  # vectors of a row that the tiles need
    vector = f"<{lanes} x float>"
    integers = ("from_stride", "channels", "y", "x", "height", "width")
    f = module.function(
        name,
        "void",
        (
            ("ptr", "from"),
            *(("i64", n) for n in integers),
            ("ptr", "to"),
            ("i64", "to_stride"),
            ("i64", "plane_stride"),
        ),
    )
    names = ("from", *integers, "to", "to_stride", "plane_stride")
    source, from_stride, channels, y0, x0, height, width, to, to_stride, plane_stride = map(f.argument, names)

    def transform(rows: Sequence[Sequence[Value]], c: Value) -> None:
        """From ``size_y`` rows of ``count`` vectors to the tiles' positions."""
        columns = [emit_inputs(f, [row[i] for row in rows]) for i in range(count)]
        for i in range(size_y):
            dealt = _dealt(f, [column[i] for column in columns], period, reach, lanes)
            for phase in range(plan.stride):
                at = f.at(to, (c * plan.stride + phase) * to_stride + plane_stride * (i * size_x))
                for value in emit_inputs(f, dealt[phase :: plan.stride]):
                    f.store(value, at, ITEM)
                    at = f.at(at, plane_stride)

    if module.target.masks:
        # Rows outside of the map are read where a row of zeros lies, columns outside are masked.
        zeros = f.stack(count * lanes * ITEM)
        for i in range(count):
            f.store(Value(f, vector, "zeroinitializer"), f.at(zeros, i * lanes * ITEM), ITEM * lanes)
        masks = [inside_mask(f, x0 + i * lanes, width, lanes) for i in range(count)]
        starts, strides = [], []
        for r in range(size_y):
            y = y0 + r
            inside = (y >= 0) & (y < height)
            starts.append(f.select(inside, f.at(source, (y * width + x0) * ITEM), zeros))
            strides.append(f.select(inside, from_stride, 0))
        with f.loop(0, channels) as c:
            rows = []
            for start, stride in zip(starts, strides, strict=True):
                at = f.at(start, c * stride)
                rows.append([f.masked_load(vector, f.at(at, i * lanes * ITEM), masks[i], ITEM) for i in range(count)])
            transform(rows, c)
        f.ret()
        return f

    interior = (y0 >= 0) & (x0 >= 0) & (y0 + size_y <= height) & (x0 + count * lanes <= width)
    copy_row = emit_copy_row(module, f"{name}_row", "f32", lanes, 1)
    pitch = count * lanes * ITEM
    border = f.stack(size_y * pitch)

    def read(base: Value, row: Value | int) -> list[list[Value]]:
        starts = [f.at(base, row * r) for r in range(size_y)]
        return [[f.load(vector, f.at(at, i * lanes * ITEM), ITEM) for i in range(count)] for at in starts]

    def inside_map() -> None:
        with f.loop(0, channels) as c:
            transform(read(f.at(source, c * from_stride + (y0 * width + x0) * ITEM), width * ITEM), c)

    def at_border() -> None:
        with f.loop(0, channels) as c:
            for r in range(size_y):
                y = y0 + r
                inside = (y >= 0) & (y < height)
                base = f.at(source, c * from_stride + f.select(inside, y, 0) * width * ITEM)
                to_row = f.at(border, r * pitch)
                f.call(copy_row, [base, 0, 1, x0, f.select(inside, width, 0), count * lanes, to_row, 0])
            transform(read(border, pitch), c)

    f.if_else(interior, inside_map, at_border)
    f.ret()
    return f


def _dealt(f: Function, row: Sequence[Value], period: int, reach: int, lanes: int) -> list[Value]:
    """Column ``x < reach`` of tile ``j`` is element ``period * j + x`` of the concatenated vectors."""
    # Halving again and again: evens of two neighbours, then odds; the order of the results is that of reversed bits.
    phases = {0: list(row[:period])}
    step = 1
    while step < period:
        halved: dict[int, list[Value]] = {}
        for first, vectors in phases.items():
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            for odd in (0, 1):
                halved[first + odd * step] = [f.shuffle(a, b, range(odd, 2 * lanes, 2)) for a, b in pairs]
        phases, step = halved, step * 2
    columns = [phases[x][0] for x in range(period)]
    for x in range(period, reach):
        # Of a tile further on; for the last ones they lie in the vectors behind.
        further, column = divmod(x, period)
        places = [divmod(period * (j + further - lanes) + column, lanes) for j in range(lanes)]
        inside = max(lanes - further, 0)
        found = columns[column]
        for number in sorted({vector for vector, _ in places[inside:]}):
            # The first shuffle moves what this vector of columns has itself.
            first = found is columns[column]
            picks = [j + further if first and j < inside else j for j in range(lanes)]
            for j in range(inside, lanes):
                if places[j][0] == number:
                    picks[j] = lanes + places[j][1]
            found = f.shuffle(found, row[period + number], picks)
        columns.append(found)
    return columns


def emit_output_stage(module: Module, name: str, plan: MinimalPlan, store: Function) -> Function:
    """Writes ``void outputs(buffers, products, tiles, vectors, height, width, place, row, plane, channel, channels)``.

    Transforms ``tiles`` neighbouring tiles, at most as many as fill a vector of outputs, of products
    ``[tile][position][channel of the slice]``, and stores their ``height`` x ``width`` outputs at element ``place``:
    ``row`` elements from one row to the next, ``plane`` from one channel to the next.

    Args:
        module: receives the function.
        name: its name.
        plan: of the kernel.
        store: what ``winograd_stages.emit_tile_store`` wrote.
    """
    lanes, (size_y, size_x) = plan.lanes, plan.sizes
    out_y, out_x = plan.rows[0], plan.columns[0]
    vector, row_bytes = f"<{lanes} x float>", plan.width * ITEM
    integers = ("tiles", "vectors", "height", "width", "place", "row", "plane", "channel", "channels")
    f = module.function(name, "void", (("ptr", "buffers"), ("ptr", "products"), *(("i64", n) for n in integers)))
    _, _, tiles, vectors, height, width, place, row, plane, channel, channels = (f.argument(n) for _, n in f.arguments)
    held = f.stack((out_y * lanes * lanes + lanes) * ITEM)  # [channel or column][row][column or channel]
    with f.loop(0, vectors) as v:
        base = f.at(f.argument("products"), v * (lanes * ITEM))
        with f.loop(0, tiles) as tile:
            at = f.at(base, tile * (size_y * size_x * row_bytes))
            by_column = []
            for j in range(size_x):
                some = [f.load(vector, f.at(at, (i * size_x + j) * row_bytes), ITEM) for i in range(size_y)]
                by_column.append(emit_outputs(f, out_y, some))
            to = f.at(held, tile * (out_y * out_x * lanes * ITEM))
            for i in range(out_y):
                for j, value in enumerate(emit_outputs(f, out_x, [column[i] for column in by_column])):
                    f.store(value, f.at(to, (j * out_y + i) * lanes * ITEM), ITEM * lanes)
        # held: [column of the group][row][channel]; each row of it becomes [channel][row][column].
        count = f.value(f.minimum(lanes, channels - v * lanes))
        with f.loop(0, out_y) as i:
            at = f.at(held, i * (lanes * ITEM))
            square = [f.load(vector, f.at(at, j * out_y * lanes * ITEM), ITEM * lanes) for j in range(lanes)]
            for j, value in enumerate(transposed(f, square, lanes)):
                f.store(value, f.at(at, j * out_y * lanes * ITEM), ITEM * lanes)
        start, first = place + v * lanes * plane, channel + v * lanes
        f.call(store, [f.argument("buffers"), held, count, height, width, start, row, plane, first])
    f.ret()
    return f
