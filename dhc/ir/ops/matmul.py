"""Matrix products, and what all contractions share: the accumulator and the result dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.builder import Builder
from dhc.ir.dtypes import COMPLEX, FLOATS, INTS, NUMERIC, DType
from dhc.ir.gradients import unbroadcast
from dhc.ir.graph import Node, Value
from dhc.ir.inference import broadcast_shapes, require_equal
from dhc.ir.kinds import Contract, Index, LoadFn, ReduceSpec
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.view import broadcast_index
from dhc.ir.precision import compute_dtype
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

OUT = Attr("out", "dtype", None, "element type of the result, also of the sum; by default the operands' own")

Accumulators = tuple[s.ScalarExpr, ...]


def contraction_dtype(call: Call) -> DType:
    """Checks the dtypes of the two factors and the attribute `out`; returns the result's dtype.

    Factors have one dtype, or are any two integer types when `out` is an integer type. `out` is of the factors' sort
    (integer, float, complex) and not narrower.
    """
    left, right = call.types[0].dtype, call.types[1].dtype
    out: DType | None = call.attrs.out
    if left != right and not (out in INTS and left in INTS and right in INTS):
        call.fail_type(
            f"factors are {left} and {right}", hint="cast one of them; mixed integers need the attribute out"
        )
    if out is None:
        chosen: DType = left
        return chosen
    for family in (INTS, FLOATS, COMPLEX):
        if left in family and out in family and out.bits >= max(left.bits, right.bits):
            return out
    return call.fail_type(f"cannot give {out}")


def load_as(load: LoadFn, operand: int, index: Index, dtype: DType) -> s.ScalarExpr:
    """An operand's element converted to the accumulator's dtype."""
    return s.cast(load(operand, index), dtype)


def exact_factor_dtype(left: np.ndarray, right: np.ndarray, accumulator: DType, terms: int) -> np.dtype[Any]:
    """The NumPy dtype in which the reference may multiply: for narrow integers float64, whose sums are exact.

    NumPy multiplies integer matrices without a BLAS; float64 holds every partial sum below 2**53 exactly.
    """
    if accumulator.is_integer:
        bits = 8 * (left.dtype.itemsize + right.dtype.itemsize) + max(terms, 1).bit_length()
        if bits <= 53:
            return np.dtype(np.float64)
    return accumulator.numpy


def round_once(total: np.ndarray, accumulator: DType, out: DType) -> np.ndarray:
    """Converts an exact or accumulated sum to the result dtype; integers wrap."""
    if accumulator.is_integer and total.dtype == np.float64:
        total = total.astype(np.int64)
    return total.astype(out.numpy, copy=False)


def moved_bytes(call: Call) -> Dim:
    """Every operand and result once."""
    moved: Dim = 0
    for t in (*call.types, *call.results):
        moved = moved + t.nbytes
    return moved


def _matmul_type(call: Call) -> list[TensorType]:
    a, b = call.types
    if a.rank < 2 or b.rank < 2:
        call.fail("both operands need rank 2 or more", hint="reshape vectors to matrices first")
    require_equal(call, a.shape[-1], b.shape[-2], "inner sizes")
    batch = broadcast_shapes(call, a.shape[:-2], b.shape[:-2])
    return [TensorType(contraction_dtype(call), (*batch, a.shape[-2], b.shape[-1]))]


def _matmul_reference(call: Call, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = call.results[0].dtype
    accumulator = compute_dtype(out)
    factor = exact_factor_dtype(a, b, accumulator, a.shape[-1])
    total = np.matmul(a.astype(factor, copy=False), b.astype(factor, copy=False))
    return round_once(total, accumulator, out)


def _matmul_spec(call: Call) -> ReduceSpec:
    a, b = call.types
    out = call.results[0].dtype
    accumulator = compute_dtype(out)
    batch = call.results[0].shape[:-2]

    def step(index: Index, red: Index, load: LoadFn, accs: Accumulators) -> Accumulators:
        left = [*broadcast_index(index[:-2], a.shape[:-2], batch), index[-2], red[0]]
        right = [*broadcast_index(index[:-2], b.shape[:-2], batch), red[0], index[-1]]
        return (accs[0] + load_as(load, 0, left, accumulator) * load_as(load, 1, right, accumulator),)

    return ReduceSpec(
        domain=(a.shape[-1],),
        init=lambda index, load: (s.const(0, accumulator),),
        step=step,
        finish=lambda index, accs: (s.cast(accs[0], out),),
    )


def _swap(b: Builder, x: Value) -> Value:
    n = x.type.rank
    result: Value = b.transpose(x, perm=[*range(n - 2), n - 1, n - 2])
    return result


def converted(b: Builder, x: Value, dtype: DType) -> Value:
    """`x` as `dtype`; no node when it already is."""
    result: Value = x if x.dtype == dtype else b.cast(x, dtype=dtype)
    return result


def _grad_matmul(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    x, y = node.operands
    left, right = converted(b, x, g.dtype), converted(b, y, g.dtype)
    dx = unbroadcast(b, b.matmul(g, _swap(b, right)), x)
    dy = unbroadcast(b, b.matmul(_swap(b, left), g), y)
    return converted(b, dx, x.dtype), converted(b, dy, y.dtype)


def _matmul_cost(call: Call) -> Cost:
    (result,) = call.results
    return Cost(result.numel * call.types[0].shape[-1] * 2, moved_bytes(call))


def _matmul_examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return [
        ([f(3, 4), f(4, 5)], {}),
        ([f(2, 3, 4), f(4, 2)], {}),
        ([f(2, 1, 3, 4), f(5, 4, 2)], {}),
        ([f(0, 3, 4), f(4, 2)], {}),
        ([f(3, 0), f(0, 2)], {}),
        ([f(1, 1), f(1, 1)], {}),
        ([rng.integers(-128, 128, (3, 7)).astype(np.int8), rng.integers(-128, 128, (7, 2)).astype(np.int8)],
         {"out": "i32"}),
        ([rng.integers(0, 256, (3, 7)).astype(np.uint8), rng.integers(-128, 128, (7, 2)).astype(np.int8)],
         {"out": "i32"}),
    ]  # fmt: skip


register(
    OpDef(
        name="matmul",
        doc="Matrix product over the last two axes, leading axes broadcast; 16-bit floats are summed in f32.",
        operands=(Operand("a", NUMERIC), Operand("b", NUMERIC)),
        attrs=(OUT,),
        infer=_matmul_type,
        reference=_matmul_reference,
        kind=Contract("matmul", _matmul_spec),
        grad=_grad_matmul,
        cost=_matmul_cost,
        examples=_matmul_examples,
        source="ONNX MatMul, MatMulInteger",
    )
)
