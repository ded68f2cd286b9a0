"""The suite's networks: the sizes that their papers give, answers that depend on the input, the same file each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.networks import SUITE, Network, model_file, random_inputs
from bench.networks.net import Net

PUBLISHED = sorted(name for name, network in SUITE.items() if network.published is not None)
SMALL = ("bilstm_seizure", "caption_step", "dcgan_g64", "eeg_cnn1d", "mobilenet_v2")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture_has_the_published_number_of_parameters(name: str, monkeypatch) -> None:
    # Only the count matters here: drawing a hundred million numbers would take its time.
    monkeypatch.setattr(Net, "normal", lambda net, shape, deviation: net._trainable(_cheap(shape)))
    assert SUITE[name].net().parameters / 1e6 == pytest.approx(SUITE[name].published, rel=5e-4)


def _cheap(shape) -> np.ndarray:
    return np.broadcast_to(np.float32(0), tuple(shape))


@pytest.mark.parametrize("name", SMALL)
def test_outputs_depend_on_the_input_and_stay_of_moderate_size(name: str, tmp_path: Path, monkeypatch) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setenv("DHC_BENCH_CACHE", str(tmp_path))
    session = ort.InferenceSession(str(model_file(name)), providers=["CPUExecutionProvider"])
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    first, second = (session.run(None, random_inputs(shapes, seed))[0] for seed in (1, 2))
    assert 1e-3 < np.abs(first).max() < 1e3
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_a_file_is_written_once_and_is_the_same_each_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DHC_BENCH_CACHE", str(tmp_path))
    path = model_file("meshnet3d")
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert model_file("meshnet3d").stat().st_mtime_ns == written
    path.with_suffix(".version").write_text("of another version")
    assert model_file("meshnet3d").read_bytes() == content
    assert path.stat().st_mtime_ns > written


def test_batch_norms_statistics_are_not_counted_as_parameters() -> None:
    network = Network("one", lambda net: net.output(net.batch_norm(net.input("x", (1, 3, 4, 4))), "y"))
    assert network.net().parameters == 6


def test_prelu_has_one_parameter_and_is_exported_as_prelu() -> None:
    from dhc.frontend.onnx import to_onnx

    net = Net("prelu")
    net.output(net.prelu(net.input("x", (1, 2, 3, 3))), "y")
    assert net.parameters == 1
    model = to_onnx(net.graph)
    assert [node.op_type for node in model.graph.node] == ["PRelu"]
    assert len(model.graph.initializer) == 1
