"""Where Winograd's method pays, and with which tiles: a model of its stages against a plain sum.

Costs are in vector instructions. Constants are fitted to measurements on a core with 512-bit vectors, over 8 to 1024
channels and maps of 7 x 7 to 512 x 512; the model decides about speed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.contract.winograd_plan import is_winograd
from dhc.backends.cpu.contract.winograd_transform import TILES, error_bound
from dhc.backends.cpu.target import CpuTarget

# For tiles of 2 x 2 and 4 x 4: transforming one vector of tiles of a channel, and the outputs of one vector of columns.
_INPUT_COST = {2: 350.0, 4: 600.0}
_OUTPUT_COST = {2: 1000.0, 4: 1800.0}
_PRODUCT_SHARE, _DIRECT_SHARE = 0.9, 0.85  # of the limit that register tiles reach
_BYTES_PER_STEP = 8.0  # of weights that come from far away
_MARGIN = 1.1
# Sizes that only a run knows: those of a typical image or volume.
_ASSUMED_SIZE, _ASSUMED_DEPTH = 64, 16
MOST_ERROR = 2.0**-5
"""Bound of errors, relative to max|input| * sum|weights| as `error_bound` counts, beyond which smaller tiles are taken:
sums of over 3,300 terms do without tiles of 4 x 4, of over 32,000 without the method. Typical errors are thousands of
times smaller than the bound: about 1.5e-7 * sqrt(terms) of the largest result."""


def winograd_tile(spec: ConvSpec, target: CpuTarget, out_size: Sequence[Any]) -> int:
    """Size of the output tiles with which a convolution is fastest, 0 where a plain sum is.

    Args:
        spec: the spec.
        target: the target.
        out_size: spatial sizes of the output, numbers or symbolic expressions; empty: unknown.
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
    costs = {
        m: _winograd_cost(spec, target, m, depth, height, width) for m in TILES if error_bound(m, terms) <= MOST_ERROR
    }
    if not costs:
        return 0
    best = min(costs, key=lambda m: costs[m])
    return best if costs[best] * _MARGIN < _direct_cost(spec, target, depth * height * width) else 0


def _direct_cost(spec: ConvSpec, target: CpuTarget, positions: int) -> float:
    weights = spec.out_channels * (spec.in_channels // spec.groups) * math.prod(spec.kernel)
    return weights * positions / target.lanes(spec.dtype) / _DIRECT_SHARE + weights * 4 / _BYTES_PER_STEP


def _winograd_cost(spec: ConvSpec, target: CpuTarget, m: int, depth: int, height: int, width: int) -> float:
    lanes, taps = target.lanes(spec.dtype), spec.padded(spec.kernel, 1)[0]
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    rows, columns = -(-height // m), -(-width // m)
    vectors = -(-outs // lanes)
    positions = (m + 2) ** 2
    tiles = -(-rows * columns // 4) * 4
    weights = positions * ins * taps * vectors
    planes = depth if taps == 1 else depth + (taps - 1) * -(-depth // 4)
    transforms = planes * rows * -(-columns // lanes) * ins * _INPUT_COST[m]
    transforms += depth * rows * -(-columns // max(lanes // m, 1)) * vectors * _OUTPUT_COST[m] * lanes / 16
    products = weights * depth * tiles / _PRODUCT_SHARE
    return spec.groups * (transforms + products + weights * lanes * 4 / _BYTES_PER_STEP)
