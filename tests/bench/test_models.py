"""Measuring whole models: choosing them, missing engines, wrong answers, pieces that add up to one report."""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as bench_main
from bench import models, peers
from bench.entries import Entry, chosen
from bench.fresh import in_a_process
from bench.measuring import Effort, become_quiet, difference, take_turns
from bench.peers.tools import run_tool
from bench.signature import Signature


def test_names_and_groups_choose_models() -> None:
    assert [e.name for e in chosen("resnet18,vit_s16")] == ["resnet18", "vit_s16"]
    assert {e.group for e in chosen("suite")} == {"suite"}
    assert {e.group for e in chosen("")} == {"suite", "shared", "light"}
    with pytest.raises(ValueError, match=r"no model no_such_net; there are .*resnet18"):
        chosen("resnet18,no_such_net")


def test_light_models_take_their_image_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DHC_BENCH_CACHE", str(tmp_path))
    (entry,) = chosen("light_squeezenet")
    assert list(entry.signature().inputs.values()) == [(1, 3, 224, 224)]
    import onnx

    assert len(onnx.load(str(entry.file())).graph.input) == 1


def test_turns_count_after_warming_up_and_who_begins_changes() -> None:
    calls: list[str] = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, Effort(least=4, most=4))
    assert calls == list("aaabbbbbbaaa" * 3)
    assert times.rounds == 4
    assert {name: len(values) for name, values in times.milliseconds.items()} == {"a": 8, "b": 8}


def test_the_limit_cuts_the_rounds_short_but_not_below_three() -> None:
    times = take_turns({"a": lambda: None}, Effort(least=50, most=50, limit=0.0))
    assert times.rounds == 3


def test_a_quiet_process_does_not_wait_long() -> None:
    assert 0.0 < become_quiet() <= 0.51


