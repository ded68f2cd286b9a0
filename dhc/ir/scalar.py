"""Scalar expressions: what one element of a result is, in a form that every device's printer understands.

Kinds of ops (`kinds.py`) describe their results with these. An expression is an immutable tree; each node knows its
dtype. Index arithmetic is in i64. There is no broadcasting and no implicit promotion here: `cast` is explicit,
Python numbers take the dtype of the other operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from dhc.ir.dtypes import DType, boolean, c64, c128, f32, f64, i64, u32
from dhc.ir.symbols import Dim, SymExpr

Number = Union[int, float, bool, complex]
BINARY = ("add", "sub", "mul", "div", "floordiv", "mod", "fmod", "pow", "min", "max",
          "and", "or", "xor", "shl", "shr", "complex")  # fmt: skip
"""Binary functions. On integers `div` truncates toward zero, `floordiv` floors, `mod` has the sign of the divisor,
`fmod` that of the dividend; `min`/`max` return NaN when either operand is NaN.
`complex` makes c64 of two f32, c128 of two f64."""
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
UNARY = ("neg", "not", "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos",
         "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "floor", "ceil", "trunc",
         "rint", "sign", "isnan", "isinf", "real", "imag", "conj")  # fmt: skip
"""Unary functions. `rint` rounds half to even; `sign` of NaN is NaN; `isnan`, `isinf` give bool."""


class ScalarExpr:
    """Base of scalar expressions; carries the operators."""

    dtype: DType

    def __add__(self, other: Scalar) -> ScalarExpr:
        return binary("add", self, other)

    def __radd__(self, other: Scalar) -> ScalarExpr:
        return binary("add", lift(other, self.dtype), self)

    def __sub__(self, other: Scalar) -> ScalarExpr:
        return binary("sub", self, other)

    def __rsub__(self, other: Scalar) -> ScalarExpr:
        return binary("sub", lift(other, self.dtype), self)

    def __mul__(self, other: Scalar) -> ScalarExpr:
        return binary("mul", self, other)

    def __rmul__(self, other: Scalar) -> ScalarExpr:
        return binary("mul", lift(other, self.dtype), self)

    def __truediv__(self, other: Scalar) -> ScalarExpr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Scalar) -> ScalarExpr:
        return binary("div", lift(other, self.dtype), self)

    def __floordiv__(self, other: Scalar) -> ScalarExpr:
        return binary("floordiv", self, other)

    def __mod__(self, other: Scalar) -> ScalarExpr:
        return binary("mod", self, other)

    def __neg__(self) -> ScalarExpr:
        return unary("neg", self)

    def __and__(self, other: Scalar) -> ScalarExpr:
        return binary("and", self, other)

    def __or__(self, other: Scalar) -> ScalarExpr:
        return binary("or", self, other)

    def __xor__(self, other: Scalar) -> ScalarExpr:
        return binary("xor", self, other)

    def __lshift__(self, other: Scalar) -> ScalarExpr:
        return binary("shl", self, other)

    def __rshift__(self, other: Scalar) -> ScalarExpr:
        return binary("shr", self, other)

    def __lt__(self, other: Scalar) -> ScalarExpr:
        return compare("lt", self, other)

    def __le__(self, other: Scalar) -> ScalarExpr:
        return compare("le", self, other)

    def __gt__(self, other: Scalar) -> ScalarExpr:
        return compare("gt", self, other)

    def __ge__(self, other: Scalar) -> ScalarExpr:
        return compare("ge", self, other)

    def eq(self, other: Scalar) -> ScalarExpr:
        """Equality as an expression (`==` compares trees)."""
        return compare("eq", self, other)

    def ne(self, other: Scalar) -> ScalarExpr:
        """Inequality as an expression."""
        return compare("ne", self, other)


Scalar = Union[ScalarExpr, Number]


@dataclass(frozen=True, eq=False)
class Const(ScalarExpr):
    """A literal. Equal ones are the same number bit for bit: -0.0 is not 0.0, and NaN is NaN."""

    dtype: DType
    value: Number

    def _bits(self) -> tuple[str, ...]:
        parts = (self.value.real, self.value.imag) if isinstance(self.value, complex) else (self.value,)
        return tuple(float(p).hex() if self.dtype.kind in "fc" else str(int(p)) for p in parts)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Const) and self.dtype == other.dtype and self._bits() == other._bits()

    def __hash__(self) -> int:
        return hash((self.dtype.name, self.value if self.value == self.value else "nan"))


@dataclass(frozen=True)
class Size(ScalarExpr):
    """The run-time value of a dim (i64); becomes a kernel parameter."""

    dim: Dim
    dtype: DType = i64


@dataclass(frozen=True)
class Var(ScalarExpr):
    """A loop variable, a let-bound name or an accumulator of the surrounding loop nest."""

    name: str
    dtype: DType = i64


@dataclass(frozen=True)
class Load(ScalarExpr):
    """Element `index` (one i64 expression per axis) of operand number `operand`."""

    dtype: DType
    operand: int
    index: tuple[ScalarExpr, ...]


@dataclass(frozen=True)
class Unary(ScalarExpr):
    """A function of UNARY."""

    dtype: DType
    function: str
    operand: ScalarExpr


@dataclass(frozen=True)
class Binary(ScalarExpr):
    """A function of BINARY or COMPARE on operands of one dtype."""

    dtype: DType
    function: str
    left: ScalarExpr
    right: ScalarExpr


@dataclass(frozen=True)
class Select(ScalarExpr):
    """`if_true` where `condition`, else `if_false`; the branch not taken must not be loaded (no out-of-range reads)."""

    dtype: DType
    condition: ScalarExpr
    if_true: ScalarExpr
    if_false: ScalarExpr


@dataclass(frozen=True)
class Cast(ScalarExpr):
    """Conversion. Float to integer truncates; out of range is undefined unless `saturate`; to bool is `!= 0`."""

    dtype: DType
    operand: ScalarExpr
    saturate: bool = False


@dataclass(frozen=True)
class Bitcast(ScalarExpr):
    """Reinterprets the bits as another type of the same width."""

    dtype: DType
    operand: ScalarExpr


@dataclass(frozen=True)
class Checked(ScalarExpr):
    """An index: negative values count from the end; out of range makes the kernel return error 1."""

    index: ScalarExpr
    extent: ScalarExpr
    dtype: DType = i64


@dataclass(frozen=True)
class Philox(ScalarExpr):
    """Word `lane` (0..3) of Philox4x32-10 for a 64-bit key and a 64-bit counter, as u32 (Salmon et al., SC'11)."""

    key: ScalarExpr
    counter: ScalarExpr
    lane: int
    dtype: DType = u32


def const(value: Number, dtype: DType) -> Const:
    """A literal of a dtype."""
    return Const(dtype, value)


def lift(value: Scalar, dtype: DType) -> ScalarExpr:
    """A Python number as a literal of `dtype`; expressions are returned as they are."""
    return value if isinstance(value, ScalarExpr) else Const(dtype, value)


def size(dim: Dim) -> ScalarExpr:
    """A dim as an expression."""
    return Size(dim) if isinstance(dim, SymExpr) else Const(i64, int(dim))


def _same(a: ScalarExpr, b: Scalar, what: str) -> ScalarExpr:
    right = lift(b, a.dtype)
    if right.dtype != a.dtype:
        raise TypeError(f"{what} of {a.dtype} and {right.dtype}: cast one of them")
    return right


def binary(function: str, a: ScalarExpr, b: Scalar) -> ScalarExpr:
    """Applies a function of BINARY; trivial integer index arithmetic is simplified."""
    right = _same(a, b, function)
    if a.dtype == i64:
        simple = _simplify(function, a, right)
        if simple is not None:
            return simple
    result = a.dtype if function != "complex" else c64 if a.dtype == f32 else c128
    return Binary(result, function, a, right)


def _simplify(function: str, a: ScalarExpr, b: ScalarExpr) -> ScalarExpr | None:
    left = a.value if isinstance(a, Const) else None
    right = b.value if isinstance(b, Const) else None
    if left is not None and right is not None and function in ("add", "sub", "mul"):
        x, y = int(left), int(right)  # type: ignore[arg-type]
        return Const(i64, x + y if function == "add" else x - y if function == "sub" else x * y)
    if function == "add":
        return b if left == 0 else a if right == 0 else None
    if function == "sub":
        return a if right == 0 else None
    if function == "mul":
        if left == 0 or right == 0:
            return Const(i64, 0)
        return b if left == 1 else a if right == 1 else None
    if function in ("div", "floordiv"):
        return a if right == 1 else None
    return None


def compare(function: str, a: ScalarExpr, b: Scalar) -> ScalarExpr:
    """Applies a function of COMPARE; gives bool. NaN compares unequal to everything."""
    return Binary(boolean, function, a, _same(a, b, function))


def unary(function: str, a: ScalarExpr) -> ScalarExpr:
    """Applies a function of UNARY."""
    result = a.dtype
    if function in ("isnan", "isinf"):
        result = boolean
    elif function in ("real", "imag", "abs") and a.dtype.kind == "c":
        result = f32 if a.dtype.bits == 64 else f64
    return Unary(result, function, a)


def select(condition: ScalarExpr, if_true: Scalar, if_false: Scalar) -> ScalarExpr:
    """Chooses by a bool expression; at least one branch must be an expression."""
    anchor = if_true if isinstance(if_true, ScalarExpr) else if_false
    assert isinstance(anchor, ScalarExpr), "select of two Python numbers: lift one of them"
    true, false = lift(if_true, anchor.dtype), lift(if_false, anchor.dtype)
    if isinstance(condition, Const):
        return true if condition.value else false
    return Select(anchor.dtype, condition, true, _same(true, false, "select"))


def cast(a: ScalarExpr, dtype: DType, saturate: bool = False) -> ScalarExpr:
    """Converts to `dtype` (no node when it already is)."""
    return a if a.dtype == dtype else Cast(dtype, a, saturate)


def minimum(a: ScalarExpr, b: Scalar) -> ScalarExpr:
    """The smaller; NaN when either is NaN."""
    return binary("min", a, b)


def maximum(a: ScalarExpr, b: Scalar) -> ScalarExpr:
    """The larger; NaN when either is NaN."""
    return binary("max", a, b)


def logical_and(*terms: ScalarExpr) -> ScalarExpr:
    """Conjunction of bools; true for none."""
    total: ScalarExpr | None = None
    for term in terms:
        total = term if total is None else binary("and", total, term)
    return Const(boolean, True) if total is None else total


def children(e: ScalarExpr) -> tuple[ScalarExpr, ...]:
    """Direct subexpressions."""
    if isinstance(e, (Unary, Cast, Bitcast)):
        return (e.operand,)
    if isinstance(e, Binary):
        return (e.left, e.right)
    if isinstance(e, Select):
        return (e.condition, e.if_true, e.if_false)
    if isinstance(e, Load):
        return e.index
    if isinstance(e, Checked):
        return (e.index, e.extent)
    if isinstance(e, Philox):
        return (e.key, e.counter)
    return ()


def rebuild(e: ScalarExpr, parts: Sequence[ScalarExpr]) -> ScalarExpr:
    """The same node over other subexpressions."""
    if isinstance(e, Unary):
        return Unary(e.dtype, e.function, parts[0])
    if isinstance(e, Cast):
        return Cast(e.dtype, parts[0], e.saturate)
    if isinstance(e, Bitcast):
        return Bitcast(e.dtype, parts[0])
    if isinstance(e, Binary):
        if e.dtype == i64 and e.function in BINARY:
            return binary(e.function, parts[0], parts[1])
        return Binary(e.dtype, e.function, parts[0], parts[1])
    if isinstance(e, Select):
        return Select(e.dtype, *parts)
    if isinstance(e, Load):
        return Load(e.dtype, e.operand, tuple(parts))
    if isinstance(e, Checked):
        return Checked(parts[0], parts[1])
    if isinstance(e, Philox):
        return Philox(parts[0], parts[1], e.lane)
    return e


def transform(e: ScalarExpr, visit: Callable[[ScalarExpr], ScalarExpr | None]) -> ScalarExpr:
    """Rewrites a tree: `visit` may return a replacement for a node (its subtree is then left alone) or None."""
    replaced = visit(e)
    if replaced is not None:
        return replaced
    old = children(e)
    new = tuple(transform(c, visit) for c in old)
    return e if all(n is o for n, o in zip(new, old)) else rebuild(e, new)
