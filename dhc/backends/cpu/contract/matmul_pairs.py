"""Matrix product with bf16 factors and f32 sums, by the instruction that adds the products of two pairs (AVX512-BF16).

The constant ``b`` is stored in bf16, two steps of the sum side by side. ``a`` is rounded to bf16 (to nearest even) row
tile by row tile in scratch memory. The instruction adds two products to each sum at once, denormals count as zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.matmul import PARAMS
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, MatmulSpec, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, emit_store, even_share, load_lanes, tile_shape
from dhc.backends.cpu.llvm.builder import Function, Module, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.ir.dtypes import bf16

if TYPE_CHECKING:
    import numpy as np

# Steps of the sum that are rounded at a time: 12 rows of them are a tenth of a megabyte.
_STEPS = 4096
_ROW_BYTES = 2 * _STEPS
_SUMS, _PAIRS = "<16 x float>", "<32 x bfloat>"


def takes_pairs(spec: Any, target: CpuTarget) -> bool:
    """Whether this is the method for a contraction on a target."""
    stored = isinstance(spec, MatmulSpec) and spec.storage == "bf16" and not spec.transpose_a and not spec.transpose_b
    return stored and "avx512bf16" in target.features and target.vector_bits == 512


def pack_pairs(spec: MatmulSpec, target: CpuTarget, b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lays out a constant ``b [k, n]`` as ``[panel, k / 2, columns of a tile, 2]`` in bf16, filled up with zeros."""
    import numpy as np

    columns = tile_shape(target, "f32").columns
    k, n = b.shape
    pairs, panels = -(-k // 2), -(-n // columns)
    padded = np.zeros((pairs * 2, panels * columns), dtype=np.float32)
    padded[:k, :n] = b
    ordered = padded.reshape(pairs, 2, panels, columns).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(ordered.astype(bf16.numpy))


def emit_matmul_pairs(spec: MatmulSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel; buffers and parameters are those of :func:`~dhc.backends.cpu.contract.matmul.emit_matmul`.

    There is one matrix ``b``, so that the batch counts as rows: its sizes are 1.
    """
    module = Module(target, KERNEL)
    shape = tile_shape(target, "f32")
    columns = shape.columns
    fewer = {spec.last_rows} if spec.last_rows else {max(shape.rows // 2, 1), 2}
    row_counts = sorted({shape.rows, *fewer, 1}, reverse=True)
    tiles = {rows: _emit_tile(module, f"tile{rows}", TileShape(rows, shape.vectors, shape.lanes), columns)
             for rows in row_counts}  # fmt: skip
    narrow = _emit_narrow(module)
    buffers = buffer_names("a", "b", spec.bias != "none", spec.epilogue, scratch=True)
    store = emit_store(
        module,
        "store",
        "f32",
        shape.lanes,
        columns,
        spec.epilogue,
        bias={"none": "none", "n": "column", "m": "row"}[spec.bias],
        bias_buffer=2,
        first_operand=buffers.index("out") - len(spec.epilogue.operands()),
        out_buffer=buffers.index("out"),
    )
    scratch_bytes = shape.rows * _ROW_BYTES

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    m, n, k, tid, nthreads = names["m"], names["n"], names["k"], f.argument("tid"), f.argument("nthreads")
    a, b = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(buffers.index("scratch")), tid * scratch_bytes)
    sums = f.stack(shape.rows * columns * 4)
    pairs = f.value(f.ceildiv(k, 2))
    panel_bytes = f.value(pairs * (columns * 4))

    # Blocks of panels that half of the second-level cache holds, then evened out over the threads.
    panels = f.value(f.ceildiv(n, columns))
    most = f.value(f.maximum(target.l2_bytes // 2 // f.maximum(panel_bytes, 1), 1))
    blocks = f.value(f.ceildiv(panels, most))
    blocks = f.select(panels >= nthreads, f.ceildiv(blocks, nthreads) * nthreads, blocks)
    block_panels = f.value(f.maximum(f.ceildiv(panels, f.maximum(blocks, 1)), 1))
    blocks = f.value(f.ceildiv(panels, block_panels))
    row_tile_count = f.value(f.ceildiv(m, shape.rows))
    even = (blocks % nthreads).equals(0)
    splits = f.select(even, 1, f.minimum(nthreads, f.maximum(row_tile_count, 1)))
    begin, end = even_share(f, blocks * splits, tid, nthreads)

    with f.loop(begin, end) as unit:
        split, block = unit % splits, unit // splits
        first_panel = block * block_panels
        last_panel = f.value(f.minimum(panels, first_panel + block_panels))
        last_row = f.value(f.minimum(m, ((row_tile_count * (split + 1)) // splits) * shape.rows))
        row = f.variable("i64", ((row_tile_count * split) // splits) * shape.rows)
        for rows in row_counts:
            with f.while_(lambda rows=rows: row.get() + rows <= last_row):  # type: ignore[misc]
                now = row.get()
                a_tile = f.at(a, now * k * 4)

                def round_rows(start: Value, count: Value, rows: int = rows, a_tile: Value = a_tile) -> None:
                    for r in range(rows):
                        f.call(narrow, [f.at(a_tile, (k * r + start) * 4), count, f.at(scratch, r * _ROW_BYTES)])

                with f.if_(k <= _STEPS):
                    round_rows(f.const(0), k)
                with f.loop(first_panel, last_panel) as panel:
                    b_panel = f.at(b, panel * panel_bytes)

                    def by_parts(b_panel: Value = b_panel, rows: int = rows) -> None:
                        # Longer sums are rounded part by part, again for each panel.
                        with f.loop(0, k, _STEPS) as start:
                            count = f.value(f.minimum(_STEPS, k - start))
                            round_rows(start, count, rows)
                            steps = f.value(f.ceildiv(count, 2))
                            f.call(tiles[rows], [scratch, f.at(b_panel, start * (columns * 2)), steps, sums, start > 0])

                    f.if_else(
                        k <= _STEPS,
                        lambda b_panel=b_panel, rows=rows: f.call(tiles[rows], [scratch, b_panel, pairs, sums, 0]),  # type: ignore[misc]
                        by_parts,
                    )
                    place = now * n + panel * columns
                    width = f.minimum(columns, n - panel * columns)
                    f.call(store, [f.argument("buffers"), sums, rows, width, place, n, now, panel * columns])
                row.set(now + rows)
    f.ret(0)
    return finished(module, target, "matmul_pairs", buffers, PARAMS, scratch_bytes)


def _emit_narrow(module: Module) -> Function:
    """Writes ``void narrow(from, count, to)``: f32 to bf16, with zeros up to a multiple of 32."""
    f = module.function("narrow", "void", (("ptr", "from"), ("i64", "count"), ("ptr", "to")))
    count = f.argument("count")
    with f.loop(0, count, 32) as i:
        low, high = (
            load_lanes(f, _SUMS, f.at(f.argument("from"), (i + half) * 4), f.value(count - i - half), 4)
            for half in (0, 16)
        )
        f.store(
            f.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", _PAIRS, [high, low]), f.at(f.argument("to"), i * 2), 64
        )
    f.ret()
    return f


def _emit_tile(module: Module, name: str, shape: TileShape, pitch: int) -> Function:
    """Writes ``void tile(a, b, pairs, buffer, resume)``: the sums of rows that are ``_ROW_BYTES`` apart."""
    f = module.function(
        name, "void", (("ptr", "a"), ("ptr", "b"), ("i64", "pairs"), ("ptr", "buffer"), ("i1", "resume"))
    )
    places = [
        [f.at(f.argument("buffer"), (r * pitch + v * shape.lanes) * 4) for v in range(shape.vectors)]
        for r in range(shape.rows)
    ]
    sums = [[f.variable(_SUMS, "zeroinitializer") for _ in row] for row in places]
    with f.if_(f.argument("resume")):
        for r, row in enumerate(places):
            for v, place in enumerate(row):
                sums[r][v].set(f.load(_SUMS, place, 64))
    a, b = f.variable("ptr", f.argument("a")), f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("pairs")):
        a_now, b_now = a.get(), b.get()
        right = [f.load(_PAIRS, f.at(b_now, v * 64), 4) for v in range(shape.vectors)]
        for r in range(shape.rows):
            both = f.splat(f.load("i32", f.at(a_now, r * _ROW_BYTES), 4), shape.lanes)
            left = f.emit(_PAIRS, f"bitcast <{shape.lanes} x i32> {both.ref} to {_PAIRS}")
            for v in range(shape.vectors):
                arguments = [sums[r][v].get(), right[v], left]
                sums[r][v].set(f.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", _SUMS, arguments))
        a.set(f.at(a_now, 4))
        b.set(f.at(b_now, shape.vectors * 64))
    for r in range(shape.rows):
        for v in range(shape.vectors):
            f.store(sums[r][v].get(), places[r][v], 64)
    f.ret()
    return f
