"""The register tile that all contractions share: rows x vectors of accumulators, and how its results are stored.

For each step of the sum, one vector of every column block is loaded and one scalar of every row is broadcast; their
products go to rows x vectors accumulators that stay in registers. Measured on a core with 512-bit FMA, 12 rows x 2
vectors run at 97 % of the limit. A tile's sums go through a small buffer in the first-level cache to
:func:`emit_store`, which adds the bias, applies the epilogue and writes runs of neighbouring outputs; that keeps edges,
masks and epilogues out of the hot loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget


@dataclass(frozen=True)
class TileShape:
    """A register tile: ``rows`` x ``vectors`` vectors of ``lanes`` elements."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Elements in a row of the tile."""
        return self.vectors * self.lanes


def tile_shape(target: CpuTarget, dtype: str, rows: int | None = None) -> TileShape:
    """The tile for a target: 12x2 with 32 wide registers, 8x3 with 32 narrow ones, 6x2 with 16.

    Args:
        target: gives vector width and register count.
        dtype: element type.
        rows: number of rows of the whole product where known: fewer rows than the tile's get more vectors.
    """
    lanes = target.lanes(dtype)
    if target.vector_registers >= 32:
        accumulators, shape = 24, ((12, 2) if target.vector_bits >= 256 else (8, 3))
    else:
        accumulators, shape = 12, (6, 2)
    if rows is not None and rows < shape[0]:
        vectors = max(shape[1], min(accumulators // max(rows, 1), 8 if target.vector_registers >= 32 else 4))
        return TileShape(max(rows, 1), vectors, lanes)
    return TileShape(*shape, lanes)


def row_tiles(rows: int, limit: int) -> tuple[tuple[int, int], ...]:
    """Divides ``rows`` as evenly as possible into tiles of at most ``limit``: ((rows of a tile, how many), ...)."""
    count = -(-rows // limit)
    if count == 0:
        return ()
    small, larger = divmod(rows, count)
    parts = ((small + 1, larger), (small, count - larger))
    return tuple(part for part in parts if part[1])


def emit_accumulate(
    module: Module,
    name: str,
    shape: TileShape,
    pitch: int,
    dtype: str,
    tap_offsets: Sequence[tuple[int, int]],
    *,
    packed_rows: bool,
    adjacent_rows: bool = False,
    factors: Factors | None = None,
) -> Function:
    """Writes ``void tile(a, row_stride, step_stride, b, b_stride, line, steps, buffer, resume)``: the sums of one tile.

    ``buffer[r * pitch + j] = sum over steps s and taps t of a(r, s, t) * b[s * b_stride + offset(t) + j]``, always
    summed in the order (s, t). With ``resume`` the sums go on from what the buffer holds.

    Args:
        module: receives the function.
        name: its name.
        shape: rows and vectors of the tile.
        pitch: elements between rows of the buffer.
        dtype: element type.
        tap_offsets: (n, bytes) for each tap: its offset within one step of ``b`` is ``n * line + bytes``.
        packed_rows: ``a`` is ``[step][tap][row]`` contiguous; else row ``r`` lies ``row_stride`` bytes apart, steps
            ``step_stride`` bytes apart, and there is one tap.
        adjacent_rows: with ``packed_rows``: one tap, its rows contiguous, but steps ``step_stride`` bytes apart.
        factors: how ``a`` (by rows) and ``b`` (by columns) lie in memory when it is not as ``dtype``.
    """
    item, lanes = ITEM_BYTES[dtype], shape.lanes
    factors = factors or Factors(dtype, lanes)
    vector, row_item, column_item = factors.vector, factors.row_bytes, factors.column_bytes
    f = module.function(
        name,
        "void",
        (
            ("ptr", "a"),
            ("i64", "row_stride"),
            ("i64", "step_stride"),
            ("ptr", "b"),
            ("i64", "b_stride"),
            ("i64", "line"),
            ("i64", "steps"),
            ("ptr", "buffer"),
            ("i1", "resume"),
        ),
    )
    places = [
        [f.at(f.argument("buffer"), (r * pitch + v * lanes) * item) for v in range(shape.vectors)]
        for r in range(shape.rows)
    ]
    sums = [[f.variable(vector, "zeroinitializer") for _ in row] for row in places]
    with f.if_(f.argument("resume")):
        for r, row in enumerate(places):
            for v, place in enumerate(row):
                sums[r][v].set(f.load(vector, place, lanes * item))
    b = f.variable("ptr", f.argument("b"))
    row_stride = f.argument("row_stride")
    if packed_rows:
        bases = [f.variable("ptr", f.argument("a"))]
        step = f.argument("step_stride") if adjacent_rows else f.const(len(tap_offsets) * shape.rows * row_item)
    else:
        # A pointer for every third row: address modes reach the two next rows as base + stride and base + 2 stride.
        bases = [f.variable("ptr", f.at(f.argument("a"), row_stride * r)) for r in range(0, shape.rows, 3)]
        step = f.argument("step_stride")
        double_stride = row_stride * 2
    with f.loop(0, f.argument("steps")):
        b_now = b.get()
        a_now = [base.get() for base in bases]
        lines: dict[int, Value] = {0: b_now}
        for tap, (number, offset) in enumerate(tap_offsets):
            if number not in lines:
                lines[number] = f.at(b_now, f.argument("line") * number)
            b_line = lines[number]
            columns = [factors.column(f, f.at(b_line, offset + v * lanes * column_item)) for v in range(shape.vectors)]
            for r in range(shape.rows):
                if packed_rows:
                    at = f.at(a_now[0], (tap * shape.rows + r) * row_item)
                else:
                    at = f.at(a_now[r // 3], (0, row_stride, double_stride)[r % 3])
                row_factor = factors.row(f, at)
                for v in range(shape.vectors):
                    sums[r][v].set(factors.multiply_add(f, row_factor, columns[v], sums[r][v].get()))
        for base, pointer in zip(bases, a_now, strict=True):
            base.set(f.at(pointer, step))
        b.set(f.at(b_now, f.argument("b_stride")))
    for r in range(shape.rows):
        for v in range(shape.vectors):
            f.store(sums[r][v].get(), places[r][v], lanes * item)
    f.ret()
    return f


def store_lanes(f: Function, value: Value, pointer: Value, count: Value, item: int) -> None:
    """Stores the first ``count`` lanes of a vector; all of them when ``count`` reaches the vector's length."""
    lanes, element = value.type[1:-1].split(" x ")
    if f.module.target.masks:
        f.masked_store(value, pointer, f.lanes_below(count, int(lanes)), item)
        return

    def some() -> None:
        spill = f.stack(int(lanes) * item)
        f.store(value, spill, int(lanes) * item)
        with f.loop(0, count) as j:
            f.store(f.load(element, f.at(spill, j * item), item), f.at(pointer, j * item), item)

    f.if_else(count >= int(lanes), lambda: f.store(value, pointer, item), some)


def load_lanes(f: Function, type_: str, pointer: Value, count: Value, item: int) -> Value:
    """Loads the first ``count`` lanes of a vector, the others are zero; memory behind them is not touched."""
    lanes, element = type_[1:-1].split(" x ")
    if f.module.target.masks:
        return f.masked_load(type_, pointer, f.lanes_below(count, int(lanes)), item)
    result = f.variable(type_, "zeroinitializer")

    def some() -> None:
        spill = f.stack(int(lanes) * item)
        f.store(Value(f, type_, "zeroinitializer"), spill, int(lanes) * item)
        with f.loop(0, count) as j:
            f.store(f.load(element, f.at(pointer, j * item), item), f.at(spill, j * item), item)
        result.set(f.load(type_, spill, int(lanes) * item))

    f.if_else(count >= int(lanes), lambda: result.set(f.load(type_, pointer, item)), some)
    return result.get()


class ResultWriter:
    """Writes the IR that finishes vectors of sums: bias, epilogue, store.

    Args:
        f: the function that stores; its buffers are its argument ``buffers``.
        dtype: element type.
        lanes: vector length.
        epilogue: applied to each vector.
        bias: ``none``, ``row`` or ``column``.
        bias_buffer: index of the bias in the kernel's buffers.
        first_operand: index of the epilogue's first operand.
        out_buffer: index of the output.
    """

    def __init__(
        self,
        f: Function,
        dtype: str,
        lanes: int,
        epilogue: Epilogue,
        *,
        bias: str,
        bias_buffer: int,
        first_operand: int,
        out_buffer: int,
    ) -> None:
        self._f, self._dtype, self._lanes, self._epilogue, self._bias = f, dtype, lanes, epilogue, bias
        self._item, self._element = ITEM_BYTES[dtype], ELEMENT[dtype]
        self._vector = f"<{lanes} x {self._element}>"
        self._out = f.pointer_argument(out_buffer)
        self._shapes = epilogue.operands()
        self._pointers = [f.pointer_argument(first_operand + i) for i in range(len(self._shapes))]
        self._bias_pointer = f.pointer_argument(bias_buffer) if bias != "none" else None
        self._scalars = {i: self._splat(self._pointers[i], 0) for i, s in enumerate(self._shapes) if s == "scalar"}
        self._by_row: dict[int, Value] = {}
        self._row_bias: Value | None = None

    def _splat(self, pointer: Value, index: Int) -> Value:
        f = self._f
        return f.splat(f.load(self._element, f.at(pointer, index * self._item), self._item), self._lanes)

    def begin_row(self, row: Value) -> None:
        """Loads what belongs to a whole row: call it before the :meth:`write` of the row's vectors."""
        if self._bias == "row" and self._bias_pointer is not None:
            self._row_bias = self._splat(self._bias_pointer, row)
        self._by_row = {i: self._splat(self._pointers[i], row) for i, s in enumerate(self._shapes) if s == "row"}

    def write(self, sums: Value, place: Value, column: Value, left: Value | None) -> None:
        """Finishes one vector and stores it at element ``place`` of the output.

        Args:
            sums: the vector.
            place: element index in the output of its first lane.
            column: index of its first lane in operands over columns.
            left: how many lanes to store, ``None`` for all.
        """
        f, item = self._f, self._item

        def load(pointer: Value) -> Value:
            if left is None:
                return f.load(self._vector, pointer, item)
            return load_lanes(f, self._vector, pointer, left, item)

        def operand(i: int) -> Value:
            shape = self._shapes[i]
            if shape == "same":
                return load(f.at(self._pointers[i], place * item))
            if shape == "column":
                return load(f.at(self._pointers[i], column * item))
            return self._by_row[i] if shape == "row" else self._scalars[i]

        value = sums
        if self._row_bias is not None:
            value = f.binary("fadd", value, self._row_bias)
        elif self._bias == "column" and self._bias_pointer is not None:
            value = f.binary("fadd", value, load(f.at(self._bias_pointer, column * item)))
        value = self._epilogue.emit(EpilogueContext(f, self._dtype, self._lanes, self._vector, operand), value)
        if left is None:
            f.store(value, f.at(self._out, place * item), item)
        else:
            store_lanes(f, value, f.at(self._out, place * item), left, item)


def interleaved(f: Function, vectors: Sequence[Value], lanes: int) -> list[Value]:
    """Lane ``j`` of vector ``i`` goes to place ``j * len(vectors) + i`` of the concatenated results."""
    count = len(vectors)
    if count == 1:
        return list(vectors)
    results = []
    for v in range(count):
        sources = [divmod(v * lanes + lane, count) for lane in range(lanes)]
        result = f.shuffle(vectors[0], vectors[1], [j + lanes if i == 1 else j for j, i in sources])
        for extra in range(2, count):
            picks = [lanes + j if i == extra else lane for lane, (j, i) in enumerate(sources)]
            result = f.shuffle(result, vectors[extra], picks)
        results.append(result)
    return results


def emit_store(
    module: Module,
    name: str,
    dtype: str,
    lanes: int,
    pitch: int,
    epilogue: Epilogue,
    *,
    bias: str,
    bias_buffer: int,
    first_operand: int,
    out_buffer: int,
    column_stride: int = 1,
    interleave: int = 1,
    plane: int = 0,
) -> Function:
    """Writes ``void store(buffers, sums, rows, count, offset, row_stride, row, column)``.

    Takes ``rows`` runs of ``count`` sums from the tile buffer (rows ``pitch`` elements apart), adds the bias, applies
    the epilogue, and writes run ``r`` to elements ``offset + r * row_stride + j * column_stride`` of the output.

    Args:
        module: receives the function.
        name: its name.
        dtype: element type.
        lanes: vector length.
        pitch: elements between the rows of the tile buffer.
        epilogue: applied to each vector.
        bias: ``none``, ``row`` or ``column``.
        bias_buffer: index of the bias in the kernel's buffers.
        first_operand: index of the epilogue's first operand.
        out_buffer: index of the output.
        column_stride: distance of neighbouring results in the output, in elements; other than 1 they are written one
            by one.
        interleave: number of tile buffers of which a run takes its sums in turn.
        plane: elements from one of them to the next.
    """
    item = ITEM_BYTES[dtype]
    width = lanes if column_stride == 1 else 1
    vector = f"<{width} x {ELEMENT[dtype]}>"
    f = module.function(
        name,
        "void",
        (
            ("ptr", "buffers"),
            ("ptr", "sums"),
            ("i64", "rows"),
            ("i64", "count"),
            ("i64", "offset"),
            ("i64", "row_stride"),
            ("i64", "row"),
            ("i64", "column"),
        ),
    )
    writer = ResultWriter(
        f,
        dtype,
        width,
        epilogue,
        bias=bias,
        bias_buffer=bias_buffer,
        first_operand=first_operand,
        out_buffer=out_buffer,
    )
    count = f.argument("count")
    with f.loop(0, f.argument("rows")) as r:
        source = f.at(f.argument("sums"), r * (pitch * item))
        start = f.argument("offset") + r * f.argument("row_stride")
        writer.begin_row(f.argument("row") + r)

        def part(j: Value, left: Value | None, source: Value = source, start: Value = start) -> None:
            """Writes ``interleave`` vectors from output ``j`` of the run on."""
            at = j // interleave
            sums = [f.load(vector, f.at(source, (at + i * plane) * item), item) for i in range(interleave)]
            for i, value in enumerate(interleaved(f, sums, width)):
                here = None
                if left is not None:
                    here = f.value(f.maximum(0, f.minimum(width, left - i * width))) if interleave > 1 else left
                writer.write(value, start + (j + i * width) * column_stride, f.argument("column") + j, here)

        step = width * interleave
        whole = (count // step) * step
        with f.loop(0, whole, step) as j:
            part(j, None)
        if step > 1:
            with f.if_(whole < count):
                part(whole, count - whole)
    f.ret()
    return f


def even_share(f: Function, total: Int, tid: Value, nthreads: Value) -> tuple[Value, Value]:
    """The range of work units of a thread: contiguous, sizes differing by at most one."""
    units = f.value(total)
    return (units * tid) // nthreads, (units * (tid + 1)) // nthreads
