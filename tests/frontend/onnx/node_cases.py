"""Runs the node cases of the onnx package in the interpreter: what the list of passing cases is made with."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

LIST = Path(__file__).with_name("node_cases.txt")
"""Names of the cases that pass; it may only grow."""


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Any]:
    """Every node case by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def passing_names() -> list[str]:
    """The checked-in list."""
    return LIST.read_text(encoding="utf-8").split()


def as_array(value: Any) -> Any:
    """An input or output of a case as an array; sequences stay lists."""
    if isinstance(value, (list, tuple)):
        return [as_array(v) for v in value]
    if hasattr(value, "data_type"):
        from dhc.frontend.onnx.tensors import to_array

        return to_array(value)
    return np.asarray(value)


def compare(actual: Any, wanted: Any, rtol: float, atol: float) -> None:
    """Strict in dtype and shape, within the case's tolerance in value.

    Raises:
        AssertionError: they differ.
    """
    if isinstance(wanted, list):
        assert isinstance(actual, list), f"{type(actual).__name__} where a sequence is wanted"
        assert len(actual) == len(wanted), f"{len(actual)} elements where {len(wanted)} are wanted"
        for a, w in zip(actual, wanted):
            compare(a, w, rtol, atol)
        return
    assert np.shape(actual) == wanted.shape, f"shape {np.shape(actual)} where {wanted.shape} is wanted"
    if wanted.dtype.kind in "OUS":
        assert np.asarray(actual).astype(str).tolist() == wanted.astype(str).tolist()
        return
    assert actual.dtype == wanted.dtype, f"{actual.dtype} where {wanted.dtype} is wanted"
    if wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, wanted) if not rtol else np.testing.assert_allclose(
            actual.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol
        )
        return
    wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
    np.testing.assert_allclose(actual.astype(wide), wanted.astype(wide), rtol=rtol, atol=atol)


def import_case(case: Any, arrays: list[Any]) -> tuple[Any, list[str]]:
    """The graph of a case from the model's bytes, and the inputs that had to be fixed to their values.

    ONNX gives axes, scales and the like as inputs of the graph; they decide its structure and must be known.
    """
    from dhc.frontend.onnx import load_onnx
    from dhc.frontend.onnx.context import NeedsValueError

    data = case.model.SerializeToString()
    by_name = {info.name: array for info, array in zip(case.model.graph.input, arrays)}
    fixed: dict[str, Any] = {}
    while True:
        try:
            return load_onnx(data, values=fixed), sorted(fixed)
        except NeedsValueError as error:
            missing = [name for name in error.inputs if name not in fixed]
            if not missing:
                raise
            fixed.update({name: by_name[name] for name in missing})


def run_case(case: Any) -> None:
    """Imports a case and compares every data set.

    Raises:
        AssertionError: a result differs.
        dhc.errors.DhcError: it cannot be imported or run.
    """
    for inputs, outputs in case.data_sets:
        arrays = [as_array(x) for x in inputs]
        graph, fixed = import_case(case, arrays)
        names = [info.name for info in case.model.graph.input]
        given = {name: array for name, array in zip(names, arrays) if name not in fixed}
        results = graph.evaluate(**given)
        assert len(results) == len(outputs), f"{len(results)} outputs where {len(outputs)} are wanted"
        for actual, wanted in zip(results, outputs):
            compare(actual, as_array(wanted), max(case.rtol, 1e-3), max(case.atol, 1e-5))
