"""Copies of a matrix as panels: as many columns as a register tile has, one row of the panel after the other."""

from __future__ import annotations

from dhc.backends.cpu.contract.factors import load_widened
from dhc.backends.cpu.contract.tile import TileShape, load_lanes
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value


def transpose_block(f: Function, rows: list[Value], lanes: int) -> list[Value]:
    """Transposes ``lanes`` vectors of ``lanes`` elements in registers, in log2(lanes) rounds of shuffles."""
    distance = lanes // 2
    # Each round exchanges the off-diagonal halves of blocks of 2 * distance.
    while distance:
        result: list[Value | None] = [None] * lanes
        for i in range(lanes):
            if i & distance:
                continue
            low, high = rows[i], rows[i + distance]
            first = [j if not j & distance else lanes + (j - distance) for j in range(lanes)]
            second = [j + distance if not j & distance else lanes + j for j in range(lanes)]
            result[i] = f.shuffle(low, high, first)
            result[i + distance] = f.shuffle(low, high, second)
        rows = [row for row in result if row is not None]
        distance //= 2
    return rows


def emit_pack(module: Module, name: str, dtype: str, shape: TileShape, transposed: bool) -> Function:
    """Writes ``void pack(b, row, n, first_step, steps, first_column, to)``: one panel of ``steps`` steps.

    What fills up the last panel is zero, or copies of the last column where ``b`` is turned.

    Args:
        module: receives the function.
        name: its name.
        dtype: element type.
        shape: the register tile, whose columns a panel has.
        transposed: ``b`` is stored ``[n, k]``, else ``[k, n]``; ``row`` elements from one stored row to the next.
    """
    item, lanes, element = ITEM_BYTES[dtype], shape.lanes, ELEMENT[dtype]
    vector, columns = f"<{lanes} x {element}>", shape.columns
    f = module.function(
        name,
        "void",
        (
            ("ptr", "b"),
            ("i64", "row"),
            ("i64", "n"),
            ("i64", "first_step"),
            ("i64", "steps"),
            ("i64", "first_column"),
            ("ptr", "to"),
        ),
    )
    b, stride, n, first, steps, column, to = (f.argument(name) for _, name in f.arguments)
    width = f.value(f.minimum(columns, n - column))
    if not transposed:
        source = f.at(b, (first * stride + column) * item)

        def whole() -> None:
            with f.loop(0, steps) as s:
                for v in range(shape.vectors):
                    value = f.load(vector, f.at(f.at(source, s * stride * item), v * lanes * item), item)
                    f.store(value, f.at(f.at(to, s * (columns * item)), v * lanes * item), lanes * item)

        def edge() -> None:
            with f.loop(0, steps) as s:
                for v in range(shape.vectors):
                    left = f.value(f.maximum(0, f.minimum(lanes, width - v * lanes)))
                    value = load_lanes(f, vector, f.at(f.at(source, s * stride * item), v * lanes * item), left, item)
                    f.store(value, f.at(f.at(to, s * (columns * item)), v * lanes * item), lanes * item)

        f.if_else(width.equals(columns), whole, edge)
        f.ret()
        return f

    source = f.at(b, (column * stride + first) * item)

    # Columns beyond the last repeat it: nobody reads their sums, and blocks need no other code.
    rows = [stride * f.value(f.minimum(j, width - 1)) for j in range(columns)]
    bulk = (steps // lanes) * lanes
    for group in range(0, columns, lanes):
        with f.loop(0, bulk, lanes) as s:
            block = [f.load(vector, f.at(source, (row + s) * item), item) for row in rows[group : group + lanes]]
            for i, turned in enumerate(transpose_block(f, block, lanes)):
                f.store(turned, f.at(to, ((s + i) * columns + group) * item), lanes * item)
    with f.loop(bulk, steps) as s:
        for j, row in enumerate(rows):
            value = f.load(element, f.at(source, (row + s) * item), item)
            f.store(value, f.at(to, (s * columns + j) * item), item)
    f.ret()
    return f


def emit_widen(module: Module, name: str, storage: str, shape: TileShape) -> Function:
    """Writes ``void widen(from, vectors, to)``: so many vectors stored in bf16 or f16 become f32."""
    vector = f"<{shape.lanes} x float>"
    f = module.function(name, "void", (("ptr", "from"), ("i64", "vectors"), ("ptr", "to")))
    with f.loop(0, f.argument("vectors")) as i:
        value = load_widened(f, storage, vector, f.at(f.argument("from"), i * (shape.lanes * 2)), 4)
        f.store(value, f.at(f.argument("to"), i * (shape.lanes * 4)), shape.lanes * 4)
    f.ret()
    return f


def emit_copy_rows(module: Module, name: str, dtype: str, lanes: int) -> Function:
    """Writes ``void copy(from, from_stride, count, rows, to, to_stride)``: rows of whole vectors."""
    item, vector = ITEM_BYTES[dtype], f"<{lanes} x {ELEMENT[dtype]}>"
    f = module.function(
        name,
        "void",
        (
            *(("ptr", "from"), ("i64", "from_stride"), ("i64", "count"), ("i64", "rows"), ("ptr", "to")),
            ("i64", "to_stride"),
        ),
    )
    with f.loop(0, f.argument("rows")) as r:
        source, target = (f.at(f.argument(x), r * f.argument(f"{x}_stride")) for x in ("from", "to"))
        with f.loop(0, f.argument("count") * item, lanes * item) as byte:
            f.store(f.load(vector, f.at(source, byte), item), f.at(target, byte), item)
    f.ret()
    return f
