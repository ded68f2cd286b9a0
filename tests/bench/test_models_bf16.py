"""Whole models in bf16: rows with both engines' errors, pieces that add up, wrong answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from bench import models, models_bf16, peers
from bench.entries import Entry
from tests.bench.test_models import Engine


def options(threads: str = "1,2") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    models_bf16.add_options(parser)
    return parser.parse_args(["--quick", "--threads", threads])


@pytest.fixture
def engines(monkeypatch, tmp_path: Path) -> dict[str, Engine]:
    """Engines that compute about y = 2 x, one model, an empty folder of results."""
    import dhc

    graph = dhc.Graph("net")
    graph.output(graph.input("x", "f32", (1, 8)) * 2.0, names=["y"])
    file = tmp_path / "net.onnx"
    dhc.save_onnx(graph, file)
    entry = Entry("net", "suite", lambda: file)
    factors = {"onnxruntime": 2.0, "dhc": 2.0, "dhc_bf16": 2.002, "openvino_bf16": 2.004}
    made = {name: Engine(name, factor) for name, factor in factors.items()}
    for module in (models, models_bf16):
        monkeypatch.setattr(module, "adapter", made.__getitem__)
    monkeypatch.setattr(models_bf16, "chosen", lambda only: [entry])
    monkeypatch.setattr(models_bf16, "__file__", str(tmp_path / "models_bf16.py"))
    return made


def test_rows_have_ratios_and_errors(engines: dict[str, Engine]) -> None:
    report = models_bf16.run(options())
    assert [(row["model"], row["threads"]) for row in report["rows"]] == [("net", 1), ("net", 2)]
    for row in report["rows"]:
        assert row["ratio"] == row["openvino"] / row["dhc"]
        assert row["dhc error"] == pytest.approx(1e-3, rel=1e-3)
        assert row["openvino error"] == pytest.approx(2e-3, rel=1e-3)
        assert row["openvino largest error"] == pytest.approx(2e-3, rel=1e-3)
    assert "failure" not in report
    assert [("0.50 of OpenVINO's" in note, "for none" in note) for note in report["notes"][1:]] == [(True, True)] * 2


def test_larger_errors_are_named_and_wrong_answers_are_a_failure(engines: dict[str, Engine]) -> None:
    engines["dhc_bf16"].factor = 2.005
    report = models_bf16.run(options("1"))
    assert report["notes"][1].endswith("for net") and "failure" not in report
    engines["dhc_bf16"].factor = 3.0
    assert models_bf16.run(options("1"))["failure"] == "dhc's answers are not those of the model: net"


def test_pieces_add_up(engines: dict[str, Engine], tmp_path: Path, monkeypatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for count in "21":
        (results / "models_bf16.json").write_text(json.dumps(models_bf16.run(options(count))), encoding="utf-8")
    assert [row["threads"] for row in models_bf16.run(options("1"))["rows"]] == [1, 2]
    monkeypatch.setattr(models_bf16, "machine", lambda: "another machine")
    assert [row["threads"] for row in models_bf16.run(options("1"))["rows"]] == [1]


def test_without_the_other_engine_there_is_nothing_to_compare(engines: dict[str, Engine]) -> None:
    engines["openvino_bf16"].absent = True
    with pytest.raises(SystemExit, match="openvino_bf16 is not installed"):
        models_bf16.run(options())


def test_error_is_that_of_the_worst_output() -> None:
    wanted = [np.array([3.0, 4.0]), np.array([1.0])]
    assert models_bf16.error([np.array([3.0, 4.5]), np.array([1.2])], wanted) == pytest.approx(0.2)


def test_adapters_have_what_the_suite_calls() -> None:
    for name in models_bf16.ENGINES.values():
        module = peers.adapter(name)
        assert name == module.NAME
        assert all(callable(getattr(module, part)) for part in ("version", "prepare", "load", "warm_import"))
