"""The two outer stages of a Winograd kernel: inputs to transformed tiles, products to outputs.

Inputs are transformed with neighbouring tiles in the lanes of a vector, as the plain layout has them: rows of the map
are transformed along y while they are contiguous, then columns are dealt out to the tiles' positions. Products come
with output channels in the lanes, which fills vectors however few tiles a map has; each group of tiles that makes one
vector of outputs is transposed on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.contract.copying import emit_copy_row, inside_mask
from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.tile import ResultWriter
from dhc.backends.cpu.contract.winograd_transform import emit_inputs, emit_outputs
from dhc.backends.cpu.llvm.builder import Function, Module, Value

ITEM = 4  # the transforms are for float32


def emit_input_stage(module: Module, name: str, m: int, lanes: int) -> Function:
    """Writes ``void inputs(from, from_stride, channels, y, x, height, width, to, to_stride, plane_stride)``.

    Transforms ``lanes`` neighbouring tiles of each channel: those of which the first begins at row ``y``, column ``x``
    of the map, whose channels lie ``from_stride`` bytes apart. Outside of ``height`` x ``width`` the map is zero.
    Position ``e`` of the tiles of channel ``c`` goes to the vector at ``to + e * plane_stride + c * to_stride``.
    """
    size, vector = m + 2, f"<{lanes} x float>"
    whole = m * lanes  # columns that begin a tile; 2 more are read
    f = module.function(
        name,
        "void",
        (
            ("ptr", "from"),
            ("i64", "from_stride"),
            ("i64", "channels"),
            ("i64", "y"),
            ("i64", "x"),
            ("i64", "height"),
            ("i64", "width"),
            ("ptr", "to"),
            ("i64", "to_stride"),
            ("i64", "plane_stride"),
        ),
    )
    names = ("from", "from_stride", "channels", "y", "x", "height", "width", "to", "to_stride", "plane_stride")
    source, from_stride, channels, y0, x0, height, width, to, to_stride, plane_stride = map(f.argument, names)

    def transform(rows: Sequence[Sequence[Value]], place: Value) -> None:
        """From ``size`` rows of ``m + 1`` vectors to the tiles' positions."""
        columns = [emit_inputs(f, m, [row[i] for row in rows]) for i in range(m + 1)]
        at = place
        for i in range(size):
            for value in emit_inputs(f, m, _dealt(f, [column[i] for column in columns], m, lanes)):
                f.store(value, at, ITEM)
                at = f.at(at, plane_stride)

    def row_width(y: Value) -> Value:
        inside = (y >= 0) & (y < height)
        return f.select(inside, width, 0)

    if module.target.masks:
        # Rows outside of the map are read where a row of zeros lies, columns outside are masked.
        zeros = f.stack((whole + lanes) * ITEM)
        for i in range(m + 1):
            f.store(Value(f, vector, "zeroinitializer"), f.at(zeros, i * lanes * ITEM), ITEM * lanes)
        masks = [inside_mask(f, x0 + i * lanes, width, lanes) for i in range(m + 1)]
        starts, strides = [], []
        for r in range(size):
            y = y0 + r
            inside = (y >= 0) & (y < height)
            starts.append(f.select(inside, f.at(source, (y * width + x0) * ITEM), zeros))
            strides.append(f.select(inside, from_stride, 0))
        with f.loop(0, channels) as c:
            rows = []
            for start, stride in zip(starts, strides, strict=True):
                at = f.at(start, c * stride)
                rows.append([f.masked_load(vector, f.at(at, i * lanes * ITEM), masks[i], ITEM) for i in range(m + 1)])
            transform(rows, f.at(to, c * to_stride))
        f.ret()
        return f

    interior = (y0 >= 0) & (x0 >= 0) & (y0 + size <= height) & (x0 + (whole + lanes) <= width)
    copy_row = emit_copy_row(module, f"{name}_row", "f32", lanes, 1)
    pitch = (whole + lanes) * ITEM
    border = f.stack(size * pitch)

    def inside_map() -> None:
        with f.loop(0, channels) as c:
            base = f.at(source, c * from_stride + (y0 * width + x0) * ITEM)
            rows = []
            for r in range(size):
                at = f.at(base, width * (r * ITEM))
                rows.append([f.load(vector, f.at(at, i * lanes * ITEM), ITEM) for i in range(m + 1)])
            transform(rows, f.at(to, c * to_stride))

    def at_border() -> None:
        with f.loop(0, channels) as c:
            for r in range(size):
                some = row_width(y0 + r)
                base = f.at(source, c * from_stride + f.select(some > 0, y0 + r, 0) * width * ITEM)
                f.call(copy_row, [base, 0, 1, x0, some, whole + 2, f.at(border, r * pitch), 0])
            rows = [
                [f.load(vector, f.at(border, r * pitch + i * lanes * ITEM), ITEM) for i in range(m + 1)]
                for r in range(size)
            ]
            transform(rows, f.at(to, c * to_stride))

    f.if_else(interior, inside_map, at_border)
    f.ret()
    return f


