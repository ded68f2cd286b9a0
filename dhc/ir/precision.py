"""The precision in which ops compute: half floats (f16, bf16) compute in f32 and round once at the end.

References and scalar definitions both go through this module, so that the interpreter and every device agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, bf16, c64, c128, f16, f32
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.kinds import Index, LoadFn
from dhc.ir.op import Call

HALF = frozenset({f16, bf16})


def compute_dtype(dtype: DType) -> DType:
    """The dtype in which an op on `dtype` computes."""
    return f32 if dtype in HALF else dtype


def half_result(value: s.ScalarExpr, dtype: DType) -> s.ScalarExpr:
    """`value`, computed in `compute_dtype(dtype)`, as an element of `dtype`."""
    return s.cast(value, dtype) if dtype in HALF and value.dtype == f32 else value


def widened(expr: Callable[..., s.ScalarExpr]) -> Callable[..., s.ScalarExpr]:
    """Makes a scalar definition ``(call, *scalars)`` valid for half floats: f32 inside, rounded once."""

    def definition(call: Call, *operands: s.ScalarExpr) -> s.ScalarExpr:
        half = next((x.dtype for x in operands if x.dtype in HALF), None)
        if half is None:
            return expr(call, *operands)
        wide = [s.cast(x, f32) if x.dtype in HALF else x for x in operands]
        return half_result(expr(call, *wide), half)

    return definition


def widened_load(load: LoadFn) -> LoadFn:
    """A load that gives half floats as f32."""

    def wide(operand: int, index: Index) -> s.ScalarExpr:
        value = load(operand, index)
        return s.cast(value, f32) if value.dtype in HALF else value

    return wide


def wide_array(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of half floats as f32; others as they are."""
    return x.astype(np.float32) if x.dtype in (np.dtype(np.float16), bf16.numpy) else x


def rounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a NumPy function valid for half floats: f32 inside, floating results rounded once."""

    def reference(*operands: np.ndarray[Any, Any]) -> Any:
        half = next((x.dtype for x in operands if as_dtype(x.dtype) in HALF), None)
        if half is None:
            return function(*operands)
        result = np.asarray(function(*(wide_array(x) for x in operands)))
        return result.astype(half) if result.dtype == np.float32 else result

    return reference


def complex_of(dtype: DType) -> DType:
    """The complex type whose parts are of the real `dtype`."""
    return c64 if dtype == f32 else c128
