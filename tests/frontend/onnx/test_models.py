"""Real models against onnxruntime: import and interpreter, then import, export and onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhc.frontend.onnx import load_onnx
from tests.frontend.onnx.real_models import SHAPES, assert_close, model_bytes, reference, sample


def test_every_shared_model_has_a_test(shared_data: Path) -> None:
    assert sorted(p.stem for p in (shared_data / "models").glob("*.onnx")) == sorted(SHAPES)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_model_agrees_with_onnxruntime(shared_data: Path, name: str) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    data, x = model_bytes(path), sample(path)
    (input_value,) = load_onnx(data).inputs
    results = load_onnx(data).evaluate(**{input_value.name: x})
    assert_close(results, reference(data, x), "int8" in name)


@pytest.mark.parametrize("shape", [(1, 3, 16, 20), (2, 3, 32, 16)])
def test_one_symbolic_graph_serves_several_shapes(shared_data: Path, shape: tuple[int, ...]) -> None:
    import numpy as np

    data = (shared_data / "models" / "retina_wnet_vessels.onnx").read_bytes()
    graph = load_onnx(data)
    x = np.random.default_rng(1).random(shape, dtype=np.float32)
    assert_close(graph.evaluate(x), reference(data, x), False)
