"""Register tiles that finish their sums themselves: bias, epilogue and store straight from the registers."""

from __future__ import annotations

from collections.abc import Callable

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.contract.tile import ResultWriter, TileShape
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value

# Epilogues of more instructions are written once, in the function that stores runs, not for each vector of a tile.
_MOST_INSTRUCTIONS = 12


def is_short(module: Module, dtype: str, lanes: int, epilogue: Epilogue) -> bool:
    """Whether an epilogue is small enough to be repeated for every vector of a tile."""
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    probe = Function(Module(module.target, "probe"), "probe", "void", (("ptr", "at"),), True)

    def operand(_: int) -> Value:
        return Value(probe, vector, "zeroinitializer")

    epilogue.emit(EpilogueContext(probe, dtype, lanes, vector, operand), operand(0))
    return len(probe.text().splitlines()) - 3 <= _MOST_INSTRUCTIONS


def emit_fused_tile(
    module: Module,
    name: str,
    shape: TileShape,
    dtype: str,
    epilogue: Epilogue,
    store: Function,
    *,
    bias: bool,
    out_buffer: int,
) -> Function:
    """Writes ``void tile(buffers, a, b, b_stride, steps, sums, place, row_stride, row, count)``.

    Output elements ``place + r * row_stride + j`` for ``j < count`` become the epilogue of the sum over steps ``s`` of
    ``a[s * rows + r] * b[s * b_stride + j]``. Whole vectors of ``b`` are read whatever ``count`` is.

    Args:
        module: receives the function.
        name: its name.
        shape: rows and vectors of the tile.
        dtype: element type.
        epilogue: applied to each vector.
        store: as ``tile.emit_store`` writes it, for tiles that are not full and for long epilogues; its pitch is the
            tile's number of columns.
        bias: whether a vector over rows is added, buffer 2 of the kernel.
        out_buffer: index of the output in the kernel's buffers; the epilogue's operands lie before it.
    """
    item, lanes, element = ITEM_BYTES[dtype], shape.lanes, ELEMENT[dtype]
    vector = f"<{lanes} x {element}>"
    arguments = ("ptr buffers", "ptr a", "ptr b", "i64 b_stride", "i64 steps", "ptr sums", "i64 place")
    arguments += ("i64 row_stride", "i64 row", "i64 count")
    f = module.function(name, "void", tuple((a.split()[0], a.split()[1]) for a in arguments))
    operands = epilogue.operands()
    place, row_stride, count = f.argument("place"), f.argument("row_stride"), f.argument("count")
    # What the tile is going to write and read besides: the sums take long enough to hide the way to memory.
    same = [out_buffer - len(operands) + i for i, operand in enumerate(operands) if operand == "same"]
    for index in (out_buffer, *same):
        base = f.at(f.pointer_argument(index), place * item)
        for r in range(shape.rows):
            line = f.at(base, row_stride * (r * item))
            for offset in range(0, shape.columns * item, 64):
                f.prefetch(f.at(line, offset))
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(shape.vectors)] for _ in range(shape.rows)]
    a, b = f.variable("ptr", f.argument("a")), f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        a_now, b_now = a.get(), b.get()
        columns = [f.load(vector, f.at(b_now, v * lanes * item), item) for v in range(shape.vectors)]
        for r in range(shape.rows):
            scalar = f.splat(f.load(element, f.at(a_now, r * item), item), lanes)
            for v in range(shape.vectors):
                sums[r][v].set(f.fma(scalar, columns[v], sums[r][v].get()))
        a.set(f.at(a_now, shape.rows * item))
        b.set(f.at(b_now, f.argument("b_stride")))

    def direct() -> None:
        writer = ResultWriter(
            f, dtype, lanes, epilogue, bias="row" if bias else "none", bias_buffer=2,
            first_operand=out_buffer - len(operands), out_buffer=out_buffer,
        )  # fmt: skip
        for r in range(shape.rows):
            writer.begin_row(f.argument("row") + r)
            for v in range(shape.vectors):
                writer.write(sums[r][v].get(), place + row_stride * r + v * lanes, f.const(0), None)

    def by_runs() -> None:
        held = f.argument("sums")
        for r in range(shape.rows):
            for v in range(shape.vectors):
                f.store(sums[r][v].get(), f.at(held, (r * shape.columns + v * lanes) * item), lanes * item)
        width: Int = f.minimum(count, shape.columns)
        f.call(store, [f.argument("buffers"), held, shape.rows, width, place, row_stride, f.argument("row"), 0])

    if is_short(module, dtype, lanes, epilogue):
        f.if_else(count >= shape.columns, direct, by_runs)
    else:
        by_runs()
    f.ret()
    return f


def emit_copy_panel(module: Module, name: str, dtype: str, shape: TileShape, load: Callable[..., Value]) -> Function:
    """Writes ``void copy(from, from_stride, steps, count, to)``: rows of ``count`` columns become rows of a panel.

    Row ``s`` of the panel, as many columns as a tile has, holds the first ``count`` elements at
    ``from + s * from_stride`` bytes, then zeros.
    """
    item, lanes = ITEM_BYTES[dtype], shape.lanes
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    f = module.function(
        name, "void", (("ptr", "from"), ("i64", "from_stride"), ("i64", "steps"), ("i64", "count"), ("ptr", "to"))
    )
    source, count, to = f.argument("from"), f.argument("count"), f.argument("to")

    def rows(whole: bool) -> None:
        with f.loop(0, f.argument("steps")) as s:
            row, target = f.at(source, s * f.argument("from_stride")), f.at(to, s * (shape.columns * item))
            for v in range(shape.vectors):
                at = f.at(row, v * lanes * item)
                if whole:
                    value = f.load(vector, at, item)
                else:
                    left = f.value(f.maximum(0, f.minimum(lanes, count - v * lanes)))
                    value = load(f, vector, at, left, item)
                f.store(value, f.at(target, v * lanes * item), lanes * item)

    f.if_else(count >= shape.columns, lambda: rows(True), lambda: rows(False))
    f.ret()
    return f
