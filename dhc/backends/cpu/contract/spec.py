"""What a contraction kernel computes, as frozen plain data, and what a generator returns.

Specs hold what is fixed at compile time; sizes that are not in a spec are run-time parameters of the kernel. Much of a
spec reaches the kernel as constant parameters too, so that many layers share one kernel. A kernel's name is a hash of
its code and target: equal names mean equal code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from dhc_runtime.errors import UsageError

from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.llvm.builder import Module
from dhc.backends.cpu.target import CpuTarget

DTYPES = ("f32", "f64")


@dataclass(frozen=True)
class KernelCode:
    """One generated kernel of the CPU kernel ABI.

    Attributes:
        name: symbol, a content hash.
        ir: LLVM IR text of its module.
        buffers: roles of the buffers in their order: operands (``a``, ``b``, ``input``, ``weight``, ``bias``,
            ``epilogue0``...), then ``out``, then ``scratch`` when ``scratch_per_thread`` is not 0.
        params: names of the run-time sizes in their order.
        scratch_per_thread: bytes of scratch memory for each thread; the ``scratch`` buffer holds this times the number
            of threads and is 64-byte aligned.
        constants: values that the caller appends to the run-time sizes: what the spec fixes and the code leaves open.
    """

    name: str
    ir: str
    buffers: tuple[str, ...]
    params: tuple[str, ...]
    scratch_per_thread: int
    constants: tuple[int, ...] = ()


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(
            f"contraction kernels compute in {' or '.join(DTYPES)}, not {dtype}",
            hint="Other dtypes go through the loop-level path",
        )


@dataclass(frozen=True)
class MatmulSpec:
    """``out[b, m, n] = epilogue(sum_k a[b, m, k] * b[b, k, n] + bias)``.

    Attributes:
        dtype: of all operands and the result, ``f32`` or ``f64``.
        transpose_a: ``a`` is stored ``[b, k, m]``.
        transpose_b: ``b`` is stored ``[b, n, k]``.
        packed_b: ``b`` is one constant matrix, laid out by :func:`~dhc.backends.cpu.contract.matmul.pack_b`.
        bias: ``none``, ``n`` (a vector over columns) or ``m`` (a vector over rows).
        epilogue: what happens to each result before it is stored.
        storage: how a packed ``b`` of f32 is stored: "" as it is, else ``bf16`` or ``f16``, widened in registers.
        last_rows: rows beyond whole register tiles where the number of rows is known: they get a tile of their own. A
            matter of speed, never of results' validity; 0: none or unknown.
        copied_steps: k where it is known and the rows of ``a``, so far apart, would displace each other in the
            first-level cache: a tile then reads a copy of its rows; 0: they are read in place.
        streamed: the number of rows where they are few and ``b`` is packed: it is then laid out by
            :func:`~dhc.backends.cpu.contract.streaming.pack_streamed`; 0: any number.
    """

    dtype: str = "f32"
    transpose_a: bool = False
    transpose_b: bool = False
    packed_b: bool = False
    bias: str = "none"
    epilogue: Epilogue = field(default_factory=Epilogue)
    storage: str = ""
    last_rows: int = 0
    copied_steps: int = 0
    streamed: int = 0

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        if self.bias not in ("none", "n", "m"):
            raise UsageError(f"matmul bias is none, n or m, not {self.bias}")
        if self.storage and (self.storage not in ("bf16", "f16") or self.dtype != "f32" or not self.packed_b):
            raise UsageError(f"only a packed b of f32 is stored in bf16 or f16, not as {self.storage}")
        if self.copied_steps and (self.transpose_a or not self.packed_b):
            raise UsageError("rows are copied where a is read as it is and b is packed")

    def text(self) -> str:
        """Canonical text."""
        return (
            f"matmul {self.dtype} ta={int(self.transpose_a)} tb={int(self.transpose_b)} "
            f"packed_b={int(self.packed_b)} bias={self.bias} epilogue=[{self.epilogue.text()}]"
            + (f" storage={self.storage}" if self.storage else "")
            + (f" last_rows={self.last_rows}" if self.last_rows else "")
            + (f" copied_steps={self.copied_steps}" if self.copied_steps else "")
            + (f" streamed={self.streamed}" if self.streamed else "")
        )


@dataclass(frozen=True)
class _WindowSpec:
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pad_begin: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    dtype: str = "f32"
    epilogue: Epilogue = field(default_factory=Epilogue)
    narrow: bool = False
    winograd: int = 0
    minimal: tuple[int, ...] = ()
    method: str = ""
    positions: int = 0
    width: int = 0
    storage: str = ""
    pairs: bool = False

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)
        rank = len(self.kernel)
        if not 1 <= rank <= 3:
            raise UsageError(f"convolution kernels have 1 to 3 spatial dimensions, not {rank}")
        for name, default in (("stride", 1), ("dilation", 1), ("pad_begin", 0)):
            value = tuple(getattr(self, name)) or (default,) * rank
            if len(value) != rank:
                raise UsageError(f"{name} has {len(value)} values for {rank} spatial dimensions")
            object.__setattr__(self, name, value)
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise UsageError(f"{self.groups} groups do not divide {self.in_channels} and {self.out_channels} channels")
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.dilation) < 1:
            raise UsageError("kernel sizes, strides and dilations are at least 1")
        if self.storage and (self.storage not in ("bf16", "f16") or self.dtype != "f32"):
            raise UsageError(f"weights of f32 are stored in bf16 or f16, not as {self.storage}")
        if self.pairs and (self.storage != "bf16" or self.winograd):
            raise UsageError("pairs are of bf16, in plain sums")

    def text(self) -> str:
        """Canonical text."""

        def dims(values: tuple[int, ...]) -> str:
            return "x".join(map(str, values))

        return (
            f"{type(self).__name__} {self.dtype} {self.in_channels}->{self.out_channels} g={self.groups} "
            f"k={dims(self.kernel)} s={dims(self.stride)} d={dims(self.dilation)} p={dims(self.pad_begin)} "
            f"bias={int(self.bias)} narrow={int(self.narrow)} winograd={self.winograd} "
            f"method={self.method}:{self.positions} epilogue=[{self.epilogue.text()}]"
            + (f" minimal={dims(self.minimal)}" if self.minimal else "")
            + (f" width={self.width}" if self.width else "")
            + (f" storage={self.storage} pairs={int(self.pairs)}" if self.storage else "")
        )

    @property
    def steps(self) -> int:
        """Steps of the sum over the input channels of a group: channels, or pairs of them."""
        return -(-(self.in_channels // self.groups) // (2 if self.pairs else 1))

    def padded(self, values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
        """``values`` extended by leading dimensions to three."""
        z, y, x = (fill,) * (3 - len(values)) + tuple(values)
        return z, y, x


@dataclass(frozen=True)
class ConvSpec(_WindowSpec):
    """A convolution (cross-correlation) of ``[N, C, (D, (H,)) W]`` by weights ``[OC, C / groups, k...]``.

    Attributes:
        in_channels: C.
        out_channels: OC.
        kernel: window size of each spatial dimension, 1 to 3 of them.
        stride: defaults to 1.
        dilation: defaults to 1.
        pad_begin: zeros before the first element of each dimension (negative crops); what follows the last element is
            given by the output size at run time.
        groups: number of groups.
        bias: whether a vector over output channels is added.
        dtype: ``f32`` or ``f64``.
        epilogue: what happens to each result before it is stored.
        narrow: the output is expected to be only a few vectors wide: a matter of speed, never of results' validity.
            :func:`~dhc.backends.cpu.contract.registry.normalize` sets it.
        winograd: size of the output tiles of Winograd's method, 0: without it. It changes rounding within a bound
            (:func:`~dhc.backends.cpu.contract.winograd_transform.error_bound`); ``normalize`` sets it as well.
        minimal: rows and columns of the output tiles of minimal filtering, which is Winograd's method for windows of
            other lengths than 3x3; empty: without it. As for ``winograd``.
        method: ``pointwise`` for outputs of the input's size, ``channels`` for a known number of output positions,
            ``depthwise-channels`` for a known width; empty: what serves every size. ``normalize`` sets it.
        positions: number of output positions of an image, for ``channels``; of a row, for ``depthwise-channels``.
        storage: how weights of f32 are stored: "" as they are, else ``bf16`` or ``f16``.
        pairs: products are of pairs of input channels in bf16 (:mod:`~dhc.backends.cpu.contract.factors`);
            ``normalize`` sets it where the target multiplies them and that is faster.
    """


@dataclass(frozen=True)
class ConvTransposeSpec(_WindowSpec):
    """A transposed convolution (the gradient of a convolution with respect to its input).

    ``[N, C, (D, (H,)) W]`` by weights ``[C, OC / groups, k...]``; output position ``o`` takes input position ``i``
    times tap ``k`` where ``o = i * stride - pad_begin + k * dilation``. The output size, with end pads and output
    padding in it, is given at run time. Attributes as :class:`ConvSpec`; the method ``channels`` is for ``positions``
    outputs in rows of ``width``.
    """


Spec = MatmulSpec | ConvSpec | ConvTransposeSpec


def buffer_names(first: str, second: str, bias: bool, epilogue: Epilogue, scratch: bool = True) -> list[str]:
    """Roles of a kernel's buffers in their order, as :class:`KernelCode` lists them."""
    added = [f"epilogue{i}" for i in range(len(epilogue.operands()))]
    return [first, second, *["bias"] * bias, *added, "out", *["scratch"] * scratch]


# Name of the kernel while it is being written; :func:`finished` replaces it by a content hash.
KERNEL = "dhc_kernel"


def finished(
    module: Module,
    target: CpuTarget,
    stem: str,
    buffers: Sequence[str],
    params: Sequence[str],
    scratch_per_thread: int,
    constants: Sequence[int] = (),
) -> KernelCode:
    """Names a kernel after its content: specs that lead to the same code share one kernel."""
    text = module.text()
    digest = hashlib.sha256(f"{target.text()}\n{text}".encode()).hexdigest()[:20]
    name = f"{stem}_{digest}"
    ir = text.replace(f"@{KERNEL}(", f"@{name}(")
    return KernelCode(name, ir, tuple(buffers), tuple(params), scratch_per_thread, tuple(constants))
