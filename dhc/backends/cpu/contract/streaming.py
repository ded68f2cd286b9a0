"""Products of a few rows with a constant matrix: classifiers, steps of recurrent layers, first layers of generators.

Every weight is used once for each row, so that memory decides. The matrix lies in blocks of columns in the order of
their use, one stream, and is asked for some pages ahead: hardware prefetchers stop at every page. All rows of a block
are summed at once, and each thread has columns of its own. Each result is one sum in the order of k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.matmul import PARAMS
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, MatmulSpec, buffer_names, finished
from dhc.backends.cpu.contract.tile import ResultWriter, TileShape, even_share
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.ir.symbols import Dim

if TYPE_CHECKING:
    import numpy as np

MOST_ROWS = 4
_VECTORS = 4  # of a block of columns: as many sums for each row
_LINE = 64
_AHEAD = 16384  # bytes, four pages


def streamed_rows(rows: Dim, target: CpuTarget) -> int:
    """``streamed`` of a spec for a number of rows: 0 where it is not known or not few."""
    most = MOST_ROWS if target.vector_registers >= 32 else MOST_ROWS // 2
    return rows if isinstance(rows, int) and 1 <= rows <= most else 0


def _widths() -> tuple[int, ...]:
    """Vectors of whole blocks, then of the blocks that fill up the rest: halves of each other."""
    return tuple(_VECTORS >> i for i in range(_VECTORS.bit_length()))


def pack_streamed(spec: MatmulSpec, target: CpuTarget, b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lays out a constant ``b`` ``[k, n]`` (``[n, k]`` with ``transpose_b``) block by block, ``[k, columns]`` each.

    Columns are filled up with zeros to whole vectors; the last blocks are narrower.
    """
    import numpy as np

    matrix = b.T if spec.transpose_b else b
    k, n = matrix.shape
    lanes = target.lanes(spec.dtype)
    padded = np.zeros((k, -(-n // lanes) * lanes), matrix.dtype)
    padded[:, :n] = matrix
    packed = np.empty(padded.size, matrix.dtype)
    first = 0
    for vectors in _widths():
        width = vectors * lanes
        while first + width <= padded.shape[1]:
            packed[first * k : (first + width) * k].reshape(k, width)[...] = padded[:, first : first + width]
            first += width
    return packed


def emit_streamed(spec: MatmulSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel; buffers and parameters are those of :func:`~dhc.backends.cpu.contract.matmul.emit_matmul`.

    There is one matrix ``b``, so that the batch counts as rows: its sizes are 1. There is no scratch memory.
    """
    module = Module(target, KERNEL)
    item, lanes = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype)
    buffers = buffer_names("a", "b", spec.bias != "none", spec.epilogue, scratch=False)
    blocks = {vectors: _emit_block(module, spec, vectors, lanes, buffers.index("out")) for vectors in _widths()}

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    m, n, k = names["m"], names["n"], names["k"]
    a, b = f.pointer_argument(0), f.pointer_argument(1)
    row_stride, step_stride = (f.const(item), m * item) if spec.transpose_a else (k * item, f.const(item))
    total = f.value(f.ceildiv(n, lanes))

    def run(vectors: int, first: Value) -> None:
        at = f.at(b, first * k * (lanes * item))
        f.call(blocks[vectors], [f.argument("buffers"), a, row_stride, step_stride, at, k, n, first * lanes])

    begin, end = even_share(f, total // _VECTORS, f.argument("tid"), f.argument("nthreads"))
    with f.loop(begin, end) as index:
        run(_VECTORS, index * _VECTORS)
    # The share of the first thread is never the largest: it has the rest.
    with f.if_(f.argument("tid").equals(0)):
        first = f.variable("i64", total // _VECTORS * _VECTORS)
        for vectors in _widths()[1:]:
            with f.if_((total & vectors) > 0):
                run(vectors, first.get())
                first.set(first.get() + vectors)
    f.ret(0)
    return finished(module, target, "matmul_streamed", buffers, PARAMS, 0)


def _emit_block(module: Module, spec: MatmulSpec, vectors: int, lanes: int, out_at: int) -> Function:
    """``void block(buffers, a, row_stride, step_stride, b, steps, n, column)``: all rows of some columns."""
    item, element, rows = ITEM_BYTES[spec.dtype], ELEMENT[spec.dtype], spec.streamed
    vector, shape = f"<{lanes} x {element}>", TileShape(rows, vectors, lanes)
    arguments = ("ptr buffers", "ptr a", "i64 row_stride", "i64 step_stride", "ptr b", "i64 steps", "i64 n")
    pairs = tuple((a.split()[0], a.split()[1]) for a in (*arguments, "i64 column"))
    f = module.function(f"block{vectors}", "void", pairs)
    sums = [[f.variable(vector, "zeroinitializer") for _ in range(vectors)] for _ in range(rows)]
    bases = [f.variable("ptr", f.at(f.argument("a"), f.argument("row_stride") * r)) for r in range(rows)]
    b = f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        b_now = b.get()
        for offset in range(0, shape.columns * item, _LINE):
            f.prefetch(f.at(b_now, _AHEAD + offset))
        columns = [f.load(vector, f.at(b_now, v * lanes * item), item) for v in range(vectors)]
        for base, row in zip(bases, sums, strict=True):
            scalar = f.splat(f.load(element, base.get(), item), lanes)
            for total, column in zip(row, columns, strict=True):
                total.set(f.fma(scalar, column, total.get()))
            base.set(f.at(base.get(), f.argument("step_stride")))
        b.set(f.at(b_now, shape.columns * item))
    writer = ResultWriter(
        f, spec.dtype, lanes, spec.epilogue,
        bias={"none": "none", "n": "column", "m": "row"}[spec.bias], bias_buffer=2,
        first_operand=out_at - len(spec.epilogue.operands()), out_buffer=out_at,
    )  # fmt: skip
    column, n = f.argument("column"), f.argument("n")

    def write(whole: bool) -> None:
        for r, row in enumerate(sums):
            writer.begin_row(f.const(r))
            for v, total in enumerate(row):
                at = column + v * lanes
                left = None if whole else f.value(f.maximum(0, f.minimum(lanes, n - at)))
                writer.write(total.get(), n * r + at, at, left)

    f.if_else(column + shape.columns <= n, lambda: write(True), lambda: write(False))
    f.ret()
    return f
