"""Which method serves a convolution of known sizes best: measured rules of thumb, never a matter of validity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dhc.backends.cpu.contract.depthwise import is_depthwise
from dhc.backends.cpu.contract.depthwise_channels import is_channelwise, reached_columns
from dhc.backends.cpu.contract.depthwise_direct import is_direct
from dhc.backends.cpu.contract.pointwise import is_pointwise
from dhc.backends.cpu.contract.regions import pays_regions
from dhc.backends.cpu.contract.spec import ConvSpec
from dhc.backends.cpu.target import CpuTarget

# Vectors over output channels: from so many channels on, and for sums that outweigh the transposition of the results.
_LEAST_CHANNELS = 48
_LEAST_STEPS = 96
# Larger maps fill vectors of columns well enough.
_MOST_POSITIONS = 1024


def choose(
    spec: ConvSpec, target: CpuTarget, in_size: Sequence[Any], out_size: Sequence[Any], *, finite: bool = True
) -> ConvSpec:
    """Sets ``method`` and ``positions`` of a spec.

    Args:
        spec: the spec.
        target: the target.
        in_size: spatial sizes of the input, numbers or symbolic expressions; empty: unknown.
        out_size: spatial sizes of the output.
        finite: whether the weights are: else their products with padding count.
    """
    if is_depthwise(spec):
        width = out_size[-1] if out_size else None
        if not isinstance(width, int) or not _pays_depthwise(spec, target, in_size[-1:], width):
            return spec
        return dataclasses.replace(spec, method="depthwise-channels", positions=width)
    if finite and pays_regions(spec, target, in_size, out_size):
        return dataclasses.replace(spec, method="regions", narrow=False)
    flat = is_pointwise(spec) and len(in_size) == len(spec.kernel) and tuple(in_size) == tuple(out_size)
    positions = math.prod(out_size) if out_size and all(isinstance(n, int) for n in out_size) else 0
    if positions > 0 and (flat or not is_pointwise(spec)) and _pays_channels(spec, target, out_size):
        return dataclasses.replace(spec, method="channels", positions=positions, narrow=False)
    return dataclasses.replace(spec, method="pointwise", narrow=False) if flat else spec


def _pays_depthwise(spec: ConvSpec, target: CpuTarget, in_width: Sequence[Any], width: int) -> bool:
    lanes = target.lanes(spec.dtype)
    if is_direct(spec, target):
        widest = lanes // 2
    else:
        widest = lanes if spec.stride[-1] == 1 else 28
    if not is_channelwise(spec) or spec.in_channels < lanes or not 0 < width <= widest:
        return False
    known = len(in_width) == 1 and isinstance(in_width[0], int)
    reached = reached_columns(dataclasses.replace(spec, positions=width))
    return known and in_width[0] <= reached + spec.stride[-1]


def _pays_channels(spec: ConvSpec, target: CpuTarget, out_size: Sequence[int]) -> bool:
    lanes, outs = target.lanes(spec.dtype), spec.out_channels // spec.groups
    steps, positions = spec.in_channels // spec.groups * math.prod(spec.kernel), math.prod(out_size)
    if positions <= lanes // 2:
        return outs >= lanes
    filled = outs / (2 * lanes * -(-outs // (2 * lanes)))
    if outs < _LEAST_CHANNELS or steps < _LEAST_STEPS or positions > _MOST_POSITIONS or filled < 0.85:
        return False
    if spec.stride[-1] > 1:
        return True
    if is_pointwise(spec):
        return positions < 0.97 * filled * lanes * -(-positions // lanes)
    return out_size[-1] < lanes