def _dealt(f: Function, row: Sequence[Value], m: int, lanes: int) -> list[Value]:
    """Column ``x`` of tile ``j`` is element ``m * j + x`` of the concatenated vectors: ``m + 2`` vectors over tiles."""
    parts = list(row[:m])
    # Halving m times: evens of two neighbours, then odds; the order of the results is that of reversed bits.
    phases = {0: parts}
    step = 1
    while step < m:
        halved: dict[int, list[Value]] = {}
        for first, vectors in phases.items():
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            for odd in (0, 1):
                halved[first + odd * step] = [f.shuffle(a, b, range(odd, 2 * lanes, 2)) for a, b in pairs]
        phases, step = halved, step * 2
    columns = [phases[x][0] for x in range(m)]
    following = [
        f.shuffle(columns[x], row[m], [*range(1, lanes), lanes + x]) for x in range(2)
    ]  # of the next tile; for the last one they lie in the last vector
    return columns + following


def emit_output_stage(module: Module, name: str, m: int, lanes: int, store: Function, columns: int) -> Function:
    """Writes ``void outputs(buffers, products, tiles, vectors, height, width, place, row, plane, channel, channels)``.

    Transforms ``tiles`` (at most ``lanes / m``) neighbouring tiles, products ``[tile][position][columns]``, and stores
    their ``height`` x ``width`` outputs at element ``place``: ``row`` elements from one row to the next, ``plane`` from
    one channel to the next.

    Args:
        module: receives the function.
        name: its name.
        m: size of the output tiles.
        lanes: vector length.
        store: what :func:`emit_tile_store` wrote.
        columns: output channels that the products have room for.
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
        ),
    )
    held = f.stack((m * lanes * lanes + lanes) * ITEM)  # [channel or column][row][column or channel]
    whole = f.argument("tiles")
    with f.loop(0, f.argument("vectors")) as v:
        base = f.at(f.argument("products"), v * (lanes * ITEM))
        with f.loop(0, whole) as tile:
            at = f.at(base, tile * (size * size * columns * ITEM))
            values = [
                [f.load(vector, f.at(at, (i * size + j) * columns * ITEM), ITEM) for j in range(size)]
                for i in range(size)
            ]
            by_column = [emit_outputs(f, m, [values[i][j] for i in range(size)]) for j in range(size)]
            to = f.at(held, tile * (m * m * lanes * ITEM))
            for i in range(m):
                for j, value in enumerate(emit_outputs(f, m, [column[i] for column in by_column])):
                    f.store(value, f.at(to, (j * m + i) * lanes * ITEM), ITEM * lanes)
        # held: [column of the group][row][channel]; each row of it becomes [channel][row][column].
        count = f.value(f.minimum(lanes, f.argument("channels") - v * lanes))
        with f.loop(0, m) as i:
            at = f.at(held, i * (lanes * ITEM))
            square = [f.load(vector, f.at(at, j * m * lanes * ITEM), ITEM * lanes) for j in range(lanes)]
            for j, value in enumerate(transposed(f, square, lanes)):
                f.store(value, f.at(at, j * m * lanes * ITEM), ITEM * lanes)
        f.call(
            store,
            [
                f.argument("buffers"),
                held,
                count,
                f.argument("height"),
                f.argument("width"),
                f.argument("place") + v * lanes * f.argument("plane"),
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


def transposed(f: Function, rows: Sequence[Value], lanes: int) -> list[Value]:
    """A square of ``lanes`` vectors, transposed by exchanging halves, quarters, ... of neighbours."""
    result = list(rows)
    step = 1
    while step < lanes:
        for i in range(lanes):
            if i & step == 0:
                a, b = result[i], result[i + step]
                low = [j if j & step == 0 else lanes + j - step for j in range(lanes)]
                high = [j + step if j & step == 0 else lanes + j for j in range(lanes)]
                result[i], result[i + step] = f.shuffle(a, b, low), f.shuffle(a, b, high)
        step *= 2
    return result
