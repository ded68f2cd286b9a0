"""Kernels for resizing maps: nearest, linear and cubic, in up to three dimensions, one axis after the other.

An output row is a weighted sum of a few rows that were resized in x before; those are kept in a ring of row buffers in
the first-level cache, because the next output row needs most of them again. A row that is resized in x is itself a
weighted sum of input rows at a few depths.

Where an axis repeats one pattern (it grows by a whole factor), its tables hold that alone and serve every size;
resizing in x is then a sum of shifted vectors, interleaved, a block of columns after the other. Else tables hold
positions and weights for each output, and elements of rows are gathered.

Each result is a function of the input alone, the same whatever the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import ResultWriter, even_share, interleaved, load_lanes
from dhc.backends.cpu.llvm.builder import Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

PARAMS = ("planes", "channels", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w")
TABLE_ALIGN = 16
"""Rows of the x tables are padded to a multiple of this: the longest vector of any target."""
PADDING = 16
"""Elements in front of a padded row: what a pattern may read there, a whole vector so that rows stay aligned."""
BLOCK = 512
"""Input columns that are worked on together where x repeats a pattern or stays as it is."""
_ROWS = 32  # output rows of a unit of work
_ITEM = 4


@dataclass(frozen=True)
class Pattern:
    """How rows repeat: output ``factor * i + s`` takes input ``i + offsets[s][t]`` for each tap ``t``."""

    factor: int
    offsets: tuple[tuple[int, ...], ...]

    @property
    def before(self) -> int:
        """Elements read in front of a row."""
        return max(0, -min(o for own in self.offsets for o in own))

    @property
    def behind(self) -> int:
        """Elements read behind it."""
        return max(0, max(o for own in self.offsets for o in own))


@dataclass(frozen=True)
class ResizeSpec:
    """A resize of f32 maps.

    Attributes:
        taps: number of taps in z, y and x; 0 where an axis stays as it is.
        factors: of z and y, where they repeat a pattern; 0: their tables hold every output.
        pattern: of x, None: gathered.
        epilogue: what happens to each result before it is stored.
    """

    taps: tuple[int, int, int]
    factors: tuple[int, int]
    pattern: Pattern | None
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def gathers(self) -> bool:
        """Whether rows are gathered by tables."""
        return self.taps[2] > 0 and self.pattern is None


def emit_resize(spec: ResizeSpec, target: CpuTarget, row: int = 0) -> KernelCode:
    """Generates the kernel.

    Buffers: ``input``; ``weights`` (f32): those of z and y ``[out or residue][tap]``, then of x ``[residue][tap]`` or
    ``[tap][out]``; ``places`` (i64): positions in z and y ``[out][tap]``, or ``[residue][tap]`` relative to the
    output's own; ``columns`` (i32): positions in x ``[tap][out]``; [``epilogue0``...]; ``out``; ``scratch``. Rows of
    the x tables are padded to :data:`TABLE_ALIGN`. Parameters: :data:`PARAMS`.

    Args:
        spec: the resize.
        target: the CPU.
        row: elements of the longest row, input or output, where rows are gathered.
    """
    module = Module(target, KERNEL)
    return _Writer(spec, module, row).write()


class _Writer:
    def __init__(self, spec: ResizeSpec, module: Module, row: int) -> None:
        self.spec, self.module = spec, module
        self.factor = spec.pattern.factor if spec.pattern else 1
        widest = row if spec.gathers else (BLOCK + TABLE_ALIGN) * self.factor
        self.row_bytes = (widest + 3 * TABLE_ALIGN + 2 * PADDING) // 16 * 16 * _ITEM
        self.lanes = module.target.lanes("f32")
        self.vector = f"<{self.lanes} x float>"
        added = [f"epilogue{i}" for i in range(len(spec.epilogue.operands()))]
        self.buffers = ["input", "weights", "places", "columns", *added, "out", "scratch"]
        f = self.f = module.kernel(module.name)
        self.names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
        self.source, self.weights, self.places, self.columns = (f.pointer_argument(i) for i in range(4))
        z_taps, y_taps, _ = spec.taps
        out_d, out_h = self.names["out_d"], self.names["out_h"]
        self.y_at = f.value((spec.factors[0] or out_d) * z_taps)  # where the tables of y and x begin
        self.x_at = f.value(self.y_at + (spec.factors[1] or out_h) * y_taps)
        out_w = self.names["out_w"]
        self.table_row = f.value(f.ceildiv(out_w, TABLE_ALIGN) * TABLE_ALIGN)

    def write(self) -> KernelCode:
        """Writes the kernel's body."""
        f, spec, names, lanes = self.f, self.spec, self.names, self.lanes
        out_at = self.buffers.index("out")
        tid, nthreads = f.argument("tid"), f.argument("nthreads")
        # A thread's scratch: one padded input row and the ring of resized rows, with room for whole vectors behind.
        ring = max(spec.taps[1], 1)
        scratch_bytes = self.row_bytes * (ring + 1)
        mine = f.at(f.pointer_argument(out_at + 1), tid * scratch_bytes)
        self.padded, self.ring = mine, f.at(mine, self.row_bytes)
        tags = f.stack(8 * ring)
        writer = ResultWriter(
            f, "f32", lanes, spec.epilogue, bias="none", bias_buffer=0, first_operand=4, out_buffer=out_at
        )
        self._load_pattern()
        chunks = f.value(f.ceildiv(names["out_h"], _ROWS))
        begin, end = even_share(f, names["planes"] * names["out_d"] * chunks, tid, nthreads)
        with f.loop(begin, end) as unit:
            chunk, rest = unit % chunks, unit // chunks
            z, plane = rest % names["out_d"], rest // names["out_d"]
            base = f.at(self.source, plane * (names["in_d"] * names["in_h"] * names["in_w"] * _ITEM))
            writer.begin_row(plane % names["channels"])
            step: Int = f.value(f.maximum(names["in_w"], 1)) if spec.gathers else BLOCK
            with f.loop(0, names["in_w"], step) as column:
                for slot in range(ring):
                    f.store(f.const(-1), f.at(tags, 8 * slot), 8)
                count = f.value(f.minimum(step, names["in_w"] - column))
                wide = names["out_w"] if spec.gathers else count * self.factor
                first = chunk * _ROWS
                with f.loop(first, f.minimum(first + _ROWS, names["out_h"])) as y:
                    rows, weights = [], []
                    for tap in range(ring):
                        row, weight = self._y_tap(y, tap)
                        slot_at = row % ring if ring > 1 else f.const(0)
                        place, tag = f.at(self.ring, slot_at * self.row_bytes), f.at(tags, slot_at * 8)
                        with f.if_(f.load("i64", tag, 8).equals(row).equals(0)):
                            f.store(row, tag, 8)
                            self._resized_row(base, z, row, column, count, place)
                        rows.append(place)
                        weights.append(weight)
                    start = ((plane * names["out_d"] + z) * names["out_h"] + y) * names["out_w"] + column * self.factor
                    self._mixed(writer, rows, weights, start, wide)
        f.ret(0)
        return finished(self.module, self.module.target, "resize", self.buffers, PARAMS, scratch_bytes)

    def _mixed(
        self, writer: ResultWriter, rows: list[Value], weights: list[Value | None], start: Value, count: Value
    ) -> None:
        """Writes ``count`` results from element ``start`` on: the weighted sum of rows of the ring."""
        f, lanes = self.f, self.lanes

        def part(j: Value, left: Value | None) -> None:
            loaded = [f.load(self.vector, f.at(row, j * _ITEM), _ITEM) for row in rows]
            writer.write(self._sum(loaded, weights), start + j, j, left)

        whole = (count // lanes) * lanes
        with f.loop(0, whole, lanes) as j:
            part(j, None)
        with f.if_(whole < count):
            part(whole, count - whole)

    def _sum(self, loaded: Sequence[Value], weights: Sequence[Value | None]) -> Value:
        f = self.f
        total: Value | None = None
        for value, weight in zip(loaded, weights, strict=True):
            if weight is None:
                total = value
            elif total is None:
                total = f.binary("fmul", value, weight)
            else:
                total = f.fma(value, weight, total)
        assert total is not None
        return total

    def _weight(self, place: Int) -> Value:
        f = self.f
        return f.splat(f.load("float", f.at(self.weights, place * _ITEM), _ITEM), self.lanes)

    def _tap(self, at: Value, axis: int, tap: int, size: Value, first: Int) -> tuple[Value, Value]:
        """Position of a tap in z or y, and the place of its weight."""
        f, taps, factor = self.f, self.spec.taps[axis], self.spec.factors[axis]
        place = f.value((at % factor if factor else at) * taps + first + tap)
        position = f.load("i64", f.at(self.places, place * 8), 8)
        if factor:
            position = f.value(f.maximum(0, f.minimum(position + at // factor, size - 1)))
        return position, place

    def _y_tap(self, y: Value, tap: int) -> tuple[Value, Value | None]:
        """Input row and weight of a tap in y."""
        taps = self.spec.taps[1]
        if taps == 0:
            return y, None
        row, place = self._tap(y, 1, tap, self.names["in_h"], self.y_at)
        return row, self._weight(place) if taps > 1 else None

    # ---- x -----------------------------------------------------------------------------------------------------------

    def _load_pattern(self) -> None:
        """Weights of a pattern stay in registers."""
        pattern, taps = self.spec.pattern, self.spec.taps[2]
        self.pattern_weights: list[list[Value | None]] = []
        if pattern is None:
            return
        for residue in range(pattern.factor):
            own = [None if taps == 1 else self._weight(self.x_at + (residue * taps + tap)) for tap in range(taps)]
            self.pattern_weights.append(list(own))

    def _resized_row(self, base: Value, z: Value, row: Value, column: Value, count: Value, to: Value) -> None:
        """Writes columns of input row ``row``, mixed over depths and resized in x, to a slot of the ring."""
        f, in_w = self.f, self.names["in_w"]
        z_taps, _, x_taps = self.spec.taps
        plane = self.names["in_h"] * in_w
        sources, weights = [], []
        for tap in range(max(z_taps, 1)):
            depth, weight = z, None
            if z_taps:
                depth, place = self._tap(z, 0, tap, self.names["in_d"], 0)
                weight = self._weight(place) if z_taps > 1 else None
            sources.append(f.at(base, (depth * plane + row * in_w) * _ITEM))
            weights.append(weight)
        target = to if x_taps == 0 else f.at(self.padded, PADDING * _ITEM)

        def part(j: Value, left: Value | None) -> None:
            at = (column + j) * _ITEM
            if left is None:
                loaded = [f.load(self.vector, f.at(s, at), _ITEM) for s in sources]
            else:
                loaded = [load_lanes(f, self.vector, f.at(s, at), left, _ITEM) for s in sources]
            f.store(self._sum(loaded, weights), f.at(target, j * _ITEM), _ITEM)

        def border(place: Value, at: Value) -> None:
            """One element beside the columns: a neighbour, or the row's last one again."""
            inside = f.value(f.maximum(0, f.minimum(at, in_w - 1)))
            loaded = [f.splat(f.load("float", f.at(s, inside * _ITEM), _ITEM), self.lanes) for s in sources]
            mixed = self._sum(loaded, weights)
            f.store(f.emit("float", f"extractelement {mixed.type} {mixed.ref}, i64 0"), place, _ITEM)

        whole = (count // self.lanes) * self.lanes
        with f.loop(0, whole, self.lanes) as j:
            part(j, None)
        with f.if_(whole < count):
            part(whole, count - whole)
        if x_taps == 0:
            return
        pattern = self.spec.pattern
        if pattern is None:
            self._gathered(target, to, x_taps)
            return
        for i in range(pattern.before):
            border(f.at(target, -(i + 1) * _ITEM), column - (i + 1))
        for i in range(pattern.behind):
            border(f.at(target, (count + i) * _ITEM), column + count + i)
        self._interleaved(target, to, pattern, count)

    def _interleaved(self, source: Value, to: Value, pattern: Pattern, count: Value) -> None:
        f = self.f
        with f.loop(0, count, self.lanes) as i:
            vectors = []
            for offsets, weights in zip(pattern.offsets, self.pattern_weights, strict=True):
                loaded = [f.load(self.vector, f.at(source, (i + o) * _ITEM), _ITEM) for o in offsets]
                vectors.append(self._sum(loaded, weights))
            for part, vector in enumerate(interleaved(f, vectors, self.lanes)):
                f.store(vector, f.at(to, (i * pattern.factor + part * self.lanes) * _ITEM), _ITEM)

    def _gathered(self, source: Value, to: Value, taps: int) -> None:
        f = self.f
        with f.loop(0, self.names["out_w"], self.lanes) as j:
            loaded: list[Value] = []
            weights: list[Value | None] = []
            for tap in range(taps):
                place = self.table_row * tap + j
                loaded.append(_gather(f, source, f.at(self.columns, place * 4), self.lanes))
                table = f.at(self.weights, (self.x_at + place) * _ITEM)
                weights.append(f.load(self.vector, table, _ITEM) if taps > 1 else None)
            f.store(self._sum(loaded, weights), f.at(to, j * _ITEM), _ITEM)


def _gather(f: Function, source: Value, columns: Value, lanes: int) -> Value:
    """Elements of a row at the positions that a table holds."""
    places = f.load(f"<{lanes} x i32>", columns, 4)
    value = Value(f, f"<{lanes} x float>", "poison")
    for lane in range(lanes):
        at = f.emit("i32", f"extractelement {places.type} {places.ref}, i64 {lane}")
        wide = f.emit("i64", f"zext i32 {at.ref} to i64")
        element = f.load("float", f.at(source, wide * _ITEM), _ITEM)
        value = f.emit(value.type, f"insertelement {value.type} {value.ref}, float {element.ref}, i64 {lane}")
    return value
