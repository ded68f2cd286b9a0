"""The ways to compute a layer among which measuring decides; the choice of the cost models is the first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dhc.backends.cpu.contract.depthwise import is_depthwise
from dhc.backends.cpu.contract.depthwise_channels import is_channelwise, reached_columns
from dhc.backends.cpu.contract.pointwise import is_pointwise
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, Spec
from dhc.backends.cpu.contract.transposed_plan import is_shared
from dhc.backends.cpu.contract.winograd_choice import MOST_ERROR
from dhc.backends.cpu.contract.winograd_plan import is_winograd
from dhc.backends.cpu.contract.winograd_transform import TILES, error_bound
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import CpuTarget

DEFAULT = "default"
# Blocks cut for caches of other sizes: how much of them a kernel may count on differs with what runs beside it.
_CACHE_SHARES = (0.5, 2.0)


@dataclass(frozen=True)
class Candidate:
    """One way.

    Attributes:
        name: tells the candidates of a layer apart.
        spec: the spec with a method.
        target: the target with the cache sizes for which blocks are cut.
    """

    name: str
    spec: Spec
    target: CpuTarget


def candidates(layer: Layer, target: CpuTarget, methods: Methods) -> list[Candidate]:
    """All ways to compute a layer of known sizes, the default first; equal kernels once."""
    spec, described = methods.choose(layer, target)
    found = [Candidate(DEFAULT, spec, described)]
    found += [Candidate(name, other, target) for name, other in _methods(layer, target) if other != spec]
    for share in _CACHE_SHARES:
        changed = dataclasses.replace(
            target, l1_bytes=int(target.l1_bytes * share), l2_bytes=int(target.l2_bytes * share)
        )
        found.append(Candidate(f"caches x {share:g}", spec, changed))
    distinct: dict[tuple[str, tuple[int, ...], int], Candidate] = {}
    for candidate in found:
        code = methods.emit(candidate.spec, candidate.target)
        text = code.ir.replace(code.name, "")
        distinct.setdefault((text, code.constants, code.scratch_per_thread), candidate)
    return list(distinct.values())


def _methods(layer: Layer, target: CpuTarget) -> Iterator[tuple[str, Spec]]:
    spec = layer.spec
    if isinstance(spec, ConvTransposeSpec):
        if is_shared(spec):
            yield "shared phases", dataclasses.replace(spec, narrow=False)
            yield "narrow", dataclasses.replace(spec, narrow=True)
    elif isinstance(spec, ConvSpec):
        yield from _convolutions(spec, layer, target)


def _convolutions(spec: ConvSpec, layer: Layer, target: CpuTarget) -> Iterator[tuple[str, Spec]]:
    terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0]
    if is_winograd(spec) and not layer.exact:
        for tile in TILES:
            if error_bound(tile, terms) <= MOST_ERROR:
                yield f"winograd {tile}", dataclasses.replace(spec, winograd=tile)
    yield "general", spec
    width, positions = layer.out_size[-1], math.prod(d for d in layer.out_size if isinstance(d, int))
    assert isinstance(width, int)
    lanes = target.lanes(spec.dtype)
    if is_depthwise(spec):
        by_rows = dataclasses.replace(spec, method="depthwise-channels", positions=width)
        if is_channelwise(spec) and spec.in_channels >= lanes and 0 < width <= 2 * lanes:
            reach = reached_columns(by_rows) + spec.stride[-1]
            if isinstance(layer.in_size[-1], int) and layer.in_size[-1] <= reach:
                yield "depthwise channels", by_rows
        return
    if spec.kernel[-1] > 1 and spec.stride[-1] == 1:
        yield "narrow", dataclasses.replace(spec, narrow=True)
    flat = is_pointwise(spec) and layer.in_size == layer.out_size
    if flat:
        yield "pointwise", dataclasses.replace(spec, method="pointwise")
    if (flat or not is_pointwise(spec)) and spec.out_channels // spec.groups >= lanes and positions <= 64 * 64:
        yield "channels", dataclasses.replace(spec, method="channels", positions=positions)
