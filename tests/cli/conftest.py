"""Small models, and a command line that runs in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dhc.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """Its JSON; nothing else may be on standard output."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Answer]


@pytest.fixture
def dhc(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*words: object) -> Answer:
        capfd.readouterr()
        status = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Path:
    """Writes an ONNX model of the opset 17."""
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def tensor(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> Any:
    """A declared input or output."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models lie."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def classifier(folder: Path) -> Path:
    """Scores of three classes: means of the channels of an image ``[N,3,8,8]``, doubled."""
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"], "relu"),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"], "pool"),
        helper.make_node("Flatten", ["means"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"], "head"),
    ]
    weight = {"weight": 2 * np.eye(3, dtype=np.float32)}
    inputs, outputs = [tensor("image", "N", 3, 8, 8)], [tensor("scores", "N", 3)]
    return save(folder / "classifier.onnx", nodes, inputs, outputs, weight)


@pytest.fixture(scope="session")
def adder(folder: Path) -> Path:
    """Two inputs, two outputs: sum and product of ``a`` and ``b``, both ``[2,3]``."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Mul", ["a", "b"], ["product"], "mul"),
    ]
    inputs = [tensor("a", 2, 3), tensor("b", 2, 3)]
    return save(folder / "adder.onnx", nodes, inputs, [tensor("sum", 2, 3), tensor("product", 2, 3)], {})


@pytest.fixture(scope="session")
def foreign(folder: Path) -> Path:
    """A model with two operators that nobody knows."""
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["y"], "first"),
        helper.make_node("Sofmax", ["y"], ["z"], "second"),
    ]
    return save(folder / "foreign.onnx", nodes, [tensor("x", 2)], [tensor("z", 2)], {})


@pytest.fixture(scope="session")
def artifact(classifier: Path) -> Path:
    """The classifier, compiled."""
    path = classifier.with_suffix(".dhc")
    assert main(["compile", str(classifier), "-o", str(path), "--json"]) == 0
    return path


@pytest.fixture(scope="session")
def reds(folder: Path) -> Path:
    """An image of 8 x 8 red pixels."""
    image = pytest.importorskip("PIL.Image", reason="needs the extra `imaging`")
    path = folder / "red.png"
    image.new("RGB", (8, 8), (255, 0, 51)).save(path)
    return path
