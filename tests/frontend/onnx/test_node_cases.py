"""The node cases of the onnx package that pass in the interpreter. The list may only grow."""

from __future__ import annotations

import pytest

from dhc.frontend.onnx.conformance import run_case
from dhc.frontend.onnx.handlers import known_operators
from tests.frontend.onnx.node_cases import node_cases, passing_names

FEWEST = 1659
"""Cases in the list when it was last looked at: it may not shrink."""


def test_the_list_only_grows() -> None:
    names = passing_names()
    assert names == sorted(set(names)), "the list is not sorted or repeats names"
    assert len(names) >= FEWEST


@pytest.mark.parametrize("name", passing_names())
def test_node_case(name: str) -> None:
    case = node_cases().get(name)
    if case is None:
        pytest.skip("the installed onnx package has no such case: install a newer one")
    outcome = run_case(case, "REFERENCE")
    assert outcome.status == "passed", outcome.reason


def test_every_operator_with_a_handler_is_covered() -> None:
    """A handler that no case exercises would be untested."""
    cases = node_cases()
    covered = {n.op_type for name in passing_names() if name in cases for n in cases[name].model.graph.node}
    # Their results are random, or the package has no case for them (see test_operators.py).
    exempt = {
        "Bernoulli",
        "ConcatFromSequence",
        "GlobalLpPool",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Scatter",
        "SequenceErase",
    }
    assert sorted(set(known_operators()) - covered - exempt) == []
