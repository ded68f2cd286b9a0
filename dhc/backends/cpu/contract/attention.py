"""Attention in one kernel: a block of scores, its softmax, and the product with the values, never the whole matrix.

For each batch element (one head of one sequence) keys and values are copied once into panels. Then a block of a few
queries at a time: their scores go panel by panel into a buffer that stays in the first- or second-level cache; each
row is scaled, masked, and turned into exponentials of differences to its largest; the product with the values follows
from the same buffer, and the sums of exponentials divide the result. Queries are read and results written in place with
any strides, so the transposes around an attention cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from dhc.backends.cpu.contract.attention_softmax import emit_short_softmax, emit_softmax, rows_in_registers
from dhc.backends.cpu.contract.packing import emit_pack
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import (
    TileShape,
    emit_accumulate,
    even_share,
    row_tiles,
    store_lanes,
    tile_shape,
)
from dhc.backends.cpu.llvm.builder import Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import scalar as s

BATCH_AXES = 4
_ITEM = 4
_BLOCKS_IN_PLACE = 8


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
        keys: their number where it is known, else 0; a row of few keys stays in registers.
    """

    rows: tuple[int, ...]
    row_major_keys: bool
    narrow: bool
    expression: s.ScalarExpr
    operands: tuple[tuple[str, str], ...] = ()
    keys: int = 0


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
    # A copy of the values pays where enough blocks read it; vectors that go beyond the features need one.
    in_place = (e % values.columns).equals(0) & (whole <= _BLOCKS_IN_PLACE)
    value_row = f.select(in_place, names["v_row"], values.columns) * _ITEM
    value_part = f.select(in_place, 1, n) * (values.columns * _ITEM)

    with f.loop(begin, end) as unit:
        block, batch = unit % whole, unit // whole

        def place_of(batch: Value) -> dict[str, Value]:
            """The first elements of a batch element."""
            index: list[Value] = []
            for i in range(BATCH_AXES - 1, -1, -1):
                index.insert(0, batch % names[f"batch{i}"])
                batch = batch // names[f"batch{i}"]
            found = {}
            for which in (*_operands(spec), "out"):
                place = names[f"{which}_offset"]
                for i in range(BATCH_AXES):
                    place = place + index[i] * names[f"{which}_stride{i}"]
                found[which] = place
            return found

        start = place_of(batch)
        _prefetch_share(f, spec, names, pointers, place_of(f.value(f.minimum(batch + 1, batches - 1))), block, whole)
        with f.if_(packed.get().equals(batch).equals(0)):
            packed.set(batch)
            source = f.at(pointers["k"], start["k"] * _ITEM)
            with f.loop(0, panels) as panel:
                to = f.at(keys, panel * (columns * _ITEM) * d)
                f.call(pack_keys, [source, names["k_row"], n, 0, d, panel * columns, to])
            with f.if_(in_place.equals(0)):
                source = f.at(pointers["v"], start["v"] * _ITEM)
                with f.loop(0, value_panels) as panel:
                    to = f.at(packed_values, panel * (values.columns * _ITEM) * n)
                    f.call(pack_values, [source, names["v_row"], e, 0, n, panel * values.columns, to])

        first = block * small + f.minimum(block, larger)
        last = first + small + f.select(block < larger, 1, 0)
        row = f.variable("i64", first)
        begins = {name: start[name] for name in ("q", "out", *_operands(spec)[3:])}
        read = f.select(in_place, f.at(pointers["v"], start["v"] * _ITEM), packed_values)
        for rows in spec.rows:
            with f.while_(lambda rows=rows: row.get() + rows <= last):  # type: ignore[misc]
                places: list[Int] = []
                for i, name in enumerate(begins):
                    item = 1 if i > 1 and spec.operands[i - 2][0] == "bool" else _ITEM
                    stride = names[f"{name}_row"] * item
                    places += [f.at(pointers[name], begins[name] * item + row.get() * stride), stride]
                f.call(blocks[rows], [*places, keys, read, value_row, value_part, scores, n, d, e])
                row.set(row.get() + rows)
    f.ret(0)
    return finished(module, target, "attention", buffers, names_list, 0)


