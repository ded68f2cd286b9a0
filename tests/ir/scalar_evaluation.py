"""Evaluates the definitions that backends compile (scalar expressions of kinds) with NumPy.

An independent second reading of every element-wise, mapped and reduced op: what the definition says must be what the
reference says. Expressions are evaluated on whole index grids; reductions step through their domain one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, boolean, i64
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce
from dhc.ir.op import Call
from dhc.ir.ops.cast import convert
from dhc.ir.ops.random import philox_4x32_10
from dhc.ir.ops.view import broadcast_index
from dhc.ir.precision import HALF

_NUMPY_UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint, "sign": np.sign,
    "isnan": np.isnan, "isinf": np.isinf, "real": np.real, "imag": np.imag, "conj": np.conj,
    "not": np.invert, "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}  # fmt: skip
_NUMPY_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floordiv": np.floor_divide, "mod": np.mod,
    "fmod": np.fmod, "pow": np.power, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "complex": lambda a, b: _complex(a, b),
}  # fmt: skip


class OutOfRangeError(Exception):
    """A Checked index is out of range: the kernel would return status 1."""


def _complex(a: Any, b: Any) -> Any:
    result = np.empty(np.broadcast_shapes(a.shape, b.shape), np.result_type(a.dtype, np.complex64))
    result.real, result.imag = a, b
    return result


def _divide(a: Any, b: Any) -> Any:
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    down = np.floor_divide(a, b)
    return down + ((down * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)


class Evaluator:
    """Evaluates expressions over one set of operand arrays.

    Attributes:
        arrays: operands.
        variables: arrays by the name of a `Var`.
    """

    def __init__(self, arrays: Sequence[np.ndarray], variables: dict[str, Any]) -> None:
        self.arrays = arrays
        self.variables = variables
        self._seen: dict[tuple[int, int], Any] = {}
        self._partials: dict[int, bool] = {}
        self._alive: list[tuple[s.ScalarExpr, Any]] = []  # keeps ids valid

    def __call__(self, e: s.ScalarExpr, active: Any = True) -> Any:
        """The value of `e`; `active` says where it is needed (elsewhere indices may be out of range)."""
        if active is not True and not self._partial(e):
            active = True
        key = (id(e), id(active))
        if key in self._seen:
            return self._seen[key]
        value = np.asarray(self._evaluate(e, active))
        assert as_dtype(value.dtype).storage == e.dtype.storage, (e, value.dtype, e.dtype)
        self._seen[key] = value
        self._alive.append((e, active))
        return value

    def _partial(self, e: s.ScalarExpr) -> bool:
        """Whether evaluating `e` where it is not needed may go wrong (loads, checks, integer divisions)."""
        known = self._partials.get(id(e))
        if known is None:
            divides = isinstance(e, s.Binary) and e.function in ("div", "mod", "fmod", "floordiv")
            risky = isinstance(e, (s.Load, s.Checked)) or (divides and not isinstance(s.children(e)[1], s.Const))
            known = risky or any(self._partial(c) for c in s.children(e))
            self._partials[id(e)] = known
            self._alive.append((e, True))
        return known

    def _evaluate(self, e: s.ScalarExpr, active: Any) -> Any:
        if isinstance(e, s.Const):
            return np.asarray(e.value).astype(e.dtype.numpy)
        if isinstance(e, s.Size):
            raise AssertionError(f"{e.dim} is not bound")
        if isinstance(e, s.Var):
            return self.variables[e.name]
        if isinstance(e, s.Load):
            return self._load(e, active)
        if isinstance(e, s.Select):
            condition = self(e.condition, active)
            true = self(e.if_true, condition if active is True else condition & active)
            return np.where(condition, true, self(e.if_false, ~condition if active is True else ~condition & active))
        if isinstance(e, s.Checked):
            index, extent = self(e.index, active), self(e.extent, active)
            wrong = (index < -extent) | (index >= extent)
            if np.any(wrong & active):
                raise OutOfRangeError
            return np.where(index < 0, index + extent, index)
        if isinstance(e, s.Cast):
            return _cast(self(e.operand, active), e)
        if isinstance(e, s.Bitcast):
            return self(e.operand, active).copy().view(e.dtype.numpy)
        if isinstance(e, s.Philox):
            return self._philox(e, active)
        if isinstance(e, s.Unary):
            operand = self(e.operand, active)
            if operand.dtype.itemsize == 2 and operand.dtype.kind not in "iu":
                assert e.function in ("neg", "abs", "isnan", "isinf"), f"{e.function} computes in half precision"
            return np.asarray(_NUMPY_UNARY[e.function](operand)).astype(e.dtype.numpy)
        assert isinstance(e, s.Binary)
        left, right = self(e.left, active), self(e.right, active)
        assert left.dtype == right.dtype
        if e.dtype in HALF:
            assert e.function in ("min", "max"), f"{e.function} computes in half precision"
        if e.dtype.is_integer and e.function in ("div", "mod", "fmod", "floordiv") and active is not True:
            right = np.where(active, right, 1).astype(right.dtype)
        if e.function == "div":
            return _divide(left, right)
        return np.asarray(_NUMPY_BINARY[e.function](left, right)).astype(e.dtype.numpy)

    def _load(self, e: s.Load, active: Any) -> Any:
        array = self.arrays[e.operand]
        index = [self(i, active) for i in e.index]
        assert len(index) == array.ndim
        for axis, position in enumerate(index):
            if np.any(((position < 0) | (position >= array.shape[axis])) & active & self._anywhere()):
                raise AssertionError(f"operand {e.operand}: index out of range on axis {axis} of {array.shape}")
        if array.size == 0:
            shape = np.broadcast_shapes(*(np.shape(i) for i in index), np.shape(active))
            return np.zeros(shape, array.dtype)
        return array[tuple(np.clip(i, 0, n - 1) for i, n in zip(index, array.shape))]

    def _anywhere(self) -> bool:
        return all(np.size(v) for v in self.variables.values())

    def _philox(self, e: s.Philox, active: Any) -> Any:
        key = int(self(e.key, active)) & 0xFFFFFFFFFFFFFFFF
        counter = np.asarray(self(e.counter, active)).astype(np.uint64)
        zero = np.zeros_like(counter)
        words = (counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), zero, zero)
        return philox_4x32_10(words, (key & 0xFFFFFFFF, key >> 32))[e.lane]


def _cast(x: Any, e: s.Cast) -> Any:
    source = as_dtype(x.dtype)
    if e.dtype == boolean:
        return x != 0
    if source.is_float and e.dtype.is_integer:
        return convert(x, e.dtype, e.saturate)
    return x.astype(e.dtype.numpy)


def _loader(arrays: Sequence[np.ndarray], types: Sequence[Any]) -> Callable[..., s.ScalarExpr]:
    return lambda operand, index: s.Load(types[operand].dtype, operand, tuple(index))


def _grid(shape: Sequence[int], rank: int) -> list[np.ndarray]:
    """Open index arrays i64 over `shape`, each of `rank` axes."""
    return [
        np.arange(n, dtype=np.int64).reshape([-1 if a == axis else 1 for a in range(rank)])
        for axis, n in enumerate(shape)
    ]


def evaluate_kind(call: Call, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results that the definition of the call's op gives; `call` has static shapes and result types."""
    kind = call.op.kind
    shape = call.results[0].shape
    index = [s.Var(f"i{axis}", i64) for axis in range(len(shape))]
    variables: dict[str, Any] = {f"i{axis}": g for axis, g in enumerate(_grid(shape, len(shape)))}
    load = _loader(arrays, call.types)
    if isinstance(kind, Elementwise):
        scalars = [load(n, broadcast_index(index, t.shape, shape)) for n, t in enumerate(call.types)]
        return [_full(Evaluator(arrays, variables)(kind.expr(call, *scalars)), shape)]
    if isinstance(kind, Map):
        return [_full(Evaluator(arrays, variables)(kind.element(call, index, load)), shape)]
    assert isinstance(kind, (Reduce, Contract))
    spec = kind.spec(call)
    accs: tuple[Any, ...] = tuple(Evaluator(arrays, variables)(e) for e in spec.init(index, load))
    dtypes: list[DType] = [e.dtype for e in spec.init(index, load)]
    red = [s.Var(f"r{axis}", i64) for axis in range(len(spec.domain))]
    names = [s.Var(f"acc{n}", d) for n, d in enumerate(dtypes)]
    step = spec.step(index, red, load, tuple(names))
    assert [e.dtype for e in step] == dtypes
    for position in np.ndindex(*(int(d) for d in spec.domain)):  # type: ignore[arg-type]
        local = dict(variables)
        local.update({f"r{axis}": np.int64(p) for axis, p in enumerate(position)})
        local.update({f"acc{n}": a for n, a in enumerate(accs)})
        evaluator = Evaluator(arrays, local)
        accs = tuple(evaluator(e) for e in step)
    final = Evaluator(arrays, {**variables, **{f"acc{n}": a for n, a in enumerate(accs)}})
    return [_full(final(e), r.shape) for e, r in zip(spec.finish(index, tuple(names)), call.results)]


def _full(value: Any, shape: Sequence[int]) -> np.ndarray:
    return np.broadcast_to(value, tuple(shape))
