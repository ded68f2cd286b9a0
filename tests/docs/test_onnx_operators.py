"""The table of ONNX operators on the support page tells the truth about single operators."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs"


@lru_cache(maxsize=1)
def pages() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        import onnx_operators
    finally:
        sys.path.remove(str(FOLDER))
    return onnx_operators


@pytest.mark.parametrize(
    ("operator", "dtype", "how"),
    [
        ("Abs", "i8", "compiled"),
        ("Abs", "bf16", "compiled"),
        ("Scatter", "f64", "opaque"),
        ("Concat", "str", "interpreted"),
        ("GridSample", "i32", "refused"),
    ],
)
def test_types_without_a_case_are_asked_about(operator: str, dtype: str, how: str) -> None:
    cases = pages()._single_cases()[("ai.onnx", operator)]
    assert dtype in pages()._allowed(cases[0])
    found = pages()._probed(cases, dtype, "cpu")
    assert (found.dtype, found.how) == (dtype, how)
    assert bool(found.reason) == (how in ("interpreted", "refused"))


def test_types_that_an_operator_does_not_allow_are_not_asked_about() -> None:
    allowed = pages()._allowed(pages()._single_cases()[("ai.onnx", "And")][0])
    assert allowed == ["bool"]


def test_versions_say_how_an_operator_is_imported() -> None:
    found = pages().versions()
    assert found[("ai.onnx", "Softmax")] == [(1, "handler"), (11, "handler"), (13, "handler")]
    assert dict(found[("ai.onnx", "Attention")])[23] == "function"
    assert dict(found[("ai.onnx.ml", "ZipMap")])[1] == ""
    assert [version for version, _ in found[("ai.onnx", "Upsample")]] == [7, 9], "10 takes it away"