def _prefetch_share(
    f: Function,
    spec: AttentionSpec,
    names: dict[str, Value],
    pointers: dict[str, Value],
    places: dict[str, Value],
    block: Value,
    blocks: Value,
) -> None:
    """Brings near what the next batch element reads and writes, a share with each block of this one.

    Heads lie side by side in rows, so that a head is a short piece of many rows, far apart: processors do not see them
    coming by themselves.
    """
    m, n, d, e = (names[x] for x in "mnde")
    for which, count, width in (("q", m, d), ("k", n, d), ("v", n, e), ("out", m, e)):
        if which == "k" and not spec.row_major_keys:
            continue
        source = f.at(pointers[which], places[which] * _ITEM)
        with f.loop(block * count // blocks, (block + 1) * count // blocks) as i:
            row = f.at(source, i * names[f"{which}_row"] * _ITEM)
            with f.loop(0, width * _ITEM, 64) as byte:
                f.prefetch(f.at(row, byte), 2)


def _emit_block(module: Module, spec: AttentionSpec, rows: int, shape: TileShape, values: TileShape) -> Function:
    """Writes the function of ``rows`` queries.

    ``void block(q, q_row, out, out_row, [operand, row]..., keys, values, value_row, value_part, scores, n, d, e)``
    """
    columns = shape.columns
    extra = [(f"x{i}", f"x{i}_row") for i in range(len(spec.operands))]
    pairs = [("q", "q_row"), ("out", "out_row"), *extra]
    products = _emit_products(module, rows, shape, values)
    arguments = [x for pointer, stride in pairs for x in (("ptr", pointer), ("i64", stride))]
    arguments += [("ptr", "keys"), ("ptr", "values"), ("i64", "value_row"), ("i64", "value_part"), ("ptr", "scores")]
    arguments += [("i64", x) for x in "nde"]
    f = module.function(f"block{rows}", "void", arguments)
    q, scores, n, d, e = (f.argument(x) for x in ("q", "scores", "n", "d", "e"))
    panels = f.value(f.ceildiv(n, columns))
    panel_bytes = rows * columns * _ITEM
    with f.loop(0, panels) as panel:
        b = f.at(f.argument("keys"), panel * (columns * _ITEM) * d)
        to = f.at(scores, panel * panel_bytes)
        f.call(products[0], [q, f.argument("q_row"), _ITEM, b, columns * _ITEM, 0, d, to, 0])

    scales = f.stack(rows * _ITEM)

    def weigh(first: Int, count: int) -> None:
        """Softmax without its division of ``count`` rows; what divides them goes to ``scales``."""
        indices = [f.value(first + i) for i in range(count)]
        places = [f.at(scores, r * (columns * _ITEM)) for r in indices]
        operands = [
            [(f.at(f.argument(x), r * f.argument(stride)), kind) for (x, stride), kind in zip(extra, spec.operands)]
            for r in indices
        ]
        for r, total in zip(indices, softmax(f, spec, places, n, shape, panel_bytes, operands), strict=True):
            one, zero = f.constant(1.0, "float"), f.constant(0.0, "float")
            scale = f.binary("fdiv", one, total)
            scale = f.select(f.compare("oeq", total, zero), zero, scale)  # no keys at all: a sum of nothing
            f.store(scale, f.at(scales, r * _ITEM), _ITEM)

    at_once = rows_in_registers(module.target, spec.keys)
    softmax = emit_short_softmax if at_once else emit_softmax
    at_once = max(at_once, 1)
    even = rows // at_once * at_once
    with f.loop(0, even, at_once) as r:
        weigh(r, at_once)
    if even < rows:
        weigh(even, rows - even)

    wide = values.columns
    vector = f"<{values.lanes} x float>"
    sums = f.stack(rows * wide * _ITEM)
    with f.loop(0, f.value(f.ceildiv(e, wide))) as part:
        source = f.at(f.argument("values"), part * f.argument("value_part"))
        with f.loop(0, f.value(f.maximum(panels, 1))) as panel:
            steps = f.value(f.maximum(0, f.minimum(columns, n - panel * columns)))
            value_row = f.argument("value_row")
            a, b = f.at(scores, panel * panel_bytes), f.at(source, panel * columns * value_row)
            f.call(products[1], [a, columns * _ITEM, _ITEM, b, value_row, 0, steps, sums, panel > 0])
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
