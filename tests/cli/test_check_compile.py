"""`check` and `compile`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import dhc_runtime

from dhc.backends.cpu.contract.winograd_transform import error_bound
from tests.cli.conftest import Command, save, tensor


def test_check_shows_every_op(dhc: Command, classifier: Path) -> None:
    answer = dhc("check", classifier)
    assert answer.status == 0
    for word in ("relu", "matmul", "image: f32[N, 3, 8, 8]", "scores: f32[N, 3]", "takes every op"):
        assert word in answer.out
    assert answer.out.strip().splitlines()[-1].startswith("next: dhc compile ")


def test_check_json_counts_work(dhc: Command, classifier: Path) -> None:
    data = dhc("check", classifier, "--json", "--shape", "2x3x8x8").data
    assert data["supported"] is True
    assert data["inputs"] == [{"name": "image", "dtype": "f32", "shape": [2, 3, 8, 8]}]
    rows = {row["op"]: row for row in data["ops"]}
    assert rows["matmul"]["count"] == 1 and rows["matmul"]["device"] == "cpu"
    # 2 images x 3 classes x 3 products and sums
    assert rows["matmul"]["flops"] == 2 * 2 * 3 * 3
    assert data["flops"] == sum(row["flops"] for row in rows.values())


def test_check_lists_all_unknown_operators(dhc: Command, foreign: Path) -> None:
    answer = dhc("check", foreign)
    assert answer.status == 4
    assert "Frobnicate" in answer.out and "Sofmax" in answer.out and "Softmax" in answer.out
    data = dhc("check", foreign, "--json").data
    assert data["supported"] is False and len(data["unsupported"]) == 2


def test_check_names_what_a_target_refuses(dhc: Command, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dhc.backends.cpu.backend import CpuBackend
    from dhc.ir.op import Limitation

    supports = CpuBackend.supports
    monkeypatch.setattr(
        CpuBackend, "supports", lambda self, n: Limitation("too dull") if n.op.name == "relu" else supports(self, n)
    )
    answer = dhc("check", classifier)
    assert answer.status == 4
    assert "not supported: relu at Relu node 'relu' of classifier.onnx: too dull" in answer.out
    row = dhc("check", classifier, "--json").data["ops"][0]
    assert row["op"] == "relu" and row["device"] == "" and row["reason"].startswith("too dull")


def test_explain_lists_refused_rewrites(dhc: Command, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dhc.passes.base import PassResult, Refusal
    from dhc.passes.fuse import Fuse

    refusal = Refusal("fuse", "node 'head'", "the moon is full")
    monkeypatch.setattr(Fuse, "run", lambda self, graph: PassResult(refusals=[refusal]))
    assert "the moon is full" in dhc("check", classifier, "--explain").out
    assert "--explain says why" in dhc("check", classifier).out


@pytest.mark.parametrize(
    ("shape", "status", "said"),
    [
        ("image=1x3x8x8", 0, ""),
        ("1x3x8x8", 0, ""),
        ("1,3,8,8", 0, ""),
        ("image=Mx3x8x8", 0, ""),
        ("imag=1x3x8x8", 2, "did you mean 'image'"),
        ("1x3x8x-8", 2, "neither a size nor a name"),
        ("1x3x8x99999999999999999", 2, "too large"),
        ("1x3", 3, "rank"),
    ],
)
def test_shapes(dhc: Command, classifier: Path, shape: str, status: int, said: str) -> None:
    answer = dhc("check", classifier, "--shape", shape)
    assert answer.status == status, answer.err
    assert said in answer.err


def test_a_shape_without_a_name_needs_one_input(dhc: Command, adder: Path) -> None:
    answer = dhc("check", adder, "--shape", "2x3")
    assert answer.status == 2
    assert "a, b" in answer.err and "--shape a=2x3" in answer.err


def test_compile_writes_an_artifact_and_reports_stages(dhc: Command, classifier: Path) -> None:
    answer = dhc("compile", classifier, "-o", "out.dhc", "--threads", 1, "--shape", "1x3x8x8", "--verify")
    assert answer.status == 0, answer.err
    for word in ("import", "passes", "lowering", "code", "packaging", "kernels", "artifact", "memory"):
        assert word in answer.out
    assert "next: dhc run out.dhc --input image=FILE" in answer.out
    with dhc_runtime.load("out.dhc") as session:
        assert session.inputs[0].shape == (1, 3, 8, 8)
        assert session.threads == 1


def test_compile_json_and_symbols(
    dhc: Command, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHC_CACHE_DIR", str(tmp_path / "cache"))  # an earlier run's artifact is not compiled again
    data = dhc("compile", classifier, "--json").data
    assert data["artifact"] == "classifier.dhc"
    assert data["memory"] is None  # the batch is open
    assert data["bytes"]["artifact"] == Path("classifier.dhc").stat().st_size
    assert set(data["seconds"]) == {"import", "passes", "lowering", "code", "packaging", "writing"}
    static = dhc("compile", classifier, "--json", "--shape", "4x3x8x8").data
    assert static["memory"]["arena"] >= static["memory"]["lower_bound"] > 0


def test_no_cache_compiles_every_kernel(dhc: Command, adder: Path) -> None:
    dhc("compile", adder, "--json")
    cached = dhc("compile", adder, "--json").data
    fresh = dhc("compile", adder, "--json", "--no-cache").data
    assert cached["compiled"] == 0 and cached["cached"] == cached["kernels"]
    assert fresh["cached"] == 0 and fresh["compiled"] == fresh["kernels"]


def test_exact_compiles_plain_sums(dhc: Command) -> None:
    weight = np.ones((32, 32, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])
    shape = (1, 32, 56, 56)
    save(Path("conv.onnx"), [node], [tensor("x", *shape)], [tensor("y", *shape)], {"weight": weight})
    for words, found in (([], True), (["--exact"], False)):
        assert dhc("compile", "conv.onnx", "--emit-kernels", f"sources{found}", *words).status == 0
        assert any(Path(f"sources{found}").glob("winograd*.ll")) == found
        reported = dhc("compile", "conv.onnx", *words)
        assert (f"{error_bound(4, 32):.1e}" in reported.out) == found
        layers = dhc("compile", "conv.onnx", "--json", *words).data["winograd"]
        assert [(layer["tile"], layer["terms"]) for layer in layers] == [("4x4", 32)] * found
        for layer in layers:
            assert layer["bound"] == error_bound(4, 32) and "Conv" in layer["node"]


@pytest.mark.parametrize("words", [["--emit-kernels", "sources"], ["--emit", "kernels", "sources"]])
def test_emitted_kernels_are_files(dhc: Command, classifier: Path, words: list[str]) -> None:
    assert dhc("compile", classifier, *words).status == 0
    assert {path.suffix for path in Path("sources").iterdir()} <= {".py", ".ll"}
    assert len(list(Path("sources").iterdir())) >= 2


def test_kernels_of_opaque_ops_are_emitted_too(dhc: Command) -> None:
    Path("in.txt").write_text(
        "graph @main(%x: f32[8]) -> (%y: f32[8]) {\n  %y, %i = sort(%x) {axis = 0} : f32[8], i64[8]\n  return %y\n}\n"
    )
    assert dhc("compile", "in.txt", "--emit-kernels", "sources").status == 0
    assert any("def " in path.read_text() for path in Path("sources").glob("*.py"))


def test_print_after_shows_the_graph_on_stderr(dhc: Command, classifier: Path) -> None:
    answer = dhc("compile", classifier, "--print-after", "fuse")
    assert answer.status == 0
    assert answer.err.startswith("// after fuse") and "graph @net" in answer.err
    assert "graph @net" not in answer.out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--target", "gpu"], 2, "no target 'gpu'"),
        (["--cpu", "x86-64-v9"], 2, "x86-64-v4"),
        (["-o", "no/such/folder/x.dhc"], 2, "no folder"),
        (["--emit", "stars", "there"], 2, "kernels"),
        (["--print-after", "fuze"], 2, "did you mean"),
    ],
)
def test_compile_errors(dhc: Command, classifier: Path, words: list[str], status: int, said: str) -> None:
    answer = dhc("compile", classifier, *words)
    assert answer.status == status
    assert said in answer.err
    assert list(Path().iterdir()) == []


def test_compile_of_an_unsupported_model(dhc: Command, foreign: Path) -> None:
    answer = dhc("compile", foreign)
    assert answer.status == 4
    assert "Frobnicate" in answer.err and "Sofmax" in answer.err


def test_compile_of_something_else(dhc: Command, artifact: Path) -> None:
    Path("noise.onnx").write_bytes(b"\xff\xfe" * 100)
    assert dhc("compile", "noise.onnx").status == 3
    assert dhc("compile", artifact).status == 2


@pytest.mark.parametrize("words", [[], ["--shape", "2x3x8x8"]])
def test_a_model_that_breaks_the_importer_is_at_fault(
    dhc: Command, classifier: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("strange")

    monkeypatch.setattr("dhc.frontend.onnx.importer.import_model", broken)
    answer = dhc("check", classifier, *words)
    assert answer.status == 3 and "is not valid" in answer.err


def test_compile_within_a_limit_of_memory(dhc: Command, tmp_path: Path) -> None:
    from dhc.frontend.onnx import save_onnx
    from tests.backends.cpu.differential.test_tiled import unet

    model = tmp_path / "unet.onnx"
    save_onnx(unet(192, 192), model)
    answer = dhc("compile", model, "--max-memory", "2.2M", "--threads", "2", "--json").data
    assert answer["patches"] > 1 and answer["patch_size"][0] < 192 and answer["patch_work"] > 1
    assert answer["memory"]["arena"] < 2.2 * 2**20
    table = dhc("compile", model, "--max-memory", "2.2M", "--threads", "2").out
    assert "patches" in table and "the work of the whole" in table
    refused = dhc("compile", model, "--max-memory", "much")
    assert refused.status == 2 and "--max-memory 800M" in refused.err
