"""Attention in one kernel: a block of scores, its softmax, and the product with the values, never the whole matrix.

For each batch element (one head of one sequence) keys and values are copied once into panels. Then a block of a few
queries at a time: their scores go panel by panel into a buffer that stays in the first- or second-level cache; each
row is scaled, masked, and turned into exponentials of differences to its largest; the product with the values follows
from the same buffer, and the sums of exponentials divide the result. Queries are read and results written in place with
any strides, so the transposes around an attention cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dhc.backends.cpu.contract.activations import exp_of_difference
from dhc.backends.cpu.contract.epilogue import EpilogueContext
from dhc.backends.cpu.contract.packing import emit_pack
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import (
    TileShape,
    emit_accumulate,
    even_share,
    load_lanes,
    row_tiles,
    store_lanes,
    tile_shape,
)
from dhc.backends.cpu.llvm.builder import Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.cpu.vector_writer import VectorWriter
from dhc.ir import scalar as s

BATCH_AXES = 4
_ITEM = 4


@dataclass(frozen=True)
class AttentionSpec:
    """``softmax(expression(q k)) v`` in f32.

    Attributes:
        rows: sizes of the blocks of queries, descending; the last is 1 unless all blocks have one of these sizes.
        row_major_keys: each key's features lie side by side; else the positions do.
        narrow: all features of a value fit one vector.
        expression: of the score (``Var("sum")``) and further operands (``Load(i, ())``).
        operands: of each whether it is ``f32`` or ``bool``, and whether its rows are ``row`` (one element for each
            key) or ``scalar`` (one for all).
    """

    rows: tuple[int, ...]
    row_major_keys: bool
    narrow: bool
    expression: s.ScalarExpr
    operands: tuple[tuple[str, str], ...] = ()


def block_rows(target: CpuTarget, queries: int | None) -> tuple[int, ...]:
    """The sizes of blocks of queries: two neighbouring ones where the number is known, else some that always do."""
    most = tile_shape(target, "f32").rows
    if queries is not None:
        return tuple(size for size, _ in row_tiles(queries, most)) or (1,)
    return tuple(sorted({most, max(most // 2, 1), 2, 1}, reverse=True))


def params(spec: AttentionSpec) -> tuple[str, ...]:
    """Names of the run-time sizes: of the product, then offset, batch strides and row stride of each operand."""
    names = [f"batch{i}" for i in range(BATCH_AXES)] + ["m", "n", "d", "e"]
    for operand in (*_operands(spec), "out"):
        names += [f"{operand}_offset", *(f"{operand}_stride{i}" for i in range(BATCH_AXES)), f"{operand}_row"]
    return tuple(names)


def _operands(spec: AttentionSpec) -> tuple[str, ...]:
    return ("q", "k", "v", *(f"epilogue{i}" for i in range(len(spec.operands))))


def scratch_elements(target: CpuTarget, spec: AttentionSpec, n: Int, d: Int, e: Int) -> tuple[Int, Int, Int]:
    """Elements of the panels of keys and of values and of the block of scores; works for numbers and for sizes."""
    columns = tile_shape(target, "f32").columns
    wide = tile_shape(target, "f32").lanes if spec.narrow else columns
    padded = -(-n // columns) * columns
    return padded * d, -(-e // wide) * wide * n, padded * max(spec.rows)


def emit_attention(spec: AttentionSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel.

    Buffers: ``q``, ``k``, ``v``, [``epilogue0``...], ``out``, ``scratch`` (for each thread the sum of
    `scratch_elements`). Parameters: `params`; strides in elements, 0 repeats.
    """
    module = Module(target, KERNEL)
    shape = tile_shape(target, "f32")
    columns = shape.columns
    values = TileShape(shape.rows, 1 if spec.narrow else shape.vectors, shape.lanes)
    buffers = (*_operands(spec), "out", "scratch")
    names_list = params(spec)
    pack_keys = emit_pack(module, "pack_keys", "f32", shape, spec.row_major_keys)
    pack_values = emit_pack(module, "pack_values", "f32", values, False)
    blocks = {rows: _emit_block(module, spec, rows, shape, values) for rows in spec.rows}

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(names_list)}
    pointers = {name: f.pointer_argument(i) for i, name in enumerate(buffers)}
    m, n, d, e = (names[x] for x in "mnde")
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    panels, value_panels = f.value(f.ceildiv(n, columns)), f.value(f.ceildiv(e, values.columns))
    key_bytes = panels * (columns * _ITEM) * d
    value_bytes = value_panels * (values.columns * _ITEM) * n
    score_bytes = panels * (columns * max(spec.rows) * _ITEM)
    keys = f.at(pointers["scratch"], (key_bytes + value_bytes + score_bytes) * tid)
    packed_values = f.at(keys, key_bytes)
    scores = f.at(packed_values, value_bytes)
    # Blocks of queries differ by one row at most, so that none is much smaller than a register tile.
    count = f.value(f.ceildiv(m, max(spec.rows)))
    whole = f.value(f.maximum(count, 1))
    small, larger = m // whole, m % whole
    batches = names["batch0"]
    for i in range(1, BATCH_AXES):
        batches = batches * names[f"batch{i}"]
    begin, end = even_share(f, batches * count, tid, nthreads)
    packed = f.variable("i64", -1)

    with f.loop(begin, end) as unit:
        block, batch = unit % whole, unit // whole
        rest = batch
        index: list[Value] = []
        for i in range(BATCH_AXES - 1, -1, -1):
            index.insert(0, rest % names[f"batch{i}"])
            rest = rest // names[f"batch{i}"]

        def start(which: str, index: list[Value] = index) -> Value:
            """The first element of a batch element."""
            place = names[f"{which}_offset"]
            for i in range(BATCH_AXES):
                place = place + index[i] * names[f"{which}_stride{i}"]
            return place

        with f.if_(packed.get().equals(batch).equals(0)):
            packed.set(batch)
            source = f.at(pointers["k"], start("k") * _ITEM)
            with f.loop(0, panels) as panel:
                to = f.at(keys, panel * (columns * _ITEM) * d)
                f.call(pack_keys, [source, names["k_row"], n, 0, d, panel * columns, to])
            source = f.at(pointers["v"], start("v") * _ITEM)
            with f.loop(0, value_panels) as panel:
                to = f.at(packed_values, panel * (values.columns * _ITEM) * n)
                f.call(pack_values, [source, names["v_row"], e, 0, n, panel * values.columns, to])

        first = block * small + f.minimum(block, larger)
        last = first + small + f.select(block < larger, 1, 0)
        row = f.variable("i64", first)
        begins = {name: start(name) for name in ("q", "out", *_operands(spec)[3:])}
        for rows in spec.rows:
            with f.while_(lambda rows=rows: row.get() + rows <= last):  # type: ignore[misc]
                places: list[Int] = []
                for i, name in enumerate(begins):
                    item = 1 if i > 1 and spec.operands[i - 2][0] == "bool" else _ITEM
                    stride = names[f"{name}_row"] * item
                    places += [f.at(pointers[name], begins[name] * item + row.get() * stride), stride]
                f.call(blocks[rows], [*places, keys, packed_values, scores, n, d, e])
                row.set(row.get() + rows)
    f.ret(0)
    return finished(module, target, "attention", buffers, names_list, 0)


