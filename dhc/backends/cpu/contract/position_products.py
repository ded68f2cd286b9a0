"""The products in a transformed domain: what Winograd's method and minimal filtering share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dhc.backends.cpu.contract.tile import TileShape, emit_accumulate
from dhc.backends.cpu.llvm.builder import Function, Module, Value

_ITEM = 4


def emit_product_tiles(
    module: Module, heights: Sequence[int], widths: Sequence[int], lanes: int, row: int, dtype: str
) -> dict[tuple[int, int], Function]:
    """Writes the register tiles by number of rows and of vectors.

    Args:
        module: where to.
        heights: numbers of rows.
        widths: numbers of vectors of output channels.
        lanes: vector length.
        row: elements from one tile's products to the next one's.
        dtype: of the elements.
    """
    return {
        (rows, vectors): emit_accumulate(
            module,
            f"tile{rows}x{vectors}",
            TileShape(rows, vectors, lanes),
            row,
            dtype,
            [(0, 0)],
            packed_rows=True,
            adjacent_rows=True,
        )
        for rows in heights
        for vectors in widths
    }


def emit_products(
    f: Function,
    accumulate: Mapping[tuple[int, int], Function],
    heights: Sequence[int],
    vectors: int,
    count: Value,
    tiles: Value,
    step_bytes: Value,
    weights: Value,
    width: int,
    sums: Value,
    products: Value,
    row_bytes: int,
) -> None:
    """Writes the loop over the tiles of a block at one position of the transformed domain.

    Args:
        f: where to.
        accumulate: register tiles by number of rows and of vectors.
        heights: the numbers of rows, largest first.
        vectors: vectors of output channels.
        count: tiles of the block.
        tiles: their transformed inputs at this position.
        step_bytes: from one input channel to the next.
        weights: those of this position, ``width`` bytes for an input channel.
        width: bytes of a slice of output channels.
        sums: terms of a sum.
        products: of the first tile.
        row_bytes: from one tile's products to the next one's.
    """
    t = f.variable("i64", 0)

    def run(rows: int) -> None:
        now = t.get()
        f.call(
            accumulate[rows, vectors],
            [f.at(tiles, now * _ITEM), 0, step_bytes, weights, width, 0, sums, f.at(products, now * row_bytes),
             f.const(0, "i1")],
        )  # fmt: skip
        t.set(now + rows)

    t.set(0)
    # The rest takes the smallest register tile that holds it.
    for rows, smaller in zip(heights, (*heights[1:], 0), strict=True):
        with f.while_(lambda smaller=smaller: t.get() + smaller < count):  # type: ignore[misc]
            run(rows)
