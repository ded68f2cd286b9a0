"""A register tile that finishes its own results: sums, bias, epilogue and store without a buffer in between.

Where sums are short (few channels, few features) the way of a tile through its buffer costs as much as the sums. This
is for whole tiles and light epilogues; edges, long epilogues and sums in several parts go through the buffer
(:mod:`~dhc.backends.cpu.contract.tile`). Results are the same bit for bit.
"""

from __future__ import annotations

from dhc.backends.cpu.contract.epilogue import Epilogue, EpilogueContext
from dhc.backends.cpu.contract.tile import ResultWriter, TileShape
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module
from dhc.backends.cpu.target import CpuTarget

_LIGHT = 12  # instructions of an epilogue for a vector: more of them, for each vector of a tile, would be long code


def is_light(epilogue: Epilogue, target: CpuTarget, dtype: str) -> bool:
    """Whether an epilogue has so few instructions that they may stand once for each vector of a tile."""
    vector = f"<{target.lanes(dtype)} x {ELEMENT[dtype]}>"
    f = Function(Module(target, "trial"), "trial", "void", (("ptr", "x"),), True)

    def operand(index: int) -> object:
        return f.load(vector, f.argument("x"), ITEM_BYTES[dtype])

    held = f.load(vector, f.argument("x"), ITEM_BYTES[dtype])
    epilogue.emit(EpilogueContext(f, dtype, target.lanes(dtype), vector, operand), held)  # type: ignore[arg-type]
    return f.text().count("\n") <= _LIGHT


def emit_finished_tile(
    module: Module,
    name: str,
    shape: TileShape,
    dtype: str,
    epilogue: Epilogue,
    *,
    bias: str,
    bias_buffer: int,
    first_operand: int,
    out_buffer: int,
) -> Function:
    """Writes ``void tile(buffers, a, row_stride, step_stride, b, b_stride, steps, place, out_stride, row, column)``.

    Row ``r`` of the results, whole vectors from element ``place + r * out_stride`` of the output on, is
    ``epilogue(sum over steps s of a(r, s) * b[s * b_stride + j] + bias)`` in the order of s.

    Args:
        module: receives the function.
        name: its name.
        shape: rows and vectors of the tile.
        dtype: element type.
        epilogue: applied to each vector.
        bias: ``none``, ``row`` or ``column``.
        bias_buffer: index of the bias in the kernel's buffers.
        first_operand: index of the epilogue's first operand.
        out_buffer: index of the output.
    """
    item, lanes, element = ITEM_BYTES[dtype], shape.lanes, ELEMENT[dtype]
    vector = f"<{lanes} x {element}>"
    f = module.function(
        name,
        "void",
        (
            *(("ptr", "buffers"), ("ptr", "a"), ("i64", "row_stride"), ("i64", "step_stride"), ("ptr", "b")),
            *(("i64", "b_stride"), ("i64", "steps"), ("i64", "place"), ("i64", "out_stride"), ("i64", "row")),
            ("i64", "column"),
        ),
    )
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(shape.vectors)] for _ in range(shape.rows)]
    row_stride = f.argument("row_stride")
    double_stride = row_stride * 2
    # A pointer for every third row: address modes reach the two next rows as base + stride and base + 2 stride.
    bases = [f.variable("ptr", f.at(f.argument("a"), row_stride * r)) for r in range(0, shape.rows, 3)]
    b = f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        a_now, b_now = [base.get() for base in bases], b.get()
        columns = [f.load(vector, f.at(b_now, v * lanes * item), item) for v in range(shape.vectors)]
        for r in range(shape.rows):
            at = f.at(a_now[r // 3], (0, row_stride, double_stride)[r % 3])
            scalar = f.splat(f.load(element, at, item), lanes)
            for v in range(shape.vectors):
                sums[r][v].set(f.fma(scalar, columns[v], sums[r][v].get()))
        for base, pointer in zip(bases, a_now, strict=True):
            base.set(f.at(pointer, f.argument("step_stride")))
        b.set(f.at(b_now, f.argument("b_stride")))

    writer = ResultWriter(
        f,
        dtype,
        lanes,
        epilogue,
        bias=bias,
        bias_buffer=bias_buffer,
        first_operand=first_operand,
        out_buffer=out_buffer,
    )
    for r in range(shape.rows):
        writer.begin_row(f.argument("row") + r)
        start = f.argument("place") + f.argument("out_stride") * r
        for v in range(shape.vectors):
            writer.write(sums[r][v].get(), start + v * lanes, f.argument("column") + v * lanes, None)
    f.ret()
    return f