def _emit_block(module: Module, spec: AttentionSpec, rows: int, shape: TileShape, values: TileShape) -> Function:
    """``void block(q, q_row, out, out_row, [operand, row]..., keys, values, scores, n, d, e)``: ``rows`` queries."""
    columns = shape.columns
    extra = [(f"x{i}", f"x{i}_row") for i in range(len(spec.operands))]
    pairs = [("q", "q_row"), ("out", "out_row"), *extra]
    products = _emit_products(module, rows, shape, values)
    arguments = [x for pointer, stride in pairs for x in (("ptr", pointer), ("i64", stride))]
    arguments += [("ptr", x) for x in ("keys", "values", "scores")] + [("i64", x) for x in "nde"]
    f = module.function(f"block{rows}", "void", arguments)
    q, scores, n, d, e = (f.argument(x) for x in ("q", "scores", "n", "d", "e"))
    panels = f.value(f.ceildiv(n, columns))
    panel_bytes = rows * columns * _ITEM
    with f.loop(0, panels) as panel:
        b = f.at(f.argument("keys"), panel * (columns * _ITEM) * d)
        to = f.at(scores, panel * panel_bytes)
        f.call(products[0], [q, f.argument("q_row"), _ITEM, b, columns * _ITEM, 0, d, to, 0])

    scales = f.stack(rows * _ITEM)
    with f.loop(0, rows) as r:
        operands = [
            (f.at(f.argument(x), r * f.argument(stride)), kind) for (x, stride), kind in zip(extra, spec.operands)
        ]
        total = _emit_softmax(f, spec, f.at(scores, r * (columns * _ITEM)), n, shape, panel_bytes, operands)
        one, zero = f.constant(1.0, "float"), f.constant(0.0, "float")
        scale = f.binary("fdiv", one, total)
        scale = f.select(f.compare("oeq", total, zero), zero, scale)  # no keys at all: a sum of nothing
        f.store(scale, f.at(scales, r * _ITEM), _ITEM)

    wide = values.columns
    vector = f"<{values.lanes} x float>"
    sums = f.stack(rows * wide * _ITEM)
    with f.loop(0, f.value(f.ceildiv(e, wide))) as part:
        source = f.at(f.argument("values"), part * (wide * _ITEM) * n)
        with f.loop(0, f.value(f.maximum(panels, 1))) as panel:
            steps = f.value(f.maximum(0, f.minimum(columns, n - panel * columns)))
            a, b = f.at(scores, panel * panel_bytes), f.at(source, panel * (columns * wide * _ITEM))
            f.call(products[1], [a, columns * _ITEM, _ITEM, b, wide * _ITEM, 0, steps, sums, panel > 0])
        with f.loop(0, rows) as r:
            scale = f.splat(f.load("float", f.at(scales, r * _ITEM), _ITEM), values.lanes)
            for v in range(values.vectors):
                column = part * wide + v * values.lanes
                left = f.value(f.maximum(0, f.minimum(values.lanes, e - column)))
                held = f.load(vector, f.at(sums, r * (wide * _ITEM) + v * values.lanes * _ITEM), values.lanes * _ITEM)
                to = f.at(f.argument("out"), r * f.argument("out_row") + column * _ITEM)
                store_lanes(f, f.binary("fmul", held, scale), to, left, _ITEM)
    f.ret()
    return f


