"""What a `Value` can do in Python: operators, indexing and the usual methods, in the manner of NumPy.

Each writes nodes into the value's graph. Python numbers become constants of the value's dtype; arrays keep theirs.
``==`` and ``!=`` stay identity (values are keys of dictionaries): use `dhc.ops.eq` and `dhc.ops.ne`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dhc_runtime.errors import ShapeError, TypeMismatchError

from dhc.ir import symbols
from dhc.ir.dtypes import DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.location import caller_location
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import TensorType

if TYPE_CHECKING:
    from dhc.ir.graph import Value


class ValueOperators:
    """The operators and methods of `Value`."""

    __slots__ = ()

    # NumPy must not take a value for a sequence of elements: it leaves `array * value` to `Value.__rmul__`.
    __array_ufunc__ = None
    __iter__ = None

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Value:
        return _binary("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return _binary("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return _binary("sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return _binary("sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return _binary("mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return _binary("mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return _binary("div", other, self)

    def __floordiv__(self, other: Any) -> Value:
        return _floor_division(self, other)

    def __rfloordiv__(self, other: Any) -> Value:
        return _floor_division(other, self)

    def __mod__(self, other: Any) -> Value:
        return _binary("mod", self, other)

    def __rmod__(self, other: Any) -> Value:
        return _binary("mod", other, self)

    def __pow__(self, other: Any) -> Value:
        return _binary("pow", self, other)

    def __rpow__(self, other: Any) -> Value:
        return _binary("pow", other, self)

    def __matmul__(self, other: Any) -> Value:
        return _matmul(self, other)

    def __rmatmul__(self, other: Any) -> Value:
        return _matmul(other, self)

    def __neg__(self) -> Value:
        return _call("neg", self)

    def __pos__(self) -> Value:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Value:
        return _call("abs", self)

    # ---- comparison and logic ------------------------------------------------------------------------------------

    def __lt__(self, other: Any) -> Value:
        return _binary("lt", self, other)

    def __le__(self, other: Any) -> Value:
        return _binary("le", self, other)

    def __gt__(self, other: Any) -> Value:
        return _binary("gt", self, other)

    def __ge__(self, other: Any) -> Value:
        return _binary("ge", self, other)

    def __and__(self, other: Any) -> Value:
        return _logic("and", self, other)

    def __rand__(self, other: Any) -> Value:
        return _logic("and", other, self)

    def __or__(self, other: Any) -> Value:
        return _logic("or", self, other)

    def __ror__(self, other: Any) -> Value:
        return _logic("or", other, self)

    def __xor__(self, other: Any) -> Value:
        return _logic("xor", self, other)

    def __rxor__(self, other: Any) -> Value:
        return _logic("xor", other, self)

    def __invert__(self) -> Value:
        value: Any = self
        return _call("logical_not" if value.dtype.kind == "b" else "bit_not", value)

    def __lshift__(self, other: Any) -> Value:
        return _binary("shift_left", self, other)

    def __rshift__(self, other: Any) -> Value:
        return _binary("shift_right", self, other)

    def __bool__(self) -> NoReturn:
        raise TypeMismatchError(
            f"{self!r} has no truth value while the graph is built",
            where=str(caller_location()),
            hint="choose with dhc.ops.where, or compare with `is None`",
        )

    # ---- shape ---------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of axes."""
        value: Any = self
        return int(value.type.rank)

    @property
    def T(self) -> Value:  # noqa: N802 - NumPy's name
        """All axes in reverse order."""
        return self.transpose()

    def reshape(self, *shape: Any) -> Value:
        """The same elements under another shape; one dim may be -1. Dims may be symbols."""
        wanted = [symbols.parse_dim(d) if isinstance(d, str) else d for d in _flat(shape)]
        if -1 in wanted:
            at = wanted.index(-1)
            known = symbols.product(d for i, d in enumerate(wanted) if i != at)
            if known == 0:
                _fail(f"cannot tell the size -1 in {wanted}: the other sizes multiply to 0")
            value: Any = self
            wanted[at] = symbols.floordiv(value.type.numel, known)
        return _call("reshape", self, shape=wanted)

    def transpose(self, *perm: Any) -> Value:
        """The axes in another order; none given: reversed."""
        order = _flat(perm)
        order = [a + self.rank if isinstance(a, int) and a < 0 else a for a in order]
        return _call("transpose", self, perm=order or list(reversed(range(self.rank))))

    def flatten(self) -> Value:
        """All elements as a vector."""
        value: Any = self
        return self.reshape(value.type.numel)

    def squeeze(self, axis: int | Sequence[int] | None = None) -> Value:
        """Without axes of size 1: all of them, or the given ones."""
        value: Any = self
        axes = _axes(axis, self.rank) if axis is not None else [i for i, d in enumerate(value.shape) if d == 1]
        for a in axes:
            if value.shape[a] != 1:
                _fail(f"axis {a} of {value.type} has not size 1")
        return self.reshape([d for i, d in enumerate(value.shape) if i not in axes])

    def broadcast_to(self, *shape: Any) -> Value:
        """Repeats axes of size 1 and adds leading ones."""
        return _call("broadcast_to", self, shape=_flat(shape))

    def astype(self, dtype: DType | str | np.dtype[Any] | type) -> Value:
        """The elements converted to another dtype."""
        value: Any = self
        wanted = as_dtype(dtype)
        return value if wanted == value.dtype else _call("cast", value, dtype=wanted)

    # ---- reductions ----------------------------------------------------------------------------------------------

    def sum(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Sum over axes (None: all)."""
        return _reduce("reduce_sum", self, axis, keepdims)

    def mean(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Mean over axes (None: all)."""
        return _reduce("reduce_mean", self, axis, keepdims)

    def prod(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Product over axes (None: all)."""
        return _reduce("reduce_prod", self, axis, keepdims)

    def max(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Largest element over axes (None: all)."""
        return _reduce("reduce_max", self, axis, keepdims)

    def min(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Smallest element over axes (None: all)."""
        return _reduce("reduce_min", self, axis, keepdims)

    def any(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Whether one element is true, over axes (None: all)."""
        return _reduce("reduce_any", self, axis, keepdims)

    def all(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Value:
        """Whether all elements are true, over axes (None: all)."""
        return _reduce("reduce_all", self, axis, keepdims)

    def argmax(self, axis: int, keepdims: bool = False) -> Value:
        """Position of the largest element along an axis."""
        return _call("argmax", self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int, keepdims: bool = False) -> Value:
        """Position of the smallest element along an axis."""
        return _call("argmin", self, axis=axis, keepdims=keepdims)

    # ---- indexing ------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Value:
        return _index(self, key if isinstance(key, tuple) else (key,))


def _call(op: str, *operands: Any, **attrs: Any) -> Value:
    from dhc.ir.builder import builder_of

    result: Value = builder_of(*operands).call(op, *operands, attrs=attrs)
    return result


def _binary(op: str, a: Any, b: Any) -> Value:
    if not _is_operand(a) or not _is_operand(b):
        return NotImplemented  # type: ignore[no-any-return]
    return _call(op, a, b)


def _is_operand(x: Any) -> bool:
    return isinstance(x, (ValueOperators, bool, int, float, complex, np.ndarray, np.generic, list, tuple))


def _fail(message: str) -> NoReturn:
    raise ShapeError(message, where=str(caller_location()))


def _flat(items: tuple[Any, ...]) -> list[Any]:
    """Accepts ``f(2, 3)`` and ``f((2, 3))``."""
    if len(items) == 1 and isinstance(items[0], (tuple, list)):
        return list(items[0])
    return list(items)


def _axes(axis: int | Sequence[int], rank: int) -> list[int]:
    axes = [axis] if isinstance(axis, int) else list(axis)
    for a in axes:
        if not -rank <= a < rank:
            _fail(f"axis {a} is out of range for rank {rank}")
    return [a % rank for a in axes]


def _reduce(op: str, x: Any, axis: int | Sequence[int] | None, keepdims: bool) -> Value:
    if axis is None:
        return _call(op, x, keepdims=keepdims)
    axes = _axes(axis, x.rank)
    if not axes:  # NumPy: an empty tuple of axes reduces nothing, where the op would reduce all
        return x  # type: ignore[no-any-return]
    return _call(op, x, axes=axes, keepdims=keepdims)


def _logic(name: str, a: Any, b: Any) -> Value:
    value: Any = a if isinstance(a, ValueOperators) else b
    return _binary(f"{'logical' if value.dtype.kind == 'b' else 'bit'}_{name}", a, b)


def _floor_division(a: Any, b: Any) -> Value:
    """The quotient rounded down, as NumPy's; what wraps around does so in the result alone."""
    rest = _binary("mod", a, b)
    if rest is NotImplemented:
        return NotImplemented  # type: ignore[no-any-return]
    if rest.dtype.is_float:
        # (a - a mod b) / b is whole but for rounding, which the last step removes.
        return _call("round", _call("div", _call("sub", a, rest), b))
    quotient = _call("div", a, b)
    if rest.dtype.kind == "u":
        return quotient
    assert rest.producer is not None
    x, y = rest.producer.operands
    # Integers truncate; a - a mod b could wrap around, so the step down is taken where signs differ.
    down = _logic("and", _call("ne", rest, 0), _logic("xor", _call("lt", x, 0), _call("lt", y, 0)))
    return _call("sub", quotient, _call("cast", down, dtype=quotient.dtype))


def _matmul(a: Any, b: Any) -> Value:
    if not _is_operand(a) or not _is_operand(b):
        return NotImplemented  # type: ignore[no-any-return]
    from dhc.ir.builder import builder_of

    builder = builder_of(a, b)
    x: Value = a if isinstance(a, ValueOperators) else builder.constant(np.asarray(a))  # type: ignore[assignment]
    y: Value = b if isinstance(b, ValueOperators) else builder.constant(np.asarray(b))  # type: ignore[assignment]
    if x.rank == 0 or y.rank == 0:
        _fail("`@` needs vectors or matrices, not scalars")
    left, right = x.rank == 1, y.rank == 1
    if left:
        x = x.reshape(1, x.shape[0])
    if right:
        y = y.reshape(y.shape[0], 1)
    product = _call("matmul", x, y)
    if left or right:
        shape = list(product.shape)
        if right:
            del shape[-1]
        if left:
            del shape[-1 if right else -2]
        product = product.reshape(shape)
    return product


# ---- indexing ------------------------------------------------------------------------------------------------------


def _index(x: Any, key: tuple[Any, ...]) -> Value:
    if not isinstance(x.type, TensorType):
        raise TypeMismatchError(f"{x.type} cannot be indexed", where=str(caller_location()))
    used = sum(1 for k in key if k is not None and k is not Ellipsis)
    if used > x.rank:
        _fail(f"{used} indices for {x.type}, which has rank {x.rank}")
    if sum(1 for k in key if k is Ellipsis) > 1:
        _fail("an index has only one ellipsis")
    at = next((i for i, k in enumerate(key) if k is Ellipsis), len(key))
    whole = (slice(None),) * (x.rank - used)
    key = (*key[:at], *whole, *key[at + 1 :])

    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    shape: list[Dim] = []  # after slicing: taken axes dropped, new ones added
    gathered: tuple[int, Any] | None = None
    for k in key:
        if k is None:
            shape.append(1)
            continue
        dim = x.shape[len(starts)]
        if isinstance(k, (int, np.integer)) and not isinstance(k, bool):
            starts.append(_position(x, len(starts), dim, int(k)))
            sizes.append(1)
            steps.append(1)
        elif isinstance(k, slice):
            start, size, step = _slice(k, dim)
            starts.append(start)
            sizes.append(size)
            steps.append(step)
            shape.append(size)
        else:
            if gathered is not None:
                _fail("an index has only one array of positions")
            gathered = (len(shape), _positions(k))
            starts.append(0)
            sizes.append(dim)
            steps.append(1)
            shape.append(dim)
    result: Value = x
    if (tuple(starts), tuple(sizes), tuple(steps)) != ((0,) * x.rank, tuple(x.shape), (1,) * x.rank):
        result = _call("slice", result, starts=starts, sizes=sizes, steps=steps)
    if tuple(shape) != tuple(result.shape):
        result = result.reshape(shape)
    if gathered is not None:
        result = _call("gather", result, gathered[1], axis=gathered[0])
    return result


def _position(x: Any, axis: int, dim: Dim, k: int) -> Dim:
    if isinstance(dim, int) and not -dim <= k < dim:
        _fail(f"index {k} is out of range for axis {axis} of {x.type}")
    return k if k >= 0 else dim + k


def _positions(k: Any) -> Any:
    value: Any = k if isinstance(k, ValueOperators) else np.asarray(k)
    kind = value.dtype.kind
    if kind not in "iu":
        raise TypeMismatchError(
            f"cannot index with {k!r}", where=str(caller_location()),
            hint="use integers, slices, None, ... or integer positions; dhc.ops.compress and where take conditions",
        )  # fmt: skip
    return value if isinstance(k, ValueOperators) else value.astype(np.int64)


def _slice(k: slice, dim: Dim) -> tuple[Dim, Dim, int]:
    """First element, number of elements and step of Python's slice rule, also for symbolic sizes."""
    step = 1 if k.step is None else k.step
    if not isinstance(step, int) or step == 0:
        _fail(f"the step of a slice is an integer other than 0, got {k.step!r}")
    last: Dim = 0 if step > 0 else -1
    start = (last if step > 0 else dim - 1) if k.start is None else _bound(k.start, dim, step)
    stop = (dim if step > 0 else -1) if k.stop is None else _bound(k.stop, dim, step)
    span = stop - start if step > 0 else start - stop
    size = symbols.maximum(symbols.ceildiv(span, abs(step)), 0)
    return (0 if size == 0 else start), size, step


def _bound(bound: Any, dim: Dim, step: int) -> Dim:
    """A bound of a slice, counted from the front and clamped into the axis (-1 and size - 1 for negative steps)."""
    if not isinstance(bound, (int, np.integer, SymExpr)):
        _fail(f"the bounds of a slice are sizes, got {bound!r}")
    low, high = (0, dim) if step > 0 else (-1, dim - 1)
    position = bound if isinstance(bound, SymExpr) else int(bound)
    if isinstance(position, int) and position < 0:
        position = dim + position
    return symbols.maximum(symbols.minimum(position, high), low)
