"""Register tiles that finish their sums themselves: bias, epilogue and store straight from the registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.tile import ResultWriter, TileShape
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value, Variable

# Epilogues of more instructions are written once, in the function that stores runs, not for each vector of a tile.
_MOST_INSTRUCTIONS = 26


def is_short(module: Module, dtype: str, lanes: int, epilogue: Epilogue) -> bool:
    """Whether an epilogue is small enough to be repeated for every vector of a tile."""
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    probe = Function(Module(module.target, "probe"), "probe", "void", (("ptr", "at"),), True)

    def operand(_: int) -> Value:
        return Value(probe, vector, "zeroinitializer")

    epilogue.emit(EpilogueContext(probe, dtype, lanes, vector, operand), operand(0))
    return len(probe.text().splitlines()) - 3 <= _MOST_INSTRUCTIONS


class FusedTile:
    """What comes before and after the sums of a register tile whose rows are output channels.

    The function has the arguments ``buffers``, ``sums`` (memory for a tile), ``place`` (element of the output of the
    first result), ``row_stride`` (elements to the next row's), ``row`` (index of the first row) and ``count`` (columns
    to store) besides its own.

    Args:
        f: the function.
        shape: rows and vectors of the tile.
        dtype: element type.
        epilogue: applied to each vector.
        store: as ``tile.emit_store`` writes it, for tiles that are not full and for long epilogues; its pitch is the
            tile's number of columns.
        bias: whether a vector over rows is added, buffer 2 of the kernel.
        out_buffer: index of the output in the kernel's buffers; the epilogue's operands lie before it.
    """

    ARGUMENTS = (
        ("ptr", "buffers"),
        ("ptr", "sums"),
        ("i64", "place"),
        ("i64", "row_stride"),
        ("i64", "row"),
        ("i64", "count"),
    )

    def __init__(
        self, f: Function, shape: TileShape, dtype: str, epilogue: Epilogue, store: Function, *, bias: bool,
        out_buffer: int,
    ) -> None:  # fmt: skip
        self._f, self._shape, self._dtype, self._epilogue, self._store = f, shape, dtype, epilogue, store
        self._bias, self._out_buffer, self._item = bias, out_buffer, ITEM_BYTES[dtype]

    def prefetch(self) -> None:
        """Asks for what the tile is going to write and read besides: the sums take long enough to hide the way."""
        f, operands = self._f, self._epilogue.operands()
        same = [self._out_buffer - len(operands) + i for i, operand in enumerate(operands) if operand == "same"]
        for index in (self._out_buffer, *same):
            base = f.at(f.pointer_argument(index), f.argument("place") * self._item)
            for r in range(self._shape.rows):
                line = f.at(base, f.argument("row_stride") * (r * self._item))
                for offset in range(0, self._shape.columns * self._item, 64):
                    f.prefetch(f.at(line, offset))

    def finish(self, sums: Sequence[Sequence[Variable]]) -> None:
        """Stores the sums and ends the function."""
        f, shape, lanes = self._f, self._shape, self._shape.lanes
        place, row_stride, count = f.argument("place"), f.argument("row_stride"), f.argument("count")

        def direct() -> None:
            writer = ResultWriter(
                f, self._dtype, lanes, self._epilogue, bias="row" if self._bias else "none", bias_buffer=2,
                first_operand=self._out_buffer - len(self._epilogue.operands()), out_buffer=self._out_buffer,
            )  # fmt: skip
            for r in range(shape.rows):
                writer.begin_row(f.argument("row") + r)
                for v in range(shape.vectors):
                    writer.write(sums[r][v].get(), place + row_stride * r + v * lanes, f.const(0), None)

        def by_runs() -> None:
            held = f.argument("sums")
            for r in range(shape.rows):
                for v in range(shape.vectors):
                    at = f.at(held, (r * shape.columns + v * lanes) * self._item)
                    f.store(sums[r][v].get(), at, lanes * self._item)
            width: Int = f.minimum(count, shape.columns)
            arguments: list[Int] = [f.argument("buffers"), held, shape.rows, width, place, row_stride]
            f.call(self._store, [*arguments, f.argument("row"), 0])

        if is_short(f.module, self._dtype, lanes, self._epilogue):
            f.if_else(count >= shape.columns, direct, by_runs)
        else:
            by_runs()
        f.ret()


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
    factors: Factors | None = None,
) -> Function:
    """Writes ``void tile(a, b, b_stride, steps, ...)`` with the arguments of :class:`FusedTile` behind.

    Row ``r``, column ``j``: the sum over steps ``s`` of ``a[s * rows + r] * b[s * b_stride + j]``. Whole vectors of
    ``b`` are read whatever ``count`` is. ``factors``: how both lie in memory when it is not as ``dtype``.
    """
    factors = factors or Factors(dtype, shape.lanes)
    lanes, vector = shape.lanes, factors.vector
    own = (("ptr", "a"), ("ptr", "b"), ("i64", "b_stride"), ("i64", "steps"))
    f = module.function(name, "void", own + FusedTile.ARGUMENTS)
    fused = FusedTile(f, shape, dtype, epilogue, store, bias=bias, out_buffer=out_buffer)
    fused.prefetch()
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(shape.vectors)] for _ in range(shape.rows)]
    a, b = f.variable("ptr", f.argument("a")), f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        a_now, b_now = a.get(), b.get()
        columns = [factors.column(f, f.at(b_now, v * lanes * factors.column_bytes)) for v in range(shape.vectors)]
        for r in range(shape.rows):
            row = factors.row(f, f.at(a_now, r * factors.row_bytes))
            for v in range(shape.vectors):
                sums[r][v].set(factors.multiply_add(f, row, columns[v], sums[r][v].get()))
        a.set(f.at(a_now, shape.rows * factors.row_bytes))
        b.set(f.at(b_now, f.argument("b_stride")))
    fused.finish(sums)
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
