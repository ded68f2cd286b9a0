"""The model suites of the onnx package beside its node cases: old exports, single operators, whole networks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dhc.frontend.onnx.conformance import load_cases, main, run_suite, summary

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


def test_the_command_line_prints_every_operator_and_writes_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "outcomes.json"
    assert main(["--suite", "simple", "--device", "cpu", "--jobs", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Gradient +2 +0 +0", printed)
    assert re.search(r"StringNormalizer +0 +0 +6 .*strings are held by the interpreter only", printed)
    content = json.loads(path.read_text())
    summarized = content["summary"]
    assert summarized["passed"] == summarized["compiled"] + summarized["opaque"] >= 17
    assert len(content["cases"]) == summarized["passed"] + summarized["failed"] + summarized["limited"]
    assert {"name", "operators", "status", "reason", "how", "seconds"} <= set(content["cases"][0])


def test_the_command_line_lists_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "simple", "--device", "reference", "--jobs", "1", "--only", "gradient", "--list"]) == 0
    assert capsys.readouterr().out.split() == ["test_gradient_of_add", "test_gradient_of_add_and_mul"]
