"""Batched matrix product with packed column panels.

``b`` is copied panel by panel (as many columns as a register tile has) into scratch memory that fits the second-level
cache, or comes packed at compile time when it is constant; ``a`` is read in place with run-time strides, which also
serves its transpose. Each result is one sum in the order of k, whatever the number of threads or the blocking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.blocks import clearly_less, divided
from dhc.backends.cpu.contract.factors import Factors
from dhc.backends.cpu.contract.finished_tile import emit_finished_tile, is_light
from dhc.backends.cpu.contract.packing import emit_copy_rows, emit_pack, emit_widen
from dhc.backends.cpu.contract.packing import transpose_block as transpose_block
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, MatmulSpec, buffer_names, finished
from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate, emit_store, even_share, tile_shape
from dhc.backends.cpu.llvm.builder import ITEM_BYTES, Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.symbols import Dim

if TYPE_CHECKING:
    import numpy as np

# From so many rows on, packing a panel is little beside what is computed with it.
_ROWS_TO_PACK_TWICE = 128

PARAMS = (
    "batch0",
    "batch1",
    "batch2",
    "m",
    "n",
    "k",
    "a_stride0",
    "a_stride1",
    "a_stride2",
    "b_stride0",
    "b_stride1",
    "b_stride2",
)

_PANELS_FOR_A_COPY = 4  # fewer panels read a copy of rows too seldom
_LINE, _WAYS = 64, 8  # bytes of a cache line, lines that share a set of the first-level cache


def rows_beyond_tiles(rows: object, target: CpuTarget, dtype: str) -> int:
    """``last_rows`` of a spec for a number of rows, known or not."""
    return rows % tile_shape(target, dtype).rows if isinstance(rows, int) else 0


def steps_to_copy(sizes: tuple[Dim, Dim, Dim], target: CpuTarget, dtype: str) -> int:
    """``copied_steps`` of a spec for sizes (m, n, k), known or not: for rows that share their sets of the cache."""
    rows, columns, steps = sizes
    shape = tile_shape(target, dtype)
    if not isinstance(steps, int) or not isinstance(rows, int) or min(rows, steps) < shape.rows:
        return 0
    if isinstance(columns, int) and columns <= _PANELS_FOR_A_COPY * shape.columns:
        return 0
    apart = steps * ITEM_BYTES[dtype]
    fits = (apart + _LINE) * shape.rows <= target.l2_bytes // 4
    return steps if apart % (target.l1_bytes // _WAYS) == 0 and fits and shape.rows > _WAYS else 0


def pack_b(spec: MatmulSpec, target: CpuTarget, b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lays out a constant ``b`` for a kernel with ``packed_b``.

    Args:
        spec: the kernel's spec.
        target: its target.
        b: ``[k, n]``, or ``[n, k]`` with ``transpose_b``.

    Returns:
        ``[panel, k, columns of a tile]``, the last panel filled up with zeros, in the type of the spec's storage.
    """
    import numpy as np

    matrix = b.T if spec.transpose_b else b
    k, n = matrix.shape
    columns = tile_shape(target, spec.dtype).columns
    panels = -(-n // columns)
    padded = np.zeros((k, panels * columns), dtype=matrix.dtype)
    padded[:, :n] = matrix
    stored = np.ascontiguousarray(padded.reshape(k, panels, columns).transpose(1, 0, 2))
    return stored.astype(as_dtype(spec.storage).numpy) if spec.storage else stored


def emit_matmul(spec: MatmulSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a matrix product.

    Buffers: ``a``, ``b``, [``bias``], [``epilogue0``...], ``out``, ``scratch``. Parameters: :data:`PARAMS`; batch
    strides are in elements, 0 broadcasts; ``out`` is contiguous over (batch0, batch1, batch2, m, n).
    """
    module = Module(target, KERNEL)
    item, shape = ITEM_BYTES[spec.dtype], tile_shape(target, spec.dtype)
    columns = shape.columns
    pack_bytes = target.l2_bytes // 2
    step_limit = pack_bytes // (columns * item)

    fewer = {spec.last_rows} if spec.last_rows else {max(shape.rows // 2, 1), 2}
    row_counts = sorted({shape.rows, *fewer, 1}, reverse=True)

    def emit_tiles(prefix: str, storage: str) -> dict[int, Function]:
        return {
            rows: emit_accumulate(
                module,
                f"{prefix}{rows}",
                TileShape(rows, shape.vectors, shape.lanes),
                columns,
                spec.dtype,
                ((0, 0),),
                packed_rows=False,
                factors=Factors(spec.dtype, shape.lanes, columns=storage),
            )
            for rows in row_counts
        }

    tiles = emit_tiles("tile", "")
    # Many rows share the work of widening a panel, few read it as it is stored.
    reading = emit_tiles("reading", spec.storage) if spec.storage else tiles
    widen = emit_widen(module, "widen", spec.storage, shape) if spec.storage else None
    pack = None if spec.packed_b else emit_pack(module, "pack", spec.dtype, shape, spec.transpose_b)
    with_scratch = not spec.packed_b or bool(spec.storage)
    copied_stride = spec.copied_steps * item + _LINE if spec.copied_steps else 0
    copy = emit_copy_rows(module, "copy_rows", spec.dtype, shape.lanes) if copied_stride else None
    scratch_bytes = (pack_bytes if with_scratch else 0) + copied_stride * shape.rows
    bias_kind = {"none": "none", "n": "column", "m": "row"}[spec.bias]
    buffers = buffer_names("a", "b", spec.bias != "none", spec.epilogue, scratch=scratch_bytes > 0)
    ending: dict[str, Any] = {
        "bias": bias_kind,
        "bias_buffer": 2,
        "first_operand": buffers.index("out") - len(spec.epilogue.operands()),
        "out_buffer": buffers.index("out"),
    }
    store = emit_store(module, "store", spec.dtype, shape.lanes, columns, spec.epilogue, **ending)
    # Most of the work: tiles of all rows and of whole vectors, one of them where a last panel has no more.
    finished_tiles = {
        (rows, vectors): emit_finished_tile(
            module,
            f"finished{rows}x{vectors}",
            TileShape(rows, vectors, shape.lanes),
            spec.dtype,
            spec.epilogue,
            **ending,
        )
        for rows in sorted({shape.rows, spec.last_rows} - {0})
        for vectors in sorted({shape.vectors, 1})
        if is_light(spec.epilogue, target, spec.dtype)
    }

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    m, n, k, tid, nthreads = names["m"], names["n"], names["k"], f.argument("tid"), f.argument("nthreads")
    a_base, b_base = f.pointer_argument(0), f.pointer_argument(1)
    own = f.at(f.pointer_argument(buffers.index("scratch")), tid * scratch_bytes) if scratch_bytes else None
    scratch = own if with_scratch else None
    copied = f.at(own, scratch_bytes - copied_stride * shape.rows) if own is not None and copied_stride else None
    sums = f.stack(shape.rows * columns * item)
    row_stride, step_stride = (f.const(item), m * item) if spec.transpose_a else (k * item, f.const(item))

    b_row = k if spec.transpose_b else n

    # Column blocks: as many panels as fit the scratch memory, then evened out over the threads.
    batches = names["batch0"] * names["batch1"] * names["batch2"]
    panels = f.value(f.ceildiv(n, columns))
    panel_elements = f.value(f.maximum(k * columns, 1))
    most = f.value(f.maximum(pack_bytes // item // panel_elements, 1))
    blocks = f.value(f.ceildiv(panels, most))
    evened = f.value(f.maximum(f.ceildiv(blocks, nthreads), 1) * nthreads)
    row_tile_count = f.value(f.ceildiv(m, shape.rows))
    # Rows are divided where columns cannot be as fairly; each thread then packs all panels that are not yet.
    even_panels = f.value(f.maximum(f.ceildiv(panels, evened), 1))
    even_blocks = f.value(f.ceildiv(panels, even_panels))
    most_columns = f.value(f.ceildiv(batches * even_blocks, nthreads)) * even_panels * row_tile_count
    all_columns = batches * panels * f.value(f.ceildiv(row_tile_count, nthreads))
    by_rows = (panels >= nthreads) & (batches < nthreads) & clearly_less(f.value(all_columns), f.value(most_columns))
    by_rows = f.value(by_rows & (m >= _ROWS_TO_PACK_TWICE) if with_scratch else by_rows)
    blocks = f.select((panels >= nthreads) & by_rows.equals(0), evened, blocks)
    block_panels = f.value(f.maximum(f.ceildiv(panels, f.maximum(blocks, 1)), 1))
    blocks = f.value(f.ceildiv(panels, block_panels))
    units = f.value(batches * blocks)
    even = (units % nthreads).equals(0) & by_rows.equals(0)
    splits = f.value(f.select(even, 1, f.minimum(nthreads, f.maximum(row_tile_count, 1))))
    begin, end = even_share(f, units * splits, tid, nthreads)
    packed_key = f.variable("i64", -1)
    # With few rows a copy of b would cost more than it saves: its rows are then read in place.
    in_place = m <= 2 * shape.rows

    with f.loop(begin, end) as unit:
        outer, split = divided(unit, units, splits, by_rows, f)
        block, batch = outer % blocks, outer // blocks
        inner = batch % names["batch2"]
        middle = (batch // names["batch2"]) % names["batch1"]
        outermost = batch // (names["batch2"] * names["batch1"])

        def batch_offset(which: str, parts: tuple[Value, ...] = (outermost, middle, inner)) -> Value:
            offset = parts[0] * names[f"{which}_stride0"]
            for i in (1, 2):
                offset = offset + parts[i] * names[f"{which}_stride{i}"]
            return offset * item

        a, b = f.at(a_base, batch_offset("a")), f.at(b_base, batch_offset("b"))
        first_panel = block * block_panels
        last_panel = f.value(f.minimum(panels, first_panel + block_panels))
        first_row = ((row_tile_count * split) // splits) * shape.rows
        last_row = f.value(f.minimum(m, ((row_tile_count * (split + 1)) // splits) * shape.rows))
        out_start = batch * m * n

        stored = columns * (2 if spec.storage else item)
        if widen is not None and scratch is not None:
            fresh = packed_key.get().equals(outer)
            with f.if_((k <= step_limit) & in_place.equals(0) & fresh.equals(0)):
                packed_key.set(outer)
                start = f.at(b, first_panel * stored * k)
                f.call(widen, [start, (last_panel - first_panel) * k * shape.vectors, scratch])
        if pack is not None and scratch is not None:
            fresh = packed_key.get().equals(outer)
            with f.if_(fresh.equals(0)):
                packed_key.set(outer)
                with f.loop(first_panel, last_panel) as panel:
                    ragged = (panel + 1) * columns > n
                    small = k <= step_limit
                    wanted = small if spec.transpose_b else small & (ragged | in_place.equals(0))
                    with f.if_(wanted):
                        to = f.at(scratch, (panel - first_panel) * (columns * item) * k)
                        f.call(pack, [b, b_row, n, 0, k, panel * columns, to])

        def run_tile(
            rows: int,
            row: Value,
            panel: Value,
            a_tile: Value,
            row_stride: Value,
            b: Value = b,
            first_panel: Value = first_panel,
            out_start: Value = out_start,
        ) -> None:
            place, column = out_start + row * n + panel * columns, panel * columns
            width = f.value(f.minimum(columns, n - column))

            def accumulate(
                a_at: Value, b_at: Value, b_stride: Int, steps: Value, resume: Int = 0, by: Any = tiles
            ) -> None:
                f.call(by[rows], [a_at, row_stride, step_stride, b_at, b_stride, 0, steps, sums, resume])

            def stored_sums() -> None:
                f.call(store, [f.argument("buffers"), sums, rows, width, place, n, row, column])

            def whole_sum(b_at: Value, b_stride: Int, by: Any = tiles) -> None:
                """The tile from one run over all steps."""

                def through_buffer() -> None:
                    accumulate(a_tile, b_at, b_stride, k, by=by)
                    stored_sums()

                def at_once(vectors: int) -> None:
                    arguments = [a_tile, row_stride, step_stride, b_at, b_stride, k, place, n, row, column]
                    f.call(finished_tiles[rows, vectors], [f.argument("buffers"), *arguments])

                if (rows, 1) not in finished_tiles or by is not tiles:
                    return through_buffer()

                def narrower() -> None:
                    if shape.vectors > 1:
                        f.if_else(width.equals(shape.lanes), lambda: at_once(1), through_buffer)
                    else:
                        through_buffer()

                return f.if_else(width.equals(columns), lambda: at_once(shape.vectors), narrower)

            if widen is not None and scratch is not None:
                f.if_else(
                    (k <= step_limit) & in_place.equals(0),
                    lambda: whole_sum(f.at(scratch, (panel - first_panel) * (columns * item) * k), columns * item),
                    lambda: whole_sum(f.at(b, panel * stored * k), stored, by=reading),
                )
            elif pack is None or scratch is None:
                whole_sum(f.at(b, panel * stored * k), stored)
            else:

                def packed() -> None:
                    whole_sum(f.at(scratch, (panel - first_panel) * (columns * item) * k), columns * item)

                def by_steps() -> None:
                    # A panel that is longer than the scratch memory is copied piece by piece for each tile.
                    with f.loop(0, k, step_limit) as s:
                        steps = f.value(f.minimum(step_limit, k - s))
                        f.call(pack, [b, b_row, n, s, steps, panel * columns, scratch])
                        accumulate(f.at(a_tile, s * step_stride), scratch, columns * item, steps, s > 0)
                    stored_sums()

                def from_scratch() -> None:
                    f.if_else(k <= step_limit, packed, by_steps)

                if spec.transpose_b:
                    from_scratch()
                else:
                    whole = (panel + 1) * columns <= n
                    f.if_else(
                        whole & in_place,
                        lambda: whole_sum(f.at(b, panel * (columns * item)), n * item),
                        from_scratch,
                    )

        def over_panels(
            rows: int,
            row: Value,
            panel_range: tuple[Value, Value] = (first_panel, last_panel),
            body: Callable[..., None] = run_tile,
            a: Value = a,
        ) -> None:
            rows_at = (f.at(a, row * row_stride), row_stride)
            if copy is not None and copied is not None and rows > _WAYS:
                f.call(copy, [*rows_at, spec.copied_steps, rows, copied, copied_stride])
                rows_at = (copied, f.const(copied_stride))
            with f.loop(*panel_range) as panel:
                body(rows, row, panel, *rows_at)

        row = f.variable("i64", first_row)
        for rows in row_counts:
            with f.while_(lambda rows=rows: row.get() + rows <= last_row):  # type: ignore[misc]
                over_panels(rows, row.get())
                row.set(row.get() + rows)
    f.ret(0)
    return finished(module, target, "matmul", buffers, PARAMS, scratch_bytes)
