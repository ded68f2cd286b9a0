"""`inspect`, `compare`, `opt`, `bench`, `doctor`, `demo`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dhc.backends import registry
from dhc.backends.cpu.backend import CpuBackend
from dhc.backends.protocol import Blob, CompileOptions
from dhc.cli.difference import Tolerance, difference
from dhc.cli.extras import EXTRAS
from dhc.cli.probes import run_probe
from dhc.ir import Builder, Graph
from dhc.ir.text import parse_graph
from tests.cli.conftest import Command, save, tensor

# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_artifact(dhc: Command, artifact: Path) -> None:
    answer = dhc("inspect", artifact)
    assert answer.status == 0
    for word in ("image: f32[N, 3, 8, 8]", "weights.safetensors", "cpu/code.a", "kernel", "depends on N"):
        assert word in answer.out
    data = dhc("inspect", artifact, "--json").data
    assert data["inputs"] == [{"name": "image", "dtype": "f32", "shape": ["N", 3, 8, 8]}]
    assert sum(data["members"].values()) < artifact.stat().st_size
    assert data["steps"]["kernel"] >= 1
    assert "dhc run" in data["next"]


def test_inspect_parts_of_an_artifact(dhc: Command, artifact: Path) -> None:
    assert "graph @net" in dhc("inspect", artifact, "--graph").out
    assert '"do": "kernel"' in dhc("inspect", artifact, "--plan").out
    kernels = dhc("inspect", artifact, "--kernels", "--json").data["kernels"]
    assert any(kernel["steps"] for kernel in kernels) and all(kernel["bytes"] > 0 for kernel in kernels)


def test_inspect_model(dhc: Command, classifier: Path) -> None:
    data = dhc("inspect", classifier, "--json").data
    assert data["kind"] == "model" and data["symbols"] == ["N"] and data["ops"]["matmul"] == 1
    assert data["constant_bytes"] >= 36
    assert "matmul" in dhc("inspect", classifier).out
    graph = dhc("inspect", classifier, "--graph", "--json").data["graph"]
    assert [node.op.name for node in parse_graph(graph)][-1] == "matmul"
    assert dhc("inspect", classifier, "--kernels").status == 2


def test_inspect_damaged_artifact(dhc: Command, artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    Path("damaged.dhc").write_bytes(data)
    answer = dhc("inspect", "damaged.dhc", "--json")
    assert answer.status == 6 and answer.data["error"]["kind"] == "ArtifactError"


# ---- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["reference", "onnxruntime"])
def test_compare_agrees(dhc: Command, classifier: Path, against: str) -> None:
    if against == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    answer = dhc("compare", classifier, "--against", against, "--shape", "2x3x8x8")
    assert answer.status == 0, answer.err
    assert "agree" in answer.out and "relu" in answer.out
    data = dhc("compare", classifier, "--against", against, "--json").data
    assert data["equal"] is True and data["first_difference"] is None
    assert data["assumed_sizes"] == {"N": 1}
    assert {"positive", "scores"} <= {tensor["name"] for tensor in data["tensors"]}


class SkewedBackend(CpuBackend):
    """Like cpu, but takes the sum of a pool for its mean plus one."""

    name = "skewed"

    def compile(self, graph: Graph, options: CompileOptions) -> Blob:
        wrong = graph.clone()
        for node in list(wrong.walk()):
            if node.op.name in ("reduce_mean", "global_avg_pool", "avg_pool", "mean"):
                builder = Builder(node.graph, node.location)
                with node.graph.insertion_before(node.next):
                    shifted = builder.add(node.result, builder.constant(1.0, "f32"))
                for use in node.result.uses:
                    if use.user is not shifted.producer:
                        if isinstance(use.user, Graph):
                            use.user.set_output(use.index, shifted)
                        else:
                            use.user.set_operand(use.index, shifted)
        blob = super().compile(wrong, options)
        return Blob(blob.program, blob.members, blob.constants, blob.device, blob.report, executor="cpu")


@pytest.fixture
def skewed(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(registry._REGISTERED, "skewed", SkewedBackend)
    monkeypatch.setattr(registry, "_OPEN", dict(registry._OPEN))
    return "skewed"


def test_compare_names_the_first_node_and_reduces(dhc: Command, classifier: Path, skewed: str) -> None:
    words = ["--backend", skewed, "--against", "reference", "--shape", "1x3x8x8"]
    answer = dhc("compare", classifier, *words)
    assert answer.status == 1, answer.err
    assert "'pool' of classifier.onnx" in answer.out.split("first difference:")[1].splitlines()[0]
    assert "--reduce" in answer.out.splitlines()[-1]
    data = dhc("compare", classifier, *words, "--reduce", "part", "--json")
    assert data.status == 1
    assert data.data["first_difference"]["name"] == "means"
    reduced = data.data["reduced"]
    assert reduced["nodes"] == 1 and reduced["whole"] is False
    part = parse_graph(Path(reduced["graph"]).read_text())
    assert [node.location.node for node in part if node.op.name != "constant"] == ["pool"]
    with np.load(reduced["inputs"]) as inputs:
        assert inputs.files == [value.name for value in part.inputs]
    again = ["--input", reduced["inputs"], "--backend", skewed, "--against", "reference"]
    assert dhc("compare", reduced["graph"], *again).status == 1
    again[3] = "cpu"
    assert dhc("compare", reduced["graph"], *again).status == 0


@pytest.mark.parametrize("against", ["onnxruntime", "reference"])
def test_compare_looks_at_the_elements_of_sequences(dhc: Command, folder: Path, against: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `bench`")
    outputs = [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1, 4])]
    nodes = [helper.make_node("SplitToSequence", ["x"], ["s"], axis=0)]
    path = save(folder / "pieces.onnx", nodes, [tensor("x", 2, 4)], outputs, {})
    answer = dhc("compare", path, "--against", against, "--json")
    assert answer.status == 0, answer.err
    assert [t["name"] for t in answer.data["tensors"]] == ["s.0", "s.1"]


def test_compare_errors(dhc: Command, classifier: Path, artifact: Path) -> None:
    assert dhc("compare", artifact).status == 2
    assert dhc("compare", classifier, "--backend", "gpu").status == 2
    assert dhc("compare", classifier, "--rtol", "-1").status == 2


@pytest.mark.parametrize(
    ("a", "b", "ok", "max_abs"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, 0),
        ([1.0, 2.0], [1.0, 2.1], False, 0.1),
        ([1.0, 1e4], [1.0, 1e4 + 0.5], True, 0.5),
        ([np.nan, np.inf], [np.nan, np.inf], True, 0),
        ([np.nan, 1.0], [1.0, 1.0], False, np.inf),
        ([np.inf], [-np.inf], False, np.inf),
        ([], [], True, 0),
        ([1.0], [1.0, 2.0], False, np.inf),
    ],
)
def test_difference(a: list[float], b: list[float], ok: bool, max_abs: float) -> None:
    found = difference("x", "", np.array(a), np.array(b), Tolerance())
    assert found.ok is ok
    assert found.max_abs == pytest.approx(max_abs)


def test_difference_of_types() -> None:
    assert not difference("x", "", np.zeros(2, np.float32), np.zeros(2), Tolerance()).ok
    noisy = difference("x", "", np.array([1.1, 1.0]), np.array([1.0, 1.0]), Tolerance())
    assert noisy.sqnr == pytest.approx(10 * np.log10(2 / 0.01))


# ---- opt -------------------------------------------------------------------------------------------------------------

TEXT = """graph @main(%x: f32[4]) -> (%y: f32[4]) {
  %a = constant() {value = dense<f32[]: 2.0>, dtype = f32} : f32[]
  %b = mul(%a, %a) : f32[]
  %y = mul(%x, %b) : f32[4]
  return %y
}
"""


def test_opt_text_in_text_out(dhc: Command) -> None:
    Path("in.txt").write_text(TEXT)
    answer = dhc("opt", "--passes", "fold,dce", "in.txt")
    assert answer.status == 0, answer.err
    graph = parse_graph(answer.out)
    assert [node.op.name for node in graph] == ["constant", "mul"]
    assert np.array_equal(graph.evaluate(np.ones(4, np.float32))[0], np.full(4, 4, np.float32))


def test_opt_options_and_output(dhc: Command) -> None:
    Path("in.txt").write_text(TEXT)
    words = ["--passes", "clean,fuse{max_nodes=8}", "--verify", "--time-passes", "--print-after", "fold", "-o", "o.txt"]
    answer = dhc("opt", "in.txt", *words)
    assert answer.status == 0, answer.err
    assert "fuse" in answer.out and answer.err.startswith("// after fold")
    assert dhc("opt", "--passes", "", "o.txt").out == Path("o.txt").read_text()
    data = dhc("opt", "in.txt", "--passes", "fold", "--json").data
    assert [record["pass"] for record in data["passes"]] == ["fold"]
    assert parse_graph(data["text"]).name == "main"


def test_opt_reads_models_and_standard_input(dhc: Command, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    assert parse_graph(dhc("opt", "--passes", "cse", classifier).out).symbols() == ["N"]
    stream = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert parse_graph(dhc("opt", "--passes", "cse", "-").out).name == "main"
    assert dhc("opt", "--passes", "cse", classifier, "-o", "back.onnx").status == 0
    assert dhc("check", "back.onnx").status == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--passes", "fuze"], 2, "did you mean"),
        (["--passes", "fuse{size=1}"], 2, "max_nodes"),
        (["--constants", "none"], 2, "elide"),
    ],
)
def test_opt_errors(dhc: Command, words: list[str], status: int, said: str) -> None:
    Path("in.txt").write_text(TEXT)
    answer = dhc("opt", "in.txt", *words)
    assert answer.status == status and said in answer.err


def test_opt_parse_errors_show_the_place(dhc: Command) -> None:
    Path("in.txt").write_text(TEXT.replace("mul(%x", "mull(%x"))
    answer = dhc("opt", "in.txt")
    assert answer.status == 3
    assert "line 4" in answer.err and "^" in answer.err


def test_opt_lists_passes(dhc: Command) -> None:
    assert dhc("opt", "--passes", "list", "-").status == 0
    assert "fuse" in {entry["pass"] for entry in dhc("opt", "--passes", "list", "-", "--json").data["passes"]}


# ---- bench -----------------------------------------------------------------------------------------------------------


def test_bench_model(dhc: Command, classifier: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    words = ["bench", classifier, "--rounds", 3, "--warmup", 1, "--threads", 1, "--shape", "2x3x8x8"]
    data = dhc(*words, "--json").data
    assert set(data["engines"]) == {"dhc", "onnxruntime"}
    assert data["answers"]["equal"] is True and data["ratio"] > 0 and data["threads"] == 1
    for figures in data["engines"].values():
        assert figures["min_ms"] <= figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert "onnxruntime" in dhc(*words).out


def test_bench_artifact(dhc: Command, artifact: Path) -> None:
    data = dhc("bench", artifact, "--rounds", 2, "--shape", "image=4x3x8x8", "--json").data
    assert set(data["engines"]) == {"dhc"} and data["inputs"]["image"]["shape"] == [4, 3, 8, 8]
    assert dhc("bench", artifact, "--against", "onnxruntime").status == 2
    assert dhc("bench", artifact, "--shape", "4x3x8").status == 2
    assert dhc("bench", artifact, "--rounds", 0).status == 2


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor(dhc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path("cache").absolute()
    (cache / "ab").mkdir(parents=True)
    (cache / "ab" / "abcd.o").write_bytes(b"12345")
    (cache / "artifacts").mkdir()
    (cache / "artifacts" / "abcd.dhc").write_bytes(b"123")
    monkeypatch.setenv("DHC_CACHE_DIR", str(cache))
    data = dhc("doctor", "--json").data
    assert data["versions"]["numpy"] == np.__version__
    assert data["cpu"]["target"]["vector_bits"] >= 128 and data["cpu"]["problem"] is None
    held = {"entries": 1, "bytes": 5, "artifacts": 1, "artifact_bytes": 3}
    assert data["cache"] == {"folder": str(cache), "writable": True, "removed": 0, **held}
    assert set(data["devices"]) == {"opencl", "cuda", "pynq"}
    assert all(found["devices"] or found["problem"] for found in data["devices"].values())
    assert {extra["command"] for extra in data["extras"]} == {extra.command for extra in EXTRAS}
    answer = dhc("doctor", "--clear-cache")
    assert answer.status == 0 and "removed 1 kernels" in answer.out
    assert not (cache / "ab" / "abcd.o").exists() and not (cache / "artifacts" / "abcd.dhc").exists()


def test_doctor_takes_no_file(dhc: Command) -> None:
    assert dhc("doctor", "model.onnx").status == 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import time; time.sleep(60)", "did not answer"),
        ("import os; os.abort()", "crashed"),
        ("raise RuntimeError('no such ICD')", "no such ICD"),
        ("print('welcome to the driver')", "no answer"),
    ],
)
def test_a_driver_that_misbehaves_is_a_problem(script: str, said: str) -> None:
    assert said in run_probe("opencl", script, 2.0).problem


def test_a_driver_that_chats_is_understood() -> None:
    script = 'print(\'hello\'); print(\'{"devices": ["one"], "version": "3"}\')'
    found = run_probe("opencl", script, 30.0)
    assert found.devices == ["one"] and found.version == "3" and found.problem == ""


def test_extras_are_those_of_the_project(repository: Path) -> None:
    project: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    declared = project["project"]["optional-dependencies"]
    users = {
        name: entries for name, entries in declared.items() if name not in ("test", "exporters", "lint", "docs", "dev")
    }
    assert {extra.name for extra in EXTRAS} == set(users)
    for extra in EXTRAS:
        everywhere = {_name(entry) for entry in users[extra.name] if ";" not in entry}
        assert set(extra.packages) == everywhere, extra.name


def _name(requirement: str) -> str:
    return requirement.split(">")[0].split("=")[0].split("[")[0].strip()


# ---- demo ------------------------------------------------------------------------------------------------------------


def test_demo_calls_the_demo(dhc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import dhc.cli.demo as demo

    def run_demo(out: Path, report: Any) -> dict[str, Any]:
        report("working")
        return {"accuracy": {"dhc": 1.0}, "files": {"dhc": str(out / "digits.dhc")}}

    monkeypatch.setattr(demo, "run_demo", run_demo)
    answer = dhc("demo", "--out", "there")
    assert answer.status == 0
    assert answer.out.splitlines() == ["working", "next: dhc inspect there/digits.dhc"]
    assert dhc("demo", "--json").data["accuracy"] == {"dhc": 1.0}
    assert dhc("demo", "--oot", "x").status == 2
