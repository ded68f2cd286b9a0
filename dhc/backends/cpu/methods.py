"""By which method each contraction of a graph is computed, and the kernels for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import KernelCode, Spec
from dhc.backends.cpu.contract.stored_code import cached_emit
from dhc.backends.cpu.target import CpuTarget
from dhc.ir.symbols import Dim


@dataclass(frozen=True)
class Layer:
    """A contraction with what is known about its sizes when compiling.

    Attributes:
        spec: what it computes; fields that only matter for speed are not set yet.
        sizes: the run-time sizes of its kernel, without the kernel's own constants.
        in_size: spatial sizes of a convolution's input; empty for products of matrices.
        out_size: spatial sizes of its output.
        exact: only methods whose results differ from a plain sum by the order of summation alone.
        finite: whether its weights are: else their products with padding count.
    """

    spec: Spec
    sizes: tuple[Dim, ...]
    in_size: tuple[Dim, ...] = ()
    out_size: tuple[Dim, ...] = ()
    exact: bool = False
    finite: bool = True


class Methods:
    """The choice of the cost models.

    Args:
        cache: where generated kernels are kept; None: nowhere.
    """

    def __init__(self, cache: KernelCache | None = None) -> None:
        self._cache = cache

    def choose(self, layer: Layer, target: CpuTarget, storage: str = "") -> tuple[Spec, CpuTarget]:
        """The spec with a method, and the target with the cache sizes for which its blocks are cut.

        Args:
            layer: the contraction.
            target: the CPU.
            storage: how weights are to be stored where a method can read them so: "", ``bf16`` or ``f16``.
        """
        further: dict[str, Any] = {"storage": storage} if storage else {}
        if not layer.finite:
            further["finite"] = False
        chosen = registry.normalize(layer.spec, target, layer.in_size, layer.out_size, exact=layer.exact, **further)
        return chosen, target

    def emit(self, spec: Spec, target: CpuTarget) -> KernelCode:
        """The kernel of a chosen spec."""
        return cached_emit(spec, target, self._cache)
