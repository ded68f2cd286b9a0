"""What happens to a contraction's results before they are stored: bias apart, any chain of elementwise operations.

An epilogue writes vector IR. It sees one vector of neighbouring results and may read further operands at the same
place, so that a residual add or a channel-wise scale costs no pass over memory of its own. The lowering subclasses
:class:`Epilogue` to append fused elementwise expressions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from dhc.backends.cpu.llvm.builder import Function, Value


@dataclass(frozen=True)
class EpilogueContext:
    """The place of a vector of results.

    Attributes:
        function: writer of the IR.
        dtype: ``f32`` or ``f64``.
        lanes: elements in the vector.
        type: LLVM type of the vector.
        operand: ``operand(i)`` loads the vector of operand ``i`` that belongs to the results.
    """

    function: Function
    dtype: str
    lanes: int
    type: str
    operand: Callable[[int], Value]


@dataclass(frozen=True)
class Epilogue:
    """The identity, and the base of all epilogues.

    An operand is one extra buffer of the kernel, of the kernel's dtype, and one of these shapes:

    - ``same``: the shape of the output, contiguous;
    - ``row``: a vector over output channels (convolutions) or rows (matmul);
    - ``column``: a vector over columns (matmul only);
    - ``scalar``: one element.
    """

    def operands(self) -> tuple[str, ...]:
        """The shapes of the operands."""
        return ()

    def text(self) -> str:
        """Canonical text: epilogues with equal text write equal code."""
        return ""

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """Writes the IR that turns a vector of sums into a vector of results."""
        return value


@dataclass(frozen=True)
class Relu(Epilogue):
    """``max(x, 0)``; NaN stays NaN."""

    def text(self) -> str:
        """See `Epilogue`."""
        return "relu"

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """See `Epilogue`."""
        function, zero = context.function, context.function.constant(0.0, context.type)
        # x < 0 ? 0 : x keeps NaN, and becomes one max instruction.
        return function.select(function.compare("olt", value, zero), zero, value)


@dataclass(frozen=True)
class Clip(Epilogue):
    """``min(max(x, low), high)``; NaN stays NaN."""

    low: float
    high: float

    def text(self) -> str:
        """See `Epilogue`."""
        return f"clip({float(self.low).hex()},{float(self.high).hex()})"

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """See `Epilogue`."""
        function = context.function
        low, high = (function.constant(bound, context.type) for bound in (self.low, self.high))
        value = function.select(function.compare("olt", value, low), low, value)
        return function.select(function.compare("ogt", value, high), high, value)


@dataclass(frozen=True)
class LeakyRelu(Epilogue):
    """``x`` where it is at least 0, else ``slope * x``."""

    slope: float

    def text(self) -> str:
        """See `Epilogue`."""
        return f"leaky_relu({float(self.slope).hex()})"

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """See `Epilogue`."""
        function, zero = context.function, context.function.constant(0.0, context.type)
        scaled = function.binary("fmul", value, function.constant(self.slope, context.type))
        return function.select(function.compare("olt", value, zero), scaled, value)


@dataclass(frozen=True)
class AddOperand(Epilogue):
    """``x + operand``: the residual add, or a vector over channels, rows or columns."""

    shape: str = "same"

    def operands(self) -> tuple[str, ...]:
        """See `Epilogue`."""
        return (self.shape,)

    def text(self) -> str:
        """See `Epilogue`."""
        return f"add({self.shape})"

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """See `Epilogue`."""
        return context.function.binary("fadd", value, context.operand(0))


def _shifted_operand(context: EpilogueContext, first: int, index: int) -> Value:
    return context.operand(first + index)


@dataclass(frozen=True)
class Chain(Epilogue):
    """Epilogues one after another; their operands follow in the same order."""

    parts: tuple[Epilogue, ...]

    def operands(self) -> tuple[str, ...]:
        """See `Epilogue`."""
        return tuple(shape for part in self.parts for shape in part.operands())

    def text(self) -> str:
        """See `Epilogue`."""
        return ";".join(part.text() for part in self.parts)

    def emit(self, context: EpilogueContext, value: Value) -> Value:
        """See `Epilogue`."""
        first = 0
        for part in self.parts:
            shifted = EpilogueContext(
                context.function,
                context.dtype,
                context.lanes,
                context.type,
                functools.partial(_shifted_operand, context, first),
            )
            value = part.emit(shifted, value)
            first += len(part.operands())
        return value
