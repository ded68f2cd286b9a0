"""The model suites of the onnx package beside its node cases: old exports, single operators, whole networks."""

from __future__ import annotations

import pytest

from dhc.frontend.onnx.conformance import load_cases, run_suite, summary

SIZES = {"pytorch-converted": 82, "pytorch-operator": 35}


@pytest.mark.slow
@pytest.mark.parametrize("suite", SIZES)
def test_every_case_passes_compiled(suite: str) -> None:
    outcomes = run_suite(suite, "CPU")
    assert [(o.name, o.reason) for o in outcomes if o.status != "passed"] == []
    assert len(outcomes) >= SIZES[suite]
    assert summary(outcomes)["interpreted"] == 0


@pytest.mark.parametrize("suite", SIZES)
def test_every_case_passes_interpreted(suite: str) -> None:
    assert [(o.name, o.reason) for o in run_suite(suite, "REFERENCE") if o.status != "passed"] == []


@pytest.mark.parametrize("device", ["CPU", "REFERENCE"])
def test_simple_cases(device: str) -> None:
    outcomes = run_suite("simple", device)
    assert len(outcomes) >= 23
    others = {o.name: o.reason for o in outcomes if o.status != "passed"}
    if device == "REFERENCE":
        assert others == {}
    assert all("strings are held by the interpreter" in reason for reason in others.values())
    assert all("strnorm" in name for name in others)


def test_light_networks_are_cases() -> None:
    assert len(load_cases("light")) == 9


@pytest.mark.slow
def test_a_light_network_passes() -> None:
    (outcome,) = run_suite("light", "CPU", only="shufflenet")
    assert outcome.status == "passed", outcome.reason


@pytest.mark.nightly
@pytest.mark.parametrize("device", ["CPU", "REFERENCE"])
def test_all_light_networks_pass(device: str) -> None:
    assert [(o.name, o.reason) for o in run_suite("light", device) if o.status != "passed"] == []


def test_an_unknown_suite_is_an_error() -> None:
    with pytest.raises(ValueError, match="no suite"):
        load_cases("heavy")
