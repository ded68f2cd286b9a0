"""Constant weights in the order in which register tiles of output channels read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec
from dhc.ir.dtypes import bf16
from dhc.ir.dtypes import dtype as as_dtype

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


def in_steps(spec: ConvSpec | ConvTransposeSpec, weights: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Weights with one element for each step of the sum: pairs of input channels, along ``axis``, as 32 bits."""
    import numpy as np

    if not spec.pairs:
        return weights
    channels = np.moveaxis(weights, axis, -1).astype(bf16.numpy).view(np.uint16)
    if channels.shape[-1] % 2:
        channels = np.concatenate([channels, np.zeros_like(channels[..., :1])], axis=-1)
    pairs = channels[..., 0::2].astype(np.uint32) | channels[..., 1::2].astype(np.uint32) << 16
    return np.moveaxis(pairs, -1, axis)


def as_stored(spec: ConvSpec | ConvTransposeSpec, packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Packed weights in the element type in which they are stored."""
    import numpy as np

    flat = np.ascontiguousarray(packed).reshape(-1)
    if spec.pairs:
        return flat.astype("<u4").view(bf16.numpy)
    return flat.astype(as_dtype(spec.storage).numpy) if spec.storage else flat
