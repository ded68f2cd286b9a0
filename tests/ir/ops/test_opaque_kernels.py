"""The imperative functions of ops: as plain Python and compiled by Numba, against the references, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from dhc.backends.cpu.numba.builtins import whole
from dhc.ir import registry, symbols
from dhc.ir.dtypes import boolean, f32, i64, u8
from dhc.ir.kinds import Opaque
from dhc.ir.op import Call, OpDef
from dhc.ir.verifier import defined_symbols
from tests.ir.op_examples import Example, examples_for

FLAT = [op for op in registry.all_ops() if isinstance(op.kind, Opaque) and op.kind.flat]
HALF = ("f16", "bf16")


@cache
def compiled(function: Callable[..., int]) -> Callable[..., int]:
    import numba

    jitted: Callable[..., int] = numba.njit(whole(function))
    return jitted


def numbers(dims: Any) -> list[int]:
    assert all(isinstance(d, int) for d in dims), dims
    return list(dims)


def run_kernel(example: Example, function: Callable[..., int], pieces: int) -> tuple[int, list[np.ndarray]]:
    """Calls the function as a backend does and returns its status and the results in their final shapes."""
    call = Call.of(example.graph().nodes[0])
    kind = call.op.kind
    assert isinstance(kind, Opaque)
    bounds = kind.bounds(call) if kind.bounds is not None else [r.shape for r in call.results]
    # Filled with what no op writes by chance, so that a forgotten element shows.
    results = [np.full(symbols.product(b), 77, r.dtype.numpy) for b, r in zip(bounds, call.results)]
    count = [np.full(1, -1, np.int64)] if kind.count else []
    scratch = [
        np.full(symbols.product(shape), 99, d.numpy) for d, shape in (kind.scratch(call) if kind.scratch else ())
    ]
    args = numbers(kind.args(call)) if kind.args is not None else []
    operands = [np.array(a).reshape(-1) for a in example.arrays]
    status = 0
    if kind.parallel is None:
        status = function(*operands, *results, *count, *scratch, *args)
    else:
        (items,) = numbers([kind.parallel(call)])
        for piece in reversed(range(pieces)):  # the order of the pieces must not matter
            first, end = items * piece // pieces, items * (piece + 1) // pieces
            status = max(status, function(*operands, *results, *count, *scratch, *args, first, end))
    sizes = {name: int(count[0][0]) for name in defined_symbols(example.graph().nodes[0])} if count else {}
    shapes = [[symbols.evaluate(d, sizes) for d in r.shape] for r in call.results]
    return status, [r[: int(np.prod(s))].reshape(s) for r, s in zip(results, shapes)]


def check(example: Example, function: Callable[..., int], pieces: int) -> None:
    with np.errstate(all="ignore"):
        status, actual = run_kernel(example, function, pieces)
    assert status == 0, example
    for a, e in zip(actual, example.graph().evaluate(*example.arrays), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e, err_msg=str(example))


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("op", FLAT, ids=lambda op: op.name)
def test_plain_python_gives_the_reference(op: OpDef, pieces: int) -> None:
    examples = examples_for(op)
    assert examples
    for example in examples:
        if not any(d.name in HALF for d in example.dtypes):  # devices run these on f32 buffers
            assert isinstance(op.kind, Opaque)
            check(example, op.kind.function, pieces)


@pytest.mark.nightly  # in every run, tests/backends/cpu/numba compiles the same functions as the CPU target does
@pytest.mark.parametrize("op", FLAT, ids=lambda op: op.name)
def test_numba_gives_the_reference(op: OpDef) -> None:
    for example in examples_for(op):
        if example.dtypes[0] in (f32, i64, u8, boolean):
            assert isinstance(op.kind, Opaque)
            check(example, compiled(op.kind.function), 1)


@pytest.mark.parametrize("op", ["scatter_elements", "scatter_nd"])
@pytest.mark.parametrize("index", [3, -4, 2**40])
def test_scatter_reports_indices_out_of_range(op: str, index: int) -> None:
    record = registry.get(op)
    indices = np.array([[index]], np.int64) if op == "scatter_nd" else np.array([index], np.int64)
    arrays = (np.zeros(3, np.float32), indices, np.ones(1, np.float32))
    assert isinstance(record.kind, Opaque)
    status, _ = run_kernel(Example(record, "out", arrays, {}, (f32, i64, f32)), record.kind.function, 1)
    assert status == 1


def test_conditions_beyond_the_axis_are_reported() -> None:
    record = registry.get("compress")
    assert isinstance(record.kind, Opaque)
    count = np.zeros(1, np.int64)
    x, condition, out = np.ones(2, np.float32), np.array([True, False, True]), np.zeros(2, np.float32)
    assert record.kind.function(x, condition, out, count, 1, 2, 1, 3) == 1
