"""Where Winograd's method pays, and with which tiles: a model of its stages against a plain sum.

Costs are in vector instructions. Constants are fitted to measurements on a core with 512-bit vectors, over 8 to 1024
channels and maps of 7 x 7 to 512 x 512; the model decides about speed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dhc.backends.cpu.contract.regions import computed_share, pays_regions, region_cost
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.winograd_plan import is_winograd
from dhc.backends.cpu.contract.winograd_stages import input_tiles, output_tiles
from dhc.backends.cpu.contract.winograd_transform import TILES, error_bound
from dhc.backends.cpu.target import CpuTarget

# For each size of tiles: transforming one vector of tiles of a channel, and the outputs of one vector of columns;
# then what is added as the transformed inputs of a block come to fill half a megabyte, and the outputs two.
_INPUT_COST, _FAR_INPUT_COST = {2: 150.0, 4: 250.0, 6: 800.0}, {2: 200.0, 4: 350.0, 6: 700.0}
_OUTPUT_COST, _FAR_OUTPUT_COST = {2: 700.0, 4: 1200.0, 6: 2200.0}, {2: 800.0, 4: 1500.0, 6: 2200.0}
_FAR_INPUT_BYTES, _FAR_OUTPUT_BYTES = 512 * 1024, 2048 * 1024
_PRODUCT_SHARE, _DIRECT_SHARE = 0.9, 0.85  # of the limit that register tiles reach
# Weights that a step brings in, where they may still lie in a cache, and from memory.
_BYTES_PER_STEP, _BYTES_PER_STEP_FROM_MEMORY, _CACHED_BYTES = 16.0, 8.0, 8 << 20
_MARGIN = 1.1
# Larger tiles are taken for a clear gain: their errors are ten times as large.
_LARGE_MARGIN = 1.1
_PAIRS_GAIN = 1.85  # of a plain sum by products of pairs of bf16
# Sizes that only a run knows: those of a typical image or volume.
_ASSUMED_SIZE, _ASSUMED_DEPTH = 64, 16
MOST_ERROR = 2.0**-5
"""Bound of errors, relative to max|input| * sum|weights| as `error_bound` counts, beyond which smaller tiles are taken:
sums of over 310 terms do without tiles of 6 x 6, of over 3,300 without those of 4 x 4, of over 32,000 without the
method. Typical errors are thousands of times smaller than the bound: about 1.5e-7 * sqrt(terms) of the largest result,
with tiles of 6 x 6 1e-6 * sqrt(terms)."""


def winograd_tile(
    spec: ConvSpec, target: CpuTarget, in_size: Sequence[Any], out_size: Sequence[Any], *, pairs: bool = False,
    finite: bool = True,
) -> int:  # fmt: skip
    """Size of the output tiles with which a convolution is fastest, 0 where a plain sum is.

    Args:
        spec: the spec.
        target: the target.
        in_size: spatial sizes of the input, numbers or symbolic expressions; empty: unknown.
        out_size: spatial sizes of the output.
        pairs: whether the plain sum is one of pairs of bf16.
        finite: whether the weights are: else their products with padding count.
    """
    if not is_winograd(spec):
        return 0
    sizes = list(out_size) or [None] * len(spec.kernel)
    assumed = [_ASSUMED_DEPTH, _ASSUMED_SIZE, _ASSUMED_SIZE][-len(sizes) :]
    known = [size if isinstance(size, int) else other for size, other in zip(sizes, assumed, strict=True)]
    depth, height, width = (1,) * (3 - len(known)) + tuple(known)
    if min(depth, height, width) < 1:
        return 0
    terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0]
    near = TILES if spec.dilation[-1] == 1 else TILES[:-1]  # the columns of dilated tiles of 6 x 6 are far apart
    costs = {
        m: _winograd_cost(spec, target, m, depth, height, width) for m in near if error_bound(m, terms) <= MOST_ERROR
    }
    if not costs:
        return 0
    best = min(costs, key=lambda m: costs[m] * (_LARGE_MARGIN if m > 4 else 1.0))
    plain = _direct_cost(spec, target, depth * height * width, width)
    if finite and pays_regions(spec, target, in_size, out_size):
        plain = min(plain, region_cost(spec, target, in_size, out_size))
    if pairs:
        plain /= _PAIRS_GAIN
    margin = 1.0 if pairs else _MARGIN  # besides, pairs round
    return best if costs[best] * margin < plain else 0


def _weights_cost(count: int) -> float:
    rate = _BYTES_PER_STEP if count * 4 <= _CACHED_BYTES else _BYTES_PER_STEP_FROM_MEMORY
    return count * 4 / rate


def _direct_cost(spec: ConvSpec, target: CpuTarget, positions: int, width: int) -> float:
    weights = spec.out_channels * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
    columns = positions * computed_share(spec, width)
    return weights * columns / target.lanes(spec.dtype) / _DIRECT_SHARE + _weights_cost(weights)


def _winograd_cost(spec: ConvSpec, target: CpuTarget, m: int, depth: int, height: int, width: int) -> float:
    lanes, taps = target.lanes(spec.dtype), spec.padded(spec.kernel, 1)[0]
    dilation = spec.padded(spec.dilation, 1)
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    tall = m * dilation[1]
    rows = height // tall * dilation[1] + min(dilation[1], height % tall)
    columns = -(-width // (m * dilation[2])) * dilation[2]
    vectors, positions = -(-outs // lanes), (m + 2) ** 2
    tiles = -(-rows * columns // 4) * 4
    weights = positions * ins * taps * vectors
    planes, met = depth, 1.0
    if taps > 1:
        planes += (taps - 1) * max(0, dilation[0] * -(-depth // (4 * dilation[0])) - dilation[0])
        shifts = (abs(tap * dilation[0] - spec.pad_begin[0]) for tap in range(taps))
        met = sum(max(0, depth - shift) for shift in shifts) / (taps * depth)
    far = min(1.0, positions * ins * min(tiles * planes, 64) * 4 / _FAR_INPUT_BYTES)
    input_cost = _INPUT_COST[m] + far * _FAR_INPUT_COST[m]
    far = min(1.0, outs * depth * height * width * 4 / _FAR_OUTPUT_BYTES)
    output_cost = (_OUTPUT_COST[m] + far * _FAR_OUTPUT_COST[m]) * lanes / 16
    together = output_tiles(m, lanes, dilation[2])  # a square of outputs for each vector of them
    squares = -(-columns // together) * -(-together * m // lanes)
    transforms = planes * rows * -(-columns // input_tiles(lanes, dilation[2])) * ins * input_cost
    transforms += depth * rows * squares * vectors * output_cost
    products = weights * met * depth * tiles / _PRODUCT_SHARE
    return spec.groups * (transforms + products + _weights_cost(weights * lanes))
