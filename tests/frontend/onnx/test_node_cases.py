"""The node cases of the onnx package that pass in the interpreter and on the CPU. The lists may only grow."""

from __future__ import annotations

import pytest

from dhc.frontend.onnx.conformance import run_case
from dhc.frontend.onnx.handlers import known_operators
from dhc.frontend.onnx.reader import nested_graphs
from tests.frontend.onnx.node_cases import node_cases, passing_names

FEWEST = {"REFERENCE": 1860, "CPU": 1825}
"""Cases in the lists when they were last looked at: they may not shrink."""


@pytest.mark.parametrize("device", FEWEST)
def test_the_list_only_grows(device: str) -> None:
    names = passing_names(device)
    assert names == sorted(set(names)), "the list is not sorted or repeats names"
    assert len(names) >= FEWEST[device]


def test_what_passes_compiled_passes_in_the_interpreter() -> None:
    assert set(passing_names("CPU")) <= set(passing_names("REFERENCE"))


def _check(name: str, device: str) -> None:
    case = node_cases().get(name)
    if case is None:
        pytest.skip("the installed onnx package has no such case: install a newer one")
    outcome = run_case(case, device)
    assert outcome.status == "passed", outcome.reason


@pytest.mark.parametrize("name", passing_names("REFERENCE"))
def test_node_case(name: str) -> None:
    _check(name, "REFERENCE")


@pytest.mark.parametrize("name", passing_names("CPU"))
def test_node_case_compiled(name: str) -> None:
    _check(name, "CPU")


def test_every_operator_with_a_handler_is_covered() -> None:
    """A handler that no case exercises would be untested."""
    cases = node_cases()
    models = [cases[name].model for name in passing_names("REFERENCE") if name in cases]
    graphs = [graph for model in models for graph, _ in nested_graphs(model.graph)]
    covered = {n.op_type for graph in graphs for n in graph.node}
    # Their results are random, or the package has no case for them (see test_operators.py, test_sequences.py).
    exempt = {
        "Bernoulli",
        "ConcatFromSequence",
        "GlobalLpPool",
        "MaxRoiPool",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Scatter",
        "SequenceErase",
    }
    assert sorted(set(known_operators()) - covered - exempt) == []
