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
class LooseTensorType:
    """Tensors of one element type whose shapes differ: the elements of a sequence, or what an optional may hold.

    No value has this type: an element taken out of its sequence gets a shape, with new symbols for open sizes.

    Attributes:
        dtype: element type.
        shape: sizes, None where they differ; None when even the rank differs or is not known.
        nothing: there is no element yet (then `shape` is None): joins with any shape.
    """

    dtype: DType
    shape: tuple[int | None, ...] | None = None
    nothing: bool = False

    def __post_init__(self) -> None:
        if self.nothing and self.shape is not None:
            raise ValueError("a type without elements has no shape")

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[{'-' if self.nothing else '*'}]"
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True)
class SequenceType:
    """A list of values of one element type (ONNX sequences).

    Sizes that inference finds for elements are numbers or open, never symbols, so that the type means the same in
    every graph that a sequence passes through.
    """

    element: Type

    def __str__(self) -> str:
        return f"seq<{self.element}>"


@dataclass(frozen=True)
class OptionalType:
    """A value or nothing (ONNX optionals)."""

    element: Type

    def __str__(self) -> str:
        return f"opt<{self.element}>"


Type = Union[TensorType, LooseTensorType, SequenceType, OptionalType]


def loosened(type_: Type) -> Type:
    """The type as that of an element: sizes that are not numbers are left open, meaning is dropped."""
    if isinstance(type_, TensorType):
        if type_.is_static:
            return TensorType(type_.dtype, type_.shape)
        return LooseTensorType(type_.dtype, tuple(d if isinstance(d, int) else None for d in type_.shape))
    if isinstance(type_, LooseTensorType):
        if type_.shape is None or None in type_.shape:
            return type_
        return TensorType(type_.dtype, tuple(d for d in type_.shape if d is not None))
    return replace(type_, element=loosened(type_.element))


def joined(a: Type, b: Type) -> Type | None:
    """The narrowest type that holds the values of both, in terms of elements; None when there is none.

    A value is also an optional that is present.
    """
    if isinstance(a, OptionalType) or isinstance(b, OptionalType):
        left, right = (t.element if isinstance(t, OptionalType) else t for t in (a, b))
        inner = joined(left, right)
        return None if inner is None else OptionalType(inner)
    if isinstance(a, SequenceType) or isinstance(b, SequenceType):
        if not (isinstance(a, SequenceType) and isinstance(b, SequenceType)):
            return None
        inner = joined(a.element, b.element)
        return None if inner is None else SequenceType(inner)
    return _joined_tensors(loosened(a), loosened(b))


def _joined_tensors(a: Any, b: Any) -> Type | None:
    if a.dtype != b.dtype:
        return None
    for one, other in ((a, b), (b, a)):
        if isinstance(one, LooseTensorType) and one.nothing:
            joined_type: Type = other
            return joined_type
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return LooseTensorType(a.dtype)
    return loosened(LooseTensorType(a.dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape))))


def accepts(wanted: Type, given: Type) -> bool:
    """Whether every value of `given` is one of `wanted`; for sequences and optionals."""
    common = joined(wanted, given)
    return common is not None and common == loosened(wanted)


def substitute(type_: Any, bindings: Mapping[str, Dim]) -> Any:
    """Replaces symbols in every dim of a type."""
    if isinstance(type_, TensorType):
        return replace(type_, shape=tuple(symbols.substitute(d, bindings) for d in type_.shape))
    if isinstance(type_, LooseTensorType):
        return type_
    return replace(type_, element=substitute(type_.element, bindings))


def free_symbols(type_: Any) -> list[str]:
    """Symbols that occur in the dims of a type, sorted."""
    if isinstance(type_, TensorType):
        return sorted({s for d in type_.shape for s in symbols.free_symbols(d)})
    if isinstance(type_, LooseTensorType):
        return []
    return free_symbols(type_.element)
