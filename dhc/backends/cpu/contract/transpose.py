"""Transposing square blocks in registers by shuffles that processors have as single instructions."""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.llvm.builder import Function, Value


def transposed(f: Function, rows: Sequence[Value], lanes: int) -> list[Value]:
    """Transposes ``lanes`` vectors of ``lanes`` elements of 32 or 64 bits.

    Vectors are made of 128-bit parts. Elements are interleaved within parts first, which makes small transposed blocks,
    then whole parts are exchanged.
    """
    element = rows[0].type[1:-1].split(" x ")[1]
    width = min({"float": 4, "double": 2}[element], lanes)  # elements in a part
    parts = lanes // width

    def interleave(a: Value, b: Value, unit: int, high: bool) -> Value:
        """The low or high halves of each part of two vectors, ``unit`` elements in turn."""
        picks = []
        for part in range(parts):
            first = part * width + (width // 2 if high else 0)
            for at in range(first, first + width // 2, unit):
                picks += [*range(at, at + unit), *range(lanes + at, lanes + at + unit)]
        return f.shuffle(a, b, picks)

    def choose(a: Value, b: Value, which: Sequence[int]) -> Value:
        """Two parts of ``a``, then the same parts of ``b``; of vectors of two parts one each."""
        picks = [part * width + i for part in which for i in range(width)]
        return f.shuffle(a, b, picks + [lanes + pick for pick in picks])

    blocks: list[list[Value]] = []  # blocks[g][c]: in part p the elements of column p * width + c of rows g * width...
    for g in range(0, lanes, width):
        some = list(rows[g : g + width])
        if width == 2:
            blocks.append([interleave(some[0], some[1], 1, high) for high in (False, True)])
        else:
            low, high = ([interleave(some[i], some[i + 1], 1, upper) for i in (0, 2)] for upper in (False, True))
            blocks.append([interleave(*pair, 2, upper) for pair in (low, high) for upper in (False, True)])
    result: list[Value | None] = [None] * lanes
    for c in range(width):
        column = [block[c] for block in blocks]
        if parts == 4:
            halves = [[choose(column[i], column[i + 1], which) for i in (0, 2)] for which in ((0, 1), (2, 3))]
            column = [choose(*half, which) for half in halves for which in ((0, 2), (1, 3))]
        elif parts == 2:
            column = [choose(column[0], column[1], (part,)) for part in (0, 1)]
        for part, value in enumerate(column):
            result[part * width + c] = value
    return [value for value in result if value is not None]
