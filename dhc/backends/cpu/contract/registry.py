"""Which generator serves which contraction: the one table that the lowering asks.

The first entry that accepts a spec on a target is taken. A faster method for some cases (Winograd for 3x3 windows, say)
is one more entry before the general ones; entries with ``exact=False`` change rounding beyond the order of summation
and are passed over when exact results are asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import CompileError

from dhc.backends.cpu.contract.channels import emit_channels, pack_channels
from dhc.backends.cpu.contract.choice import choose
from dhc.backends.cpu.contract.depthwise import emit_depthwise, is_depthwise
from dhc.backends.cpu.contract.depthwise_channels import emit_depthwise_channels, pack_depthwise_channels
from dhc.backends.cpu.contract.depthwise_direct import emit_depthwise_direct, is_direct
from dhc.backends.cpu.contract.factors import has_pairs
from dhc.backends.cpu.contract.few_channels import emit_few_channels, has_few_channels
from dhc.backends.cpu.contract.matmul import emit_matmul, pack_b
from dhc.backends.cpu.contract.matmul_pairs import emit_matmul_pairs, pack_pairs, takes_pairs
from dhc.backends.cpu.contract.minimal import emit_minimal
from dhc.backends.cpu.contract.minimal_choice import minimal_tile
from dhc.backends.cpu.contract.minimal_plan import pack_weights as pack_minimal
from dhc.backends.cpu.contract.pointwise import emit_pointwise, pack_pointwise
from dhc.backends.cpu.contract.regions import emit_regions, pack_regions
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, KernelCode, MatmulSpec, Spec
from dhc.backends.cpu.contract.streaming import emit_streamed, pack_streamed
from dhc.backends.cpu.contract.transposed import emit_transposed
from dhc.backends.cpu.contract.transposed_channels import (
    emit_transposed_channels,
    for_small_map,
    pack_transposed_channels,
)
from dhc.backends.cpu.contract.transposed_plan import is_shared
from dhc.backends.cpu.contract.transposed_plan import pack_weights as pack_transposed
from dhc.backends.cpu.contract.transposed_plan import pays as pays_transposed
from dhc.backends.cpu.contract.window import emit_window
from dhc.backends.cpu.contract.window_plan import pack_weights as pack_window
from dhc.backends.cpu.contract.winograd import emit_winograd
from dhc.backends.cpu.contract.winograd_choice import winograd_tile
from dhc.backends.cpu.contract.winograd_plan import pack_weights as pack_winograd
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Generator:
    """A way to compute some contractions.

    Attributes:
        name: shown by ``dhc check`` and profiles.
        accepts: whether it serves a spec on a target.
        emit: writes the kernel.
        pack: lays out the constant operand (weights, packed ``b``) as the kernel reads it.
        exact: whether results differ from the plain sum only by the order of summation.
        stored: whether it reads weights that are stored in 16 bits, and multiplies pairs of bf16.
    """

    name: str
    accepts: Callable[[Any, CpuTarget], bool]
    emit: Callable[[Any, CpuTarget], KernelCode]
    pack: Callable[[Any, CpuTarget, Any], Any]
    exact: bool = True
    stored: bool = False


GENERATORS: tuple[Generator, ...] = (
    Generator("matmul-pairs", takes_pairs, emit_matmul_pairs, pack_pairs, stored=True),
    Generator(
        "matmul-streamed",
        lambda spec, target: isinstance(spec, MatmulSpec) and spec.streamed > 0,
        emit_streamed,
        pack_streamed,
    ),
    Generator(
        "matmul",
        lambda spec, target: isinstance(spec, MatmulSpec),
        emit_matmul,
        lambda spec, target, b: pack_b(spec, target, b) if spec.packed_b else b,
        stored=True,
    ),
    Generator(
        "winograd",
        lambda spec, target: isinstance(spec, ConvSpec) and spec.winograd > 0,
        emit_winograd,
        pack_winograd,
        exact=False,
    ),
    Generator(
        "minimal",
        lambda spec, target: isinstance(spec, ConvSpec) and len(spec.minimal) > 0,
        emit_minimal,
        pack_minimal,
        exact=False,
    ),
    Generator(
        "transposed-channels",
        lambda spec, target: isinstance(spec, ConvTransposeSpec) and spec.method == "channels",
        emit_transposed_channels,
        pack_transposed_channels,
    ),
    Generator(
        "transposed",
        lambda spec, target: isinstance(spec, ConvTransposeSpec) and not spec.narrow and is_shared(spec),
        emit_transposed,
        pack_transposed,
        stored=True,
    ),
    Generator(
        "regions",
        lambda spec, target: isinstance(spec, ConvSpec) and spec.method == "regions",
        emit_regions,
        pack_regions,
        stored=True,
    ),
    Generator(
        "channels",
        lambda spec, target: isinstance(spec, ConvSpec) and spec.method == "channels",
        emit_channels,
        pack_channels,
        stored=True,
    ),
    Generator(
        "pointwise",
        lambda spec, target: isinstance(spec, ConvSpec) and spec.method == "pointwise",
        emit_pointwise,
        pack_pointwise,
        stored=True,
    ),
    Generator(
        "depthwise-channels",
        lambda spec, target: isinstance(spec, ConvSpec) and spec.method == "depthwise-channels",
        emit_depthwise_channels,
        pack_depthwise_channels,
    ),
    Generator(
        "few-channels",
        lambda spec, target: isinstance(spec, ConvSpec) and has_few_channels(spec, target),
        emit_few_channels,
        pack_pointwise,
    ),
    Generator(
        "depthwise-direct",
        lambda spec, target: isinstance(spec, ConvSpec) and is_direct(spec, target),
        emit_depthwise_direct,
        lambda spec, target, weights: weights.reshape(-1),
    ),
    Generator(
        "depthwise",
        lambda spec, target: isinstance(spec, ConvSpec) and is_depthwise(spec),
        emit_depthwise,
        lambda spec, target, weights: weights.reshape(-1),
    ),
    Generator(
        "window",
        lambda spec, target: isinstance(spec, (ConvSpec, ConvTransposeSpec)),
        emit_window,
        pack_window,
        stored=True,
    ),
)


def select(spec: Spec, target: CpuTarget, *, exact: bool = False) -> Generator:
    """Finds the generator for a spec.

    Raises:
        CompileError: when none accepts it.
    """
    for generator in GENERATORS:
        if not (generator.exact or not exact) or not (generator.stored or not spec.storage):
            continue
        if generator.accepts(spec, target):
            return generator
    raise CompileError(f"no kernel generator for {spec.text()} on {target.name}")


def _pays_narrow(spec: ConvSpec, target: CpuTarget, width: int) -> bool:
    """Whether a copy for each x tap costs less than computing the columns between the rows of a square map."""
    lanes = target.lanes(spec.dtype)
    if width >= lanes or spec.out_channels // spec.groups < 64:
        return False
    span = (spec.kernel[-1] - 1) * spec.dilation[-1]
    gapless = -(-width * width // lanes)
    with_gaps = -(-((width + span) * width - span) // lanes)
    return 1.15 * gapless < with_gaps


def normalize(
    spec: Spec,
    target: CpuTarget,
    in_size: Sequence[Any] = (),
    out_size: Sequence[Any] = (),
    *,
    exact: bool = False,
    storage: str = "",
    finite: bool = True,
) -> Spec:
    """Sets what only matters for speed from what is known about sizes, so that equal needs share one kernel.

    Args:
        spec: a spec.
        target: the target.
        in_size: spatial sizes of the input, numbers or symbolic expressions; empty: unknown.
        out_size: spatial sizes of the output.
        exact: only methods that change no more than the order of summation.
        storage: how weights are to be stored where the method can read them so: "", ``bf16`` or ``f16``. With ``bf16``
            factors are multiplied as pairs where the target does that and it is faster.
        finite: whether the weights are: else their products with padding count.
    """
    if isinstance(spec, MatmulSpec):
        return spec
    storage = storage if spec.dtype == "f32" else ""
    pairs = storage == "bf16" and has_pairs(target) and spec.in_channels // spec.groups > 1
    if isinstance(spec, ConvSpec):
        tile = 0 if exact else winograd_tile(spec, target, in_size, out_size, pairs=pairs, finite=finite)
        if tile:
            return dataclasses.replace(spec, winograd=tile)
        minimal = () if exact else minimal_tile(spec, target, out_size, pairs=pairs)
        if minimal:
            return dataclasses.replace(spec, minimal=minimal)
        output_width = out_size[-1] if out_size and isinstance(out_size[-1], int) else None
        matters = spec.kernel[-1] > 1 and spec.stride[-1] == 1 and not is_depthwise(spec)
        narrow = matters and output_width is not None and _pays_narrow(spec, target, output_width)
        spec = dataclasses.replace(spec, narrow=narrow)
        return _stored(choose(spec, target, in_size, out_size, finite=finite), target, storage, pairs)
    small = None if storage else for_small_map(spec, target, out_size)
    if small is not None:
        return small
    if is_shared(spec):
        width = out_size[-1] if out_size else None
        spec = dataclasses.replace(spec, narrow=isinstance(width, int) and not pays_transposed(spec, target, width))
    return _stored(spec, target, storage, pairs)


def _stored(spec: ConvSpec | ConvTransposeSpec, target: CpuTarget, storage: str, pairs: bool) -> Spec:
    """The spec with its weights in 16 bits, where its method reads them so."""
    if not storage or not select(spec, target).stored:
        return spec
    return dataclasses.replace(spec, storage=storage, pairs=pairs)


def emit(spec: Spec, target: CpuTarget, *, exact: bool = False) -> KernelCode:
    """Generates the kernel for a (normalised) spec."""
    return select(spec, target, exact=exact).emit(spec, target)


def pack_weights(
    spec: Spec, target: CpuTarget, weights: np.ndarray[Any, Any], *, exact: bool = False
) -> np.ndarray[Any, Any]:
    """Lays out a contraction's constant operand as the kernel that :func:`emit` generates reads it.

    Args:
        spec: the same spec as given to :func:`emit`.
        target: the same target.
        weights: ``[OC, C / groups, k...]`` for convolutions, ``[C, OC / groups, k...]`` for transposed ones, ``b`` for
            a matmul with ``packed_b``; of the spec's dtype.
        exact: as given to :func:`emit`.
    """
    packed: np.ndarray[Any, Any] = select(spec, target, exact=exact).pack(spec, target, weights)
    return packed