def test_threads_that_spin_on_are_waited_for(monkeypatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("bench.measuring.time.sleep", slept.append)
    monkeypatch.setattr("bench.measuring.time.process_time", lambda: min(sum(slept), 0.045))
    assert become_quiet() == sum(slept)
    assert 0.05 <= sum(slept) < 0.07


def test_difference_is_a_share_of_the_largest_value() -> None:
    wanted = [np.array([[1.0, -4.0]])]
    assert difference([np.array([[1.0, -3.0]])], wanted) == 0.25
    assert difference([np.array([1.0, -4.0])], wanted) == 0.0
    assert difference([np.array([[1.0], [-4.0], [0.0]])], wanted) == float("inf")
    assert difference([np.array([[np.nan, -4.0]])], wanted) == float("inf")
    assert difference([], wanted) == float("inf")


class Engine(types.ModuleType):
    """An adapter that answers with the inputs times a number."""

    def __init__(self, name: str, factor: float, refuses: str = "", absent: bool = False) -> None:
        super().__init__(name)
        self.factor, self.refuses, self.absent = factor, refuses, absent
        self.compile_seconds = {"net": 0.5}

    def version(self) -> str:
        if self.absent:
            raise ImportError(f"No module named {self.__name__!r}")
        return "1.0"

    def prepare(self, model: Path, signature: object) -> Path:
        return model

    def load(self, prepared: Path, threads: int, signature: object) -> object:
        if self.refuses:
            raise peers.PeerError(self.refuses)
        return lambda feeds: [array * self.factor for array in feeds.values()]


def options(**given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    models.add_options(parser)
    words = ["--quick"]
    for name, value in given.items():
        words += [f"--{name}", str(value)]
    return parser.parse_args(words)


@pytest.fixture
def engines(monkeypatch, tmp_path: Path) -> dict[str, Engine]:
    """Engines that compute y = 2 x, one model, an empty folder of results."""
    import dhc

    graph = dhc.Graph("net")
    x = graph.input("x", "f32", (1, 8))
    graph.output(x * 2.0, names=["y"])
    file = tmp_path / "net.onnx"
    dhc.save_onnx(graph, file)
    entry = Entry("net", "suite", lambda: file)
    made = {name: Engine(name, 2.0) for name in ("dhc", *peers.PEERS)}
    monkeypatch.setattr(models, "adapter", made.__getitem__)
    monkeypatch.setattr(models, "chosen", lambda only: [entry])
    monkeypatch.setattr(models, "__file__", str(tmp_path / "models.py"))
    monkeypatch.setattr("dhc.backends.cpu.limits.peak_gflops", lambda threads: 100.0)
    return made


def test_rows_name_the_fastest_peer_and_the_ratio_to_it(engines: dict[str, Engine]) -> None:
    report = models.run(options())
    assert [(row["model"], row["threads"]) for row in report["rows"]] == [("net", 1), ("net", 2)]
    for row in report["rows"]:
        fastest = min(row[name] for name in peers.PEERS)
        assert row[row["best peer"]] == fastest
        assert row["ratio"] == fastest / row["dhc"]
        assert row["difference"] == 0.0
    assert report["rows"][0]["efficiency"] is None
    assert report["rows"][1]["efficiency"] == report["rows"][0]["dhc"] / (2 * report["rows"][1]["dhc"])
    assert "failure" not in report
    assert len(report["notes"]) == 3


def test_engines_that_are_absent_or_refuse_or_are_wrong_are_listed_with_the_reason(engines: dict[str, Engine]) -> None:
    engines["openvino"].absent = True
    engines["mnn"].refuses = "no such layer"
    engines["ncnn"].factor = 3.0
    report = models.run(options(threads=1, peers="onnxruntime,openvino,mnn,ncnn"))
    reasons = {row["engine"]: row["reason"] for row in report["tables"]["refused"]}
    assert reasons == {
        "openvino": "not installed: No module named 'openvino'",
        "mnn": "no such layer",
        "ncnn": "wrong answers, off by 0.5 of the largest value",
    }
    (row,) = report["rows"]
    assert row["best peer"] == "onnxruntime"
    assert row["mnn"] is row["ncnn"] is row["openvino"] is None


def test_engines_far_behind_are_left_out_with_the_reason(monkeypatch) -> None:
    clock = iter([0.0, 0.2, 1.0, 31.0, 40.0, 41.9, 50.0, 65.0])
    monkeypatch.setattr(models.time, "perf_counter", lambda: next(clock))
    runs = dict.fromkeys(("dhc", "slow", "near", "slower"), lambda: None)
    assert models.far_behind(runs) == {
        "slow": "a run takes 30.0 s, 150 times as long as the quickest engine's",
        "slower": "a run takes 15.0 s, 75 times as long as the quickest engine's",
    }


def test_a_wrong_answer_of_dhc_is_a_failure(engines: dict[str, Engine]) -> None:
    engines["dhc"].factor = 2.001
    assert models.run(options(threads=1))["failure"] == "dhc's answers differ: net (0.0005)"


def test_pieces_measured_one_after_the_other_add_up(engines: dict[str, Engine], tmp_path: Path, monkeypatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for count in (2, 1):
        (results / "models.json").write_text(json.dumps(models.run(options(threads=count))), encoding="utf-8")
    report = json.loads((results / "models.json").read_text(encoding="utf-8"))
    assert [row["threads"] for row in report["rows"]] == [1, 2]
    monkeypatch.setattr(models, "machine", lambda: "another machine")
    assert [row["threads"] for row in models.run(options(threads=1))["rows"]] == [1]


def test_the_status_says_that_a_measurement_failed(monkeypatch, tmp_path: Path, capsys) -> None:
    report = {"title": "t", "machine": "m", "rows": [{"a": 1}], "failure": "all wrong"}
    module = types.SimpleNamespace(TITLE="t", run=lambda options: report, add_options=lambda parser: None)
    monkeypatch.setattr(bench_main, "import_module", lambda name: module)
    monkeypatch.setattr(bench_main, "_FOLDER", tmp_path)
    monkeypatch.setattr(bench_main.pkgutil, "iter_modules", lambda path: [types.SimpleNamespace(name="m")])
    assert bench_main.main(["m"]) == 1
    assert "all wrong" in capsys.readouterr().err
    assert "failure" not in json.loads((tmp_path / "results" / "m.json").read_text(encoding="utf-8"))


def test_engines_for_real(engines: dict[str, Engine], monkeypatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setattr(models, "adapter", peers.adapter)
    monkeypatch.setattr(models, "Effort", lambda: Effort(least=3, most=3))
    given = options(threads=1, peers="onnxruntime")
    given.quick = False
    report = models.run(given)
    (row,) = report["rows"]
    assert row["best peer"] == "onnxruntime" and row["difference"] == 0.0 and row["rounds"] == 3
    assert report["tables"]["refused"] == []
    costs = {cost["engine"]: cost for cost in report["tables"]["costs"]}
    assert set(costs) == {"dhc", "onnxruntime"}
    assert costs["dhc"]["compile s"] > 0 and costs["onnxruntime"]["compile s"] is None
    for cost in costs.values():
        assert 0 < cost["load s"] < cost["cold start s"]
        assert 10 < cost["peak MB"] < 2000


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="onnxruntime ends with 1"):
        in_a_process("onnxruntime", tmp_path / "net.onnx", 1, Signature({"x": (1,)}, ("y",)))


def test_options_belong_to_one_measurement(capsys) -> None:
    assert bench_main.main(["--quick"]) == 2
    assert bench_main.main(["start_up", "loading", "--quick"]) == 2
    assert "name it first" in capsys.readouterr().err


def test_a_converter_that_fails_gives_its_last_words(tmp_path: Path) -> None:
    import sys

    with pytest.raises(peers.PeerError, match="ends with 3: no idea"):
        run_tool([sys.executable, "-c", "print('no idea'); raise SystemExit(3)"], tmp_path / "made")
    with pytest.raises(peers.PeerError, match="ends with 0"):
        run_tool([sys.executable, "-c", "print('done')"], tmp_path / "made")


def test_every_adapter_has_what_the_suite_calls() -> None:
    for name in ("dhc", *peers.PEERS):
        module = peers.adapter(name)
        assert name == module.NAME
        assert all(callable(getattr(module, part)) for part in ("version", "prepare", "load", "warm_import"))
