"""The scalar definition of every op (what backends compile) against its reference, and the parts of composites."""

from __future__ import annotations

import numpy as np
import pytest

from dhc.ir import registry
from dhc.ir.autodiff import parts_of
from dhc.ir.dtypes import DType
from dhc.ir.kinds import Composite, Contract, Elementwise, Map, Reduce
from dhc.ir.op import Call, OpDef
from tests.ir.op_examples import Example, examples_for
from tests.ir.scalar_evaluation import evaluate_kind

TOLERANCES = {"f64": 1e-12, "f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2, "c64": 2e-5, "c128": 1e-12}

INTEGER_STEPS = {"resize": 1}
"""Ops that turn a floating sum into an integer: summed in another order, it may fall on the other side of a step."""


def assert_close(actual: np.ndarray, expected: np.ndarray, dtype: DType, what: object, steps: int = 0) -> None:
    """Equal dtype and shape; integers exactly, floats within rounding of the op's precision, NaN where NaN is."""
    assert actual.dtype == expected.dtype, what
    assert actual.shape == expected.shape, what
    if dtype.is_integer and steps:
        assert np.max(np.abs(actual.astype(np.int64) - expected.astype(np.int64)), initial=0) <= steps, what
        return
    if not dtype.is_float and dtype.kind != "c":
        np.testing.assert_array_equal(actual, expected, err_msg=str(what))
        return
    tolerance = TOLERANCES.get(dtype.name, 0.0)  # small floats are only moved and converted: exact
    wide = np.complex128 if dtype.kind == "c" else np.float64
    np.testing.assert_allclose(
        actual.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=str(what)
    )


def _defined(op: OpDef) -> bool:
    return isinstance(op.kind, (Elementwise, Map, Reduce, Contract, Composite)) and bool(examples_for(op))


DEFINED = [op for op in registry.all_ops() if _defined(op)]


def _check(example: Example) -> None:
    graph = example.graph()
    expected = graph.evaluate(*example.arrays)
    (node,) = graph.nodes
    with np.errstate(all="ignore"):
        if isinstance(example.op.kind, Composite):
            actual = parts_of(node).evaluate(*example.arrays)
        else:
            actual = evaluate_kind(Call.of(node), example.arrays)
    assert len(actual) == len(expected)
    for result, a, e in zip(node.results, actual, expected):
        assert_close(a, e, result.type.dtype, example, INTEGER_STEPS.get(example.op.name, 0))


@pytest.mark.parametrize("op", DEFINED, ids=lambda op: op.name)
def test_definition_says_what_the_reference_says(op: OpDef) -> None:
    for example in examples_for(op):
        _check(example)


@pytest.mark.parametrize("op", registry.all_ops(), ids=lambda op: op.name)
def test_references_give_the_inferred_type(op: OpDef) -> None:
    """The interpreter refuses results of another dtype or shape; every example must pass it."""
    for example in examples_for(op):
        example.graph().evaluate(*example.arrays)
