"""Kinds of ops: what an op *is*, so that a backend can say how such a thing runs.

A backend lowers kinds, never single ops: a new op of a known kind runs on every device the day it is declared.
Kinds that compute element by element carry a definition in scalar expressions. In these functions

* ``call`` is the `Call` of the op (operand types, attributes, result types; dims may be symbolic),
* ``index`` is one i64 expression per axis of the result,
* ``load(i, idx)`` reads operand ``i`` at ``idx``; it is a plain function, so definitions compose and fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from dhc.ir.scalar import ScalarExpr
from dhc.ir.symbols import Dim

if TYPE_CHECKING:
    from dhc.ir.op import Call

Index = Sequence[ScalarExpr]
LoadFn = Callable[[int, Index], ScalarExpr]


@dataclass(frozen=True)
class Elementwise:
    """Each result element depends on the elements of the (broadcast) operands at the same position.

    Attributes:
        expr: ``(call, *scalars) -> scalar``, one scalar per operand.
    """

    expr: Callable[..., ScalarExpr]
    name: str = "elementwise"


@dataclass(frozen=True)
class Map:
    """Each result element is an expression of operand elements at computed positions.

    Views (transpose, slice, pad, concat), gathers (positions read from an operand) and generators (iota, random).

    Attributes:
        element: ``(call, index, load) -> scalar``; ops with several results give one such function per result.
        role: ``view``, ``gather`` or ``generate``: a hint for fusion and placement.
    """

    element: Callable[[Call, Index, LoadFn], ScalarExpr]
    role: str = "view"

    @property
    def name(self) -> str:
        """The kind's name for tables."""
        return self.role


@dataclass(frozen=True)
class ReduceSpec:
    """A reduction with everything filled in for one call.

    Attributes:
        domain: sizes of the reduced iteration space, outermost first.
        folds: running values (argmax has two: value and position).
        step: ``(index, red, load, accs) -> new accs``; `red` has one expression per domain axis. Executed in
            row-major order of the domain; when `associative`, a backend may reorder integers and vectorise floats.
        finish: ``(index, accs) -> results``, one per result of the op.
        init: values of the accumulators before the first step, as expressions over index.
    """

    domain: tuple[Dim, ...]
    init: Callable[[Index, LoadFn], tuple[ScalarExpr, ...]]
    step: Callable[[Index, Index, LoadFn, tuple[ScalarExpr, ...]], tuple[ScalarExpr, ...]]
    finish: Callable[[Index, tuple[ScalarExpr, ...]], tuple[ScalarExpr, ...]]
    associative: bool = True


@dataclass(frozen=True)
class Reduce:
    """Each result element combines many operand elements. `spec(call)` gives the details.

    `role` is ``reduce`` (over axes) or ``window`` (pooling, morphology, stencils).
    """

    spec: Callable[[Call], ReduceSpec]
    role: str = "reduce"

    @property
    def name(self) -> str:
        """The kind's name for tables."""
        return self.role


@dataclass(frozen=True)
class Contract:
    """Sum of products: matmul, conv, transposed conv. Devices have generators for it; `spec` is the generic meaning.

    Attributes:
        form: ``matmul``, ``conv`` or ``conv_transpose``.
        spec: the same as a plain reduction: correct on every device and dtype.
    """

    form: str
    spec: Callable[[Call], ReduceSpec]

    @property
    def name(self) -> str:
        """The kind's name for tables."""
        return "contract"


@dataclass(frozen=True)
class Opaque:
    """An op given by an imperative function on arrays (sort, scatter, recurrences, suppression).

    The function takes NumPy arrays for the operands, then for the results (already allocated, to be filled), then,
    when `count`, an i64 array of one element for the number of elements found, then for the scratch buffers, then
    the numbers of `args`, then, when `parallel`, the two ends of the range of items. It uses only loops, arithmetic,
    `math` and indexing (Numba compiles it in nopython mode; CUDA runs it in one thread), allocates nothing and
    returns 0 or an error code of the kernel ABI (1: index out of bounds). A function that serves any rank may end in
    ``*numbers``; only integers are then among them.

    Results whose size depends on the data: `bounds` gives the largest shape that each result can have; memory is
    planned with it. The function writes such a result compactly, as if its shape were the final one, from the start
    of its array, and the final number of elements along the new symbol into the count array; that number is then
    bound to the op's attribute of kind ``symbol``. Such functions are always `flat` and run on one thread.

    Attributes:
        function: the function; its globals are `math`, numbers, and functions of this kind that it calls (they take
            and give numbers and arrays; backends write them into the function).
        args: ``call -> numbers or dims`` appended to the arguments.
        scratch: ``call -> [(dtype, shape), ...]`` further arrays it may use, shared by all threads (each item uses its
            own part).
        role: ``scan`` (recurrent), ``scatter``, ``sort`` or ``opaque``.
        parallel: ``call -> dim`` number of independent work items; the function then takes two more numbers at the
            end, the half-open range of items to do. None: runs on one thread.
        flat: all arrays are passed 1-D, row-major, whatever their shape (a scalar has one element); else n-d.
        bounds: ``call -> [largest shape, ...]``, one for each result; None: the results have their inferred shapes.
        count: the function reports the size of the new symbol as described above.
    """

    function: Callable[..., int]
    args: Callable[[Call], Sequence[Any]] | None = None
    scratch: Callable[[Call], Sequence[tuple[Any, tuple[Dim, ...]]]] | None = None
    role: str = "opaque"
    parallel: Callable[[Call], Dim] | None = None
    flat: bool = False
    bounds: Callable[[Call], Sequence[tuple[Dim, ...]]] | None = None
    count: bool = False

    @property
    def name(self) -> str:
        """The kind's name for tables."""
        return self.role


@dataclass(frozen=True)
class Composite:
    """An op that is short for a few others (softmax, normalisations): backends and gradients use the parts.

    Attributes:
        build: ``(builder, operands, call) -> results`` writes the parts with the builder.
    """

    build: Callable[..., Sequence[Any]]
    name: str = "composite"


@dataclass(frozen=True)
class Structural:
    """Handled by the compiler itself: constants, control flow, fused groups, symbol binding, sequences.

    Attributes:
        name: ``constant``, ``control``, ``group``, ``bind``, ``copy`` or ``host`` (interpreter only).
    """

    name: str


Kind = Union[Elementwise, Map, Reduce, Contract, Opaque, Composite, Structural]