def _emit_products(module: Module, rows: int, shape: TileShape, values: TileShape) -> tuple[Function, Function]:
    """The products of a block: with keys, with values; one function when their tiles are of one shape."""

    def tile(name: str, of: TileShape) -> Function:
        own = TileShape(rows, of.vectors, of.lanes)
        return emit_accumulate(module, name, own, own.columns, "f32", ((0, 0),), packed_rows=False)

    scores = tile(f"scores{rows}", shape)
    return scores, scores if values.vectors == shape.vectors else tile(f"mixed{rows}", values)


def _emit_softmax(
    f: Function,
    spec: AttentionSpec,
    row: Value,
    n: Value,
    shape: TileShape,
    panel_bytes: int,
    operands: list[tuple[Value, tuple[str, str]]],
) -> Value:
    """Turns a row of scores into exponentials and returns their sum."""
    lanes, columns = shape.lanes, shape.columns
    vector = f"<{lanes} x float>"
    lowest = f.constant(float("-inf"), vector)
    top = f.variable(vector, lowest)
    total = f.variable(vector, f.constant(0.0, vector))
    full = n // columns

    def scored(place: Value, column: Value, left: Value | None) -> None:
        def operand(i: int) -> Value:
            pointer, (kind, form) = operands[i]
            item, element = (1, "i8") if kind == "bool" else (_ITEM, "float")
            if form == "scalar":
                held = f.splat(f.load(element, pointer, item), lanes)
            elif left is None:
                held = f.load(f"<{lanes} x {element}>", f.at(pointer, column * item), item)
            else:
                held = load_lanes(f, f"<{lanes} x {element}>", f.at(pointer, column * item), left, item)
            if kind == "bool":
                return f.emit(f"<{lanes} x i1>", f"icmp ne {held.type} {held.ref}, zeroinitializer")
            return held

        context = EpilogueContext(f, "f32", lanes, vector, operand)
        value = VectorWriter(context, {"sum": f.load(vector, place, lanes * _ITEM)}).write(spec.expression)
        if left is not None:
            value = f.select(f.lanes_below(left, lanes), value, lowest)
        f.store(value, place, lanes * _ITEM)
        now = top.get()
        top.set(f.select(f.compare("ogt", value, now), value, now))

    def summed(place: Value, column: Value, left: Value | None) -> None:
        value = f.load(vector, place, lanes * _ITEM)
        value = exp_of_difference(f, f.binary("fsub", value, largest))
        f.store(value, place, lanes * _ITEM)
        total.set(f.binary("fadd", total.get(), value))

    def over_row(body: Callable[[Value, Value, Value | None], None]) -> None:
        with f.loop(0, full) as panel:
            for v in range(shape.vectors):
                body(f.at(row, panel * panel_bytes + v * lanes * _ITEM), panel * columns + v * lanes, None)
        with f.if_(full * columns < n):
            for v in range(shape.vectors):
                column = full * columns + v * lanes
                left = f.value(f.maximum(0, f.minimum(lanes, n - column)))
                body(f.at(row, full * panel_bytes + v * lanes * _ITEM), column, left)

    over_row(scored)
    largest = f.splat(_folded(f, top.get(), lanes, lambda a, b: f.select(f.compare("ogt", a, b), a, b)), lanes)
    over_row(summed)
    return _folded(f, total.get(), lanes, lambda a, b: f.binary("fadd", a, b))


def _folded(f: Function, vector: Value, lanes: int, combine: Callable[[Value, Value], Value]) -> Value:
    """Combines all lanes, halves first."""
    while lanes > 1:
        lanes //= 2
        vector = combine(f.shuffle(vector, vector, range(lanes)), f.shuffle(vector, vector, range(lanes, 2 * lanes)))
    return f.emit("float", f"extractelement {vector.type} {vector.ref}, i64 0")
