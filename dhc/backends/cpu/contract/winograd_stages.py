"""The two outer stages of a Winograd kernel: inputs to transformed tiles, products to outputs.

Inputs are transformed with neighbouring tiles in the lanes of a vector, as the plain layout has them: rows of the map
are transformed along y while they are contiguous, then columns are dealt out to the tiles' positions. Products come
with output channels in the lanes, which fills vectors however few tiles a map has; each group of tiles that makes one
vector of outputs is transposed on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dhc.backends.cpu.contract.copying import emit_copy_row, inside_mask
from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.tile import ResultWriter
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.contract.winograd_transform import emit_inputs, emit_outputs
from dhc.backends.cpu.llvm.builder import Function, Module, Value

ITEM = 4  # the transforms are for float32
# Vectors of outputs of a row that wait to be stored, where fewer would not be whole.
_MOST_SQUARES = 3
_LINE = 64  # bytes of a cache line


def emit_input_stage(module: Module, name: str, m: int, lanes: int, dilation: int = 1) -> Function:
    """Writes ``inputs(from, from_stride, channels, y, y_step, x, height, width, to, to_stride, plane_stride, ahead)``.

    Transforms the first tiles (:func:`input_tiles`) of a row of each channel: those of which the first begins at row
    ``y``, column ``x`` of the map, whose channels lie ``from_stride`` bytes apart. Outside of ``height`` x ``width``
    the map is zero. Position ``e`` of the tiles of channel ``c`` goes to the vector at
    ``to + e * plane_stride + c * to_stride``.

    Rows of a tile lie ``y_step`` apart, its columns ``dilation``; neighbouring tiles are those of neighbouring columns
    first (the phases), as :func:`~.winograd_plan.column_of` counts them.

    ``ahead`` bytes further lie the tiles that come next. Their rows are asked for meanwhile, unless it is 0: rows of
    many channels are more than a processor's own prefetching follows.
    """
    size, vector = m + 2, f"<{lanes} x float>"
    offsets = _offsets(m, lanes, dilation)  # of the vectors of a row
    whole = offsets[-1] + lanes
    f = module.function(
        name,
        "void",
        (
            ("ptr", "from"),
            ("i64", "from_stride"),
            ("i64", "channels"),
            ("i64", "y"),
            ("i64", "y_step"),
            ("i64", "x"),
            ("i64", "height"),
            ("i64", "width"),
            ("ptr", "to"),
            ("i64", "to_stride"),
            ("i64", "plane_stride"),
            ("i64", "ahead"),
        ),
    )
    source, from_stride, channels, y0, y_step, x0, height, width, to, to_stride, plane_stride, ahead = (
        f.argument(n) for _, n in f.arguments
    )
    following = f.at(source, (y0 * width + x0 + (lanes - 1)) * ITEM + ahead)
    lines = offsets if dilation >= lanes else range(0, whole, max(lanes, _LINE // ITEM))

    def prefetch(c: Value) -> None:
        with f.if_(ahead.equals(0).equals(0)):
            base = f.at(following, c * from_stride)
            for r in range(2, size):  # the first two rows belong to the tiles above as well
                line = f.at(base, width * y_step * (r * ITEM))
                for offset in lines:
                    f.prefetch(f.at(line, offset * ITEM))

    def transform(rows: Sequence[Sequence[Value]], place: Value) -> None:
        """From ``size`` rows of vectors to the tiles' positions."""
        columns = [emit_inputs(f, m, [row[i] for row in rows]) for i in range(len(offsets))]
        at = place
        for i in range(size):
            for value in emit_inputs(f, m, _dealt(f, [column[i] for column in columns], m, lanes, dilation)):
                f.store(value, at, ITEM)
                at = f.at(at, plane_stride)

    def row_width(y: Value) -> Value:
        inside = (y >= 0) & (y < height)
        return f.select(inside, width, 0)

    if module.target.masks:
        # Rows outside of the map are read where a row of zeros lies, columns outside are masked.
        zeros = f.stack(-(-whole // lanes) * lanes * ITEM)
        for first in range(0, whole, lanes):
            f.store(Value(f, vector, "zeroinitializer"), f.at(zeros, first * ITEM), ITEM * lanes)
        masks = [inside_mask(f, x0 + offset, width, lanes) for offset in offsets]
        starts, strides = [], []
        for r in range(size):
            y = y0 + y_step * r
            inside = (y >= 0) & (y < height)
            starts.append(f.select(inside, f.at(source, (y * width + x0) * ITEM), zeros))
            strides.append(f.select(inside, from_stride, 0))
        with f.loop(0, channels) as c:
            rows = []
            for start, stride in zip(starts, strides, strict=True):
                at = f.at(start, c * stride)
                pairs = zip(offsets, masks, strict=True)
                rows.append([f.masked_load(vector, f.at(at, offset * ITEM), mask, ITEM) for offset, mask in pairs])
            prefetch(c)
            transform(rows, f.at(to, c * to_stride))
        f.ret()
        return f

    last_row = y0 + y_step * (size - 1)
    interior = (y0 >= 0) & (x0 >= 0) & (last_row < height) & (x0 + whole <= width)
    copy_row = emit_copy_row(module, f"{name}_row", "f32", lanes, 1)
    pitch = -(-whole // lanes) * lanes * ITEM
    border = f.stack(size * pitch)

    def inside_map() -> None:
        with f.loop(0, channels) as c:
            base = f.at(source, c * from_stride + (y0 * width + x0) * ITEM)
            rows = []
            for r in range(size):
                at = f.at(base, width * y_step * (r * ITEM))
                rows.append([f.load(vector, f.at(at, offset * ITEM), ITEM) for offset in offsets])
            prefetch(c)
            transform(rows, f.at(to, c * to_stride))

    def at_border() -> None:
        with f.loop(0, channels) as c:
            for r in range(size):
                y = y0 + y_step * r
                some = row_width(y)
                base = f.at(source, c * from_stride + f.select(some > 0, y, 0) * width * ITEM)
                f.call(copy_row, [base, 0, 1, x0, some, whole, f.at(border, r * pitch), 0])
            rows = [
                [f.load(vector, f.at(border, r * pitch + offset * ITEM), ITEM) for offset in offsets]
                for r in range(size)
            ]
            transform(rows, f.at(to, c * to_stride))

    f.if_else(interior, inside_map, at_border)
    f.ret()
    return f


def input_tiles(lanes: int, dilation: int) -> int:
    """How many tiles the input stage transforms at a time: whole columns of phases where they are narrow."""
    return lanes if dilation >= lanes else lanes // dilation * dilation


def _offsets(m: int, lanes: int, dilation: int) -> list[int]:
    """Where the vectors of a row of inputs begin: one behind the other, or one for each column of a tile."""
    if dilation >= lanes:
        return [column * dilation for column in range(m + 2)]
    return list(range(0, input_tiles(lanes, dilation) * m + 2 * dilation, lanes))


def _dealt(f: Function, row: Sequence[Value], m: int, lanes: int, dilation: int) -> list[Value]:
    """The columns of the tiles: ``m + 2`` vectors over tiles.

    Tile ``j`` is in column ``j // dilation`` of tiles and phase ``j % dilation``: its column ``x`` is element
    ``(m * (j // dilation) + x) * dilation + j % dilation`` of the concatenated vectors.
    """
    if dilation >= lanes:
        return list(row)
    if m == 6 and dilation == 1:
        columns = _dealt_by_six(f, row, lanes)
        return columns + [f.shuffle(columns[x], row[m], [*range(1, lanes), lanes + x]) for x in range(2)]
    if lanes % dilation or m == 6:
        tiles = input_tiles(lanes, dilation)
        places = [[(m * (j // dilation) + x) * dilation + j % dilation for j in range(tiles)] for x in range(m + 2)]
        return [_picked(f, row, place, lanes) for place in places]
    # Halving m times: evens of two neighbours, then odds, in units of a phase's columns.
    phases = {0: list(row[:m])}
    step = 1
    while step < m:
        halved: dict[int, list[Value]] = {}
        for first, vectors in phases.items():
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            for odd in (0, 1):
                units = range(odd * dilation, 2 * lanes, 2 * dilation)
                picks = [unit + i for unit in units for i in range(dilation)]
                halved[first + odd * step] = [f.shuffle(a, b, picks) for a, b in pairs]
        phases, step = halved, step * 2
    columns = [phases[x][0] for x in range(m)]
    following = []  # of the next column of tiles; for the last one they lie in the last vector
    for x in range(2):
        end = range(lanes + x * dilation % lanes, lanes + x * dilation % lanes + dilation)
        following.append(f.shuffle(columns[x], row[m + x * dilation // lanes], [*range(dilation, lanes), *end]))
    return columns + following


def _dealt_by_six(f: Function, row: Sequence[Value], lanes: int) -> list[Value]:
    """Element ``6 * j + x`` of six vectors as element ``j`` of vector ``x``: evens and odds first, then every third."""
    columns: dict[int, Value] = {}
    for odd in (0, 1):
        picks = range(odd, 2 * lanes, 2)
        halves = [f.shuffle(a, b, picks) for a, b in zip(row[:6:2], row[1:6:2], strict=True)]
        for x in range(3):
            columns[2 * x + odd] = _picked(f, halves, [3 * j + x for j in range(lanes)], lanes)
    return [columns[x] for x in range(6)]


def _picked(f: Function, vectors: Sequence[Value], places: Sequence[int], lanes: int) -> Value:
    """The elements at ``places`` of the concatenated vectors; lanes beyond them are of no account."""
    sources = sorted({place // lanes for place in places})
    result: Value | None = None
    for number, source in enumerate(sources):
        if result is None:
            result = vectors[source]
            continue
        before = sources[:number]
        picks = []
        for lane in range(lanes):
            place = places[min(lane, len(places) - 1)]
            if place // lanes == source:
                picks.append(lanes + place % lanes)
            else:
                picks.append(place % lanes if number == 1 and place // lanes in before else lane)
        result = f.shuffle(result, vectors[source], picks)
    assert result is not None
    if len(sources) == 1:
        result = f.shuffle(result, result, [places[min(lane, len(places) - 1)] % lanes for lane in range(lanes)])
    return result


def output_tiles(m: int, lanes: int, dilation: int) -> int:
    """How many tiles the output stage takes at a time: whole columns of phases, if possible whole vectors."""
    width = m * dilation
    whole = math.lcm(lanes, width)
    return (whole if whole <= _MOST_SQUARES * lanes else -(-lanes // width) * width) // m


def emit_output_stage(
    module: Module, name: str, m: int, lanes: int, store: Function, columns: int, dilation: int = 1, *,
    written: Sequence[int] = (),
) -> Function:  # fmt: skip
    """Writes ``outputs(buffers, products, tiles, vectors, height, width, place, row, plane, channel, channels, far)``.

    Transforms ``tiles`` (at most :func:`output_tiles`, from a whole column of phases on) neighbouring tiles, products
    ``[tile][position][columns]``, and stores their ``height`` x ``width`` outputs at element ``place``: ``row``
    elements from one row to the next, ``plane`` from one channel to the next. With ``far`` the places are asked for
    before the transforms, which take long enough to hide the way.

    Args:
        module: receives the function.
        name: its name.
        m: size of the output tiles.
        lanes: vector length.
        store: what :func:`emit_tile_store` wrote.
        columns: output channels that the products have room for.
        dilation: columns from one output of a tile to the next.
        written: indices of the buffers that ``store`` writes, or reads at the same places.
    """
    size, vector = m + 2, f"<{lanes} x float>"
    f = module.function(
        name,
        "void",
        (
            ("ptr", "buffers"),
            ("ptr", "products"),
            ("i64", "tiles"),
            ("i64", "vectors"),
            ("i64", "height"),
            ("i64", "width"),
            ("i64", "place"),
            ("i64", "row"),
            ("i64", "plane"),
            ("i64", "channel"),
            ("i64", "channels"),
            ("i1", "far"),
        ),
    )
    squares = -(-output_tiles(m, lanes, dilation) * m // lanes)
    square_bytes = m * lanes * lanes * ITEM
    held = f.stack(squares * square_bytes + lanes * ITEM)  # [square][channel or column][row][column or channel]
    whole = f.argument("tiles")
    with f.loop(0, f.argument("vectors")) as v:
        base = f.at(f.argument("products"), v * (lanes * ITEM))
        count = f.value(f.minimum(lanes, f.argument("channels") - v * lanes))
        first = f.argument("place") + v * lanes * f.argument("plane")
        with f.if_(f.argument("far")):
            for buffer in written:
                start = f.at(f.pointer_argument(buffer), first * ITEM)
                with f.loop(0, count) as c:
                    for i in range(m):
                        f.prefetch(f.at(start, (c * f.argument("plane") + f.argument("row") * i) * ITEM), level=2)
        with f.loop(0, whole) as tile:
            at = f.at(base, tile * (size * size * columns * ITEM))
            values = [
                [f.load(vector, f.at(at, (i * size + j) * columns * ITEM), ITEM) for j in range(size)]
                for i in range(size)
            ]
            by_column = [emit_outputs(f, m, [values[i][j] for i in range(size)]) for j in range(size)]
            column = tile * m if dilation == 1 else tile // dilation * (m * dilation) + tile % dilation
            to = f.at(held, column * (m * lanes * ITEM))
            for i in range(m):
                for j, value in enumerate(emit_outputs(f, m, [column[i] for column in by_column])):
                    f.store(value, f.at(to, (j * dilation * m + i) * lanes * ITEM), ITEM * lanes)
        # held: [column of the group][row][channel]; each row of it becomes [channel][row][column].
        used = f.value(f.ceildiv(f.argument("width"), lanes)) if squares > 1 else f.const(1)
        with f.loop(0, used) as s:
            square_at = f.at(held, s * square_bytes)
            with f.loop(0, m) as i:
                at = f.at(square_at, i * (lanes * ITEM))
                square = [f.load(vector, f.at(at, j * m * lanes * ITEM), ITEM * lanes) for j in range(lanes)]
                for j, value in enumerate(transposed(f, square, lanes)):
                    f.store(value, f.at(at, j * m * lanes * ITEM), ITEM * lanes)
            f.call(
                store,
                [
                    f.argument("buffers"),
                    square_at,
                    count,
                    f.argument("height"),
                    f.minimum(lanes, f.argument("width") - s * lanes),
                    first + s * lanes,
                    f.argument("row"),
                    f.argument("plane"),
                    f.argument("channel") + v * lanes,
                ],
            )
    f.ret()
    return f


def emit_tile_store(
    module: Module,
    name: str,
    m: int,
    lanes: int,
    epilogue: Epilogue,
    *,
    bias: bool,
    first_operand: int,
    out_buffer: int,
) -> Function:
    """Writes ``void store(buffers, sums, channels, height, width, place, row, plane, channel)``.

    Finishes and stores ``height`` x ``width`` outputs of each of ``channels`` channels. ``sums`` is
    ``[channel][m][lanes]``; ``place``, ``row`` and ``plane`` as :func:`emit_output_stage` has them.

    Args:
        module: receives the function.
        name: its name.
        m: size of the output tiles.
        lanes: vector length.
        epilogue: applied to each vector.
        bias: whether buffer 2 is a bias over channels.
        first_operand: index of the epilogue's first operand in the kernel's buffers.
        out_buffer: index of the output.
    """
    names = ("channels", "height", "width", "place", "row", "plane", "channel")
    f = module.function(name, "void", (("ptr", "buffers"), ("ptr", "sums"), *(("i64", n) for n in names)))
    channels, height, width, place, row, plane, channel = map(f.argument, names)
    writer = ResultWriter(
        f,
        "f32",
        lanes,
        epilogue,
        bias="row" if bias else "none",
        bias_buffer=2,
        first_operand=first_operand,
        out_buffer=out_buffer,
    )

    def rows(left: Value | None) -> None:
        with f.loop(0, channels) as c:
            writer.begin_row(channel + c)
            source = f.at(f.argument("sums"), c * (m * lanes * ITEM))
            start = place + c * plane
            with f.loop(0, height) as i:
                sums = f.load(f"<{lanes} x float>", f.at(source, i * (lanes * ITEM)), ITEM * lanes)
                writer.write(sums, start + i * row, f.const(0), left)

    f.if_else(width >= lanes, lambda: rows(None), lambda: rows(width))
    f.ret()
    return f
