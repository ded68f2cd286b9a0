"""Determinants of square matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.dtypes import f32, f64
from dhc.ir.inference import require_equal
from dhc.ir.kinds import Opaque
from dhc.ir.op import Call, Cost, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.matmul import moved_bytes
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType


def determinant_kernel(x, out, rows, n, first, end):  # type: ignore[no-untyped-def]
    """Work item: one matrix. Gaussian elimination with the largest pivot of each column."""
    for item in range(first, end):
        base = item * n * n
        for i in range(n * n):
            rows[base + i] = x[base + i]
        result = 1.0
        for k in range(n):
            pivot = k
            for i in range(k + 1, n):
                if abs(rows[base + i * n + k]) > abs(rows[base + pivot * n + k]):
                    pivot = i
            if pivot != k:
                result = -result
                for j in range(k, n):
                    kept = rows[base + k * n + j]
                    rows[base + k * n + j] = rows[base + pivot * n + j]
                    rows[base + pivot * n + j] = kept
            value = rows[base + k * n + k]
            result = result * value
            if value != 0.0:
                for i in range(k + 1, n):
                    factor = rows[base + i * n + k] / value
                    for j in range(k + 1, n):
                        rows[base + i * n + j] = rows[base + i * n + j] - factor * rows[base + k * n + j]
        out[item] = result
    return 0


def _type(call: Call) -> list[TensorType]:
    (x,) = call.types
    if x.rank < 2:
        call.fail("needs matrices: at least two axes")
    require_equal(call, x.shape[-2], x.shape[-1], "rows and columns")
    return [TensorType(x.dtype, x.shape[:-2])]


def _determinant(rows: np.ndarray) -> float:
    """One determinant, in f64; `rows` is changed. The order of every sum is the kernel's."""
    result = 1.0
    for k in range(len(rows)):
        pivot = k
        for i in range(k + 1, len(rows)):
            if abs(rows[i, k]) > abs(rows[pivot, k]):
                pivot = i
        if pivot != k:
            result = -result
            rows[[k, pivot]] = rows[[pivot, k]]
        value = rows[k, k]
        result = result * value
        if value != 0.0:
            factors = rows[k + 1 :, k : k + 1] / value
            rows[k + 1 :, k + 1 :] -= factors * rows[k : k + 1, k + 1 :]
    return float(result)


def _reference(call: Call, x: np.ndarray) -> Any:
    matrices = x.astype(np.float64).reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    found = np.array([_determinant(matrix) for matrix in matrices], np.float64)
    return found.reshape(x.shape[:-2]).astype(x.dtype)


def _matrices(call: Call) -> Dim:
    return symbols.product(call.types[0].shape[:-2])


def _cost(call: Call) -> Cost:
    return Cost(call.types[0].numel * call.types[0].shape[-1], moved_bytes(call))


def _examples() -> Sequence[tuple[Sequence[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(2)
    singular = np.array([[1, 2, 3], [2, 4, 6], [0, 1, 1]], np.float32)
    return [
        ([rng.standard_normal((2, 3, 4, 4)).astype(np.float32)], {}),
        ([np.array([[0, 2], [3, 4]], np.float32)], {}),
        ([singular], {}),
        ([np.zeros((2, 0, 0), np.float32)], {}),
        ([np.zeros((0, 3, 3), np.float32)], {}),
    ]


register(
    OpDef(
        name="determinant",
        doc="Determinants of the square matrices along the last two axes.",
        operands=(Operand("x", frozenset({f32, f64})),),
        infer=_type,
        reference=_reference,
        kind=Opaque(
            determinant_kernel,
            args=lambda call: [call.types[0].shape[-1]],
            scratch=lambda call: [(f64, (call.types[0].numel,))],
            parallel=_matrices,
            flat=True,
        ),
        grad=NotDifferentiable("it takes the inverse of the matrix, for which there is no op"),
        cost=_cost,
        examples=_examples,
        source="ONNX Det",
    )
)
