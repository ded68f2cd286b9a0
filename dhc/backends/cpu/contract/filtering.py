"""How far results of Winograd's method and of its relatives may be from those of a plain sum, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from dhc.backends.cpu.contract import minimal_transform, winograd_transform
from dhc.backends.cpu.contract.minimal_plan import axes
from dhc.backends.cpu.contract.spec import ConvSpec, Spec


@dataclass(frozen=True)
class Filtering:
    """The method of a convolution that is no plain sum.

    Attributes:
        tile: outputs that it computes at a time, as ``4x4``.
        terms: length of its sums.
        bound: of the error of any result, relative to the largest magnitude of the input times the sum of the
            magnitudes of an output channel's weights.
    """

    tile: str
    terms: int
    bound: float


def filtering(spec: Spec) -> Filtering | None:
    """What a chosen spec means for rounding; None for plain sums."""
    if not isinstance(spec, ConvSpec):
        return None
    terms = spec.in_channels // spec.groups * spec.padded(spec.kernel, 1)[0]
    if spec.winograd:
        m = spec.winograd
        return Filtering(f"{m}x{m}", terms, winograd_transform.error_bound(m, terms))
    if spec.minimal:
        terms *= spec.stride[-1]
        rows, columns = axes(spec, spec.minimal)
        return Filtering("x".join(map(str, spec.minimal)), terms, minimal_transform.error_bound(rows, columns, terms))
    return None
