"""Where minimal filtering pays, and with which tiles: a model of its stages against a plain sum.

Costs are in vector instructions, counted from the transforms; the constants are fitted to measurements on a core with
512-bit vectors, over 16 to 256 channels, lines of 32 to 2048 outputs and volumes of 4 to 64. The model decides about
speed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dhc.backends.cpu.contract.minimal_plan import axes, is_minimal, narrow_shape
from dhc.backends.cpu.contract.minimal_transform import error_bound
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.winograd_choice import MOST_ERROR
from dhc.backends.cpu.target import CpuTarget

_TILES = ((1, 4), (1, 2), (2, 4), (2, 2), (4, 1), (2, 1))
"""Rows and columns of outputs. Tiles of 4 x 4 for windows of 5 x 5 would save another third; their errors are three to
five times as large, which deep networks add up."""
_SQUARE_TILES = ((4, 4),)  # for windows of 3 x 3
_PRODUCT_SHARE, _DIRECT_SHARE = 0.9, 0.9  # of the limit that register tiles reach
_LEAST_DIRECT_SHARE = 0.45
_TILE_START = 40.0  # instructions around the sums of a register tile
_STAGE_COST = 0.9  # for each instruction of the stages outside, whose operands are further away
_FAR_COST, _FAR_BYTES = 1.0, 2048 * 1024  # added to that as the transformed inputs and outputs come to fill memory
_BYTES_PER_STEP, _BYTES_PER_STEP_FROM_MEMORY, _CACHED_BYTES = 16.0, 8.0, 8 << 20
_NARROW_STORE_COST = 6.0  # for each vector of outputs of few channels
_MARGIN = 1.1
# Shorter sums leave a register tile no time to load and store.
_LEAST_TERMS = 12
# Sizes that only a run knows: those of a typical line, image or volume.
_ASSUMED = {1: (512,), 2: (64, 64), 3: (16, 64, 64)}


def minimal_tile(spec: ConvSpec, target: CpuTarget, out_size: Sequence[Any], *, pairs: bool = False) -> tuple[int, ...]:
    """Rows and columns of the output tiles with which a convolution is fastest, empty where a plain sum is.

    Args:
        spec: the spec.
        target: the target.
        out_size: spatial sizes of the output, numbers or symbolic expressions; empty: unknown.
        pairs: the plain sum would multiply pairs of bf16, two in the time of one.
    """
    rank = len(spec.kernel)
    sizes = list(out_size) or [None] * rank
    known = [n if isinstance(n, int) else other for n, other in zip(sizes, _ASSUMED[rank], strict=True)]
    terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0] * spec.stride[-1]
    taps_z, *window = spec.padded(spec.kernel, 1)
    square = window == [3, 3]
    if min(known) < 1 or terms < _LEAST_TERMS:
        return ()
    if square and (taps_z == 1 or not narrow_shape(spec, target)):
        return ()  # those of winograd_choice, but for few output channels and sums over planes
    depth, height, width = (1,) * (3 - rank) + tuple(known)
    costs = {
        tile: _cost(spec, target, tile, depth, height, width)
        for tile in (_TILES if not square else _SQUARE_TILES)
        if is_minimal(spec, tile) and error_bound(*axes(spec, tile), terms) <= MOST_ERROR
    }
    if not costs:
        return ()
    best = min(costs, key=lambda tile: costs[tile])
    direct = _direct_cost(spec, target, depth * height * width) / (2 if pairs else 1)
    return best if costs[best] * _MARGIN < direct else ()


def _weights_cost(count: float) -> float:
    return count * 4 / (_BYTES_PER_STEP if count * 4 <= _CACHED_BYTES else _BYTES_PER_STEP_FROM_MEMORY)


def _direct_cost(spec: ConvSpec, target: CpuTarget, positions: int) -> float:
    weights = spec.out_channels * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
    # Few output channels share each vector of inputs: loading those takes as long as the products.
    share = min(_DIRECT_SHARE, _LEAST_DIRECT_SHARE + 0.04 * spec.out_channels / spec.groups)
    return weights * positions / target.lanes(spec.dtype) / share + _weights_cost(weights)


def _cost(spec: ConvSpec, target: CpuTarget, tile: tuple[int, int], depth: int, height: int, width: int) -> float:
    lanes, taps = target.lanes(spec.dtype), spec.padded(spec.kernel, 1)[0]
    phases, (out_y, out_x) = spec.stride[-1], tile
    size_y, size_x = (m + k - 1 for m, k in axes(spec, tile))
    positions = size_y * size_x
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    vectors = -(-outs // lanes)
    rows, columns = -(-height // out_y), -(-width // out_x)
    tiles = -(-rows * columns // 4) * 4
    planes = depth if taps == 1 else depth + (taps - 1) * -(-depth // 4)
    sums = ins * phases * taps

    period = out_x * phases
    loaded = period + (phases * size_x > period)
    shuffles = period * int(math.log2(period)) + phases * size_x - period
    inputs = loaded * (size_y + _transform(size_y)) + size_y * (shuffles + phases * _transform(size_x))
    inputs += positions * phases
    per_tile = positions + size_x * _outputs(size_y, out_y) + out_y * _outputs(size_x, out_x) + out_y * out_x
    group = lanes // min(out_x, lanes)
    outputs = group * per_tile + out_y * lanes * (math.log2(lanes) + 6)

    far = min(1.0, positions * ins * phases * min(tiles * planes, 64 * planes) * 4 / _FAR_BYTES)
    stages = planes * rows * -(-columns // lanes) * ins * inputs * (_STAGE_COST + far * _FAR_COST)
    far = min(1.0, outs * depth * height * width * 4 / _FAR_BYTES)
    finishing = depth * rows * -(-columns // group) * vectors * outputs * (_STAGE_COST + far * _FAR_COST)
    stages += finishing
    products = positions * depth * tiles * vectors * (sums / _PRODUCT_SHARE + _TILE_START / 12)
    if narrow_shape(spec, target):
        vectors = -(-rows * columns // lanes)  # of tiles
        products = positions * depth * vectors * outs * (sums / _PRODUCT_SHARE + _TILE_START / 12)
        stages -= finishing
        per_vector = per_tile + out_y * out_x * (math.log2(out_x) + _NARROW_STORE_COST)
        stages += depth * vectors * outs * per_vector * (_STAGE_COST + far * _FAR_COST)
    return spec.groups * (stages + products + _weights_cost(positions * sums * vectors * lanes))


def _transform(size: int) -> float:
    """Instructions of a transform of inputs along an axis."""
    return 0.4 * size * size if size > 1 else 0.0


def _outputs(size: int, m: int) -> float:
    """Instructions of a transform of products along an axis to ``m`` outputs."""
    return size - 2 + m * size / 2 if size > 1 else 0.0
