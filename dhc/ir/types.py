"""Types of values: tensors (plain, quantized, image), sequences and optionals. All frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

from dhc.ir import symbols
from dhc.ir.dtypes import DType
from dhc.ir.symbols import Dim, Shape


@dataclass(frozen=True)
class QuantType:
    """Affine quantization: real = (stored - zero_point) * scale.

    Attributes:
        scale: one positive number per channel, or one for the tensor.
        zero_point: integers, as many as scales.
        axis: channel axis, None for per-tensor.
        bits: significant bits of the stored integer, 2 to 16.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    bits: int = 8

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.zero_point) or not self.scale:
            raise ValueError("a quantized type needs one zero point per scale")
        if self.axis is None and len(self.scale) != 1:
            raise ValueError("per-tensor quantization has exactly one scale")
        if any(not s > 0 for s in self.scale):
            raise ValueError("quantization scales are positive")
        if not 2 <= self.bits <= 16:
            raise ValueError("quantization bits are 2 to 16")

    def __str__(self) -> str:
        scales = ", ".join(repr(s) for s in self.scale)
        zeros = ", ".join(str(z) for z in self.zero_point)
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"quant(scale=[{scales}], zero_point=[{zeros}]{axis}, bits={self.bits})"


@dataclass(frozen=True)
class TensorType:
    """A tensor: element type and shape, sizes may be symbolic.

    Attributes:
        dtype: element type.
        shape: dims, outermost first, row-major.
        quant: how stored integers stand for reals, None for plain numbers.
    """

    dtype: DType
    shape: Shape = ()
    quant: QuantType | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for dim in self.shape:
            if isinstance(dim, int) and dim < 0:
                raise ValueError(f"negative size in shape {self.shape}")

    @property
    def rank(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """Number of elements."""
        return symbols.product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes of the contiguous tensor."""
        return self.numel * self.dtype.itemsize

    @property
    def is_static(self) -> bool:
        """True when no dim is symbolic."""
        return all(isinstance(d, int) for d in self.shape)

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        """The same type with another shape (quantization per axis is dropped when the rank changes)."""
        return replace(self, shape=tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        """A plain tensor type of this shape and another element type."""
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        dims = ", ".join(symbols.format_dim(d) for d in self.shape)
        tail = f" {self.quant}" if self.quant else ""
        return f"{self.dtype}[{dims}]{tail}"

    def __repr__(self) -> str:
        return f"<{self}>"


COLOR_SPACES = ("gray", "rgb", "rgba", "bgr", "hsv", "ycbcr", "none")
UNITS = ("raw", "hu", "normalized", "label", "probability")


@dataclass(frozen=True)
class ImageType(TensorType):
    """A tensor that is an image or a volume.

    Attributes:
        color: colour space of the channel axis, one of COLOR_SPACES.
        spacing: millimetres between samples, one per spatial axis; empty when unknown.
        origin: position of the first sample in patient space, millimetres; empty when unknown.
        orientation: row-major direction cosines, spatial rank squared numbers; empty when unknown.
        unit: meaning of the intensities, one of UNITS.
        layout: one letter per axis out of ``NCDHW`` (e.g. ``CHW``); empty when unknown.
    """

    color: str = field(default="gray", kw_only=True)
    spacing: tuple[float, ...] = field(default=(), kw_only=True)
    origin: tuple[float, ...] = field(default=(), kw_only=True)
    orientation: tuple[float, ...] = field(default=(), kw_only=True)
    unit: str = field(default="raw", kw_only=True)
    layout: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.color not in COLOR_SPACES:
            raise ValueError(f"unknown colour space {self.color!r}; known: {', '.join(COLOR_SPACES)}")
        if self.unit not in UNITS:
            raise ValueError(f"unknown intensity unit {self.unit!r}; known: {', '.join(UNITS)}")
        if self.layout and (len(self.layout) != len(self.shape) or set(self.layout) - set("NCDHW")):
            raise ValueError(f"layout {self.layout!r} does not fit rank {len(self.shape)}")

    def __str__(self) -> str:
        parts = [f"color={self.color}", f"unit={self.unit}"]
        if self.layout:
            parts.append(f"layout={self.layout}")
        for name in ("spacing", "origin", "orientation"):
            numbers = getattr(self, name)
            if numbers:
                parts.append(f"{name}=[{', '.join(repr(float(n)) for n in numbers)}]")
        return f"{super().__str__()} image({', '.join(parts)})"

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True)
class SequenceType:
    """A list of values of one element type (ONNX sequences)."""

    element: Type

    def __str__(self) -> str:
        return f"seq<{self.element}>"


@dataclass(frozen=True)
class OptionalType:
    """A value or nothing (ONNX optionals)."""

    element: Type

    def __str__(self) -> str:
        return f"opt<{self.element}>"


Type = Union[TensorType, SequenceType, OptionalType]


def substitute(type_: Any, bindings: Mapping[str, Dim]) -> Any:
    """Replaces symbols in every dim of a type."""
    if isinstance(type_, TensorType):
        return replace(type_, shape=tuple(symbols.substitute(d, bindings) for d in type_.shape))
    return replace(type_, element=substitute(type_.element, bindings))


def free_symbols(type_: Any) -> list[str]:
    """Symbols that occur in the dims of a type, sorted."""
    if isinstance(type_, TensorType):
        return sorted({s for d in type_.shape for s in symbols.free_symbols(d)})
    return free_symbols(type_.element)
