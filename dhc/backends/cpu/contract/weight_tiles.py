"""Constant weights in the order in which register tiles of output channels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def row_tile_parts(rows: np.ndarray[Any, Any], tiles: Sequence[tuple[int, int]]) -> list[np.ndarray[Any, Any]]:
    """One flat array for each tile, the weights of its rows side by side for each step.

    Args:
        rows: ``[output channels, steps]``.
        tiles: rows of a tile and how many such tiles follow each other.
    """
    parts = []
    first = 0
    for size, count in tiles:
        for _ in range(count):
            parts.append(rows[first : first + size].T.reshape(-1))
            first += size
    return parts
