"""A real artifact, made once; children that are measured; folders that are full or cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhc
from tests.models import light_models

RSS_LIMIT = 200 << 20
"""Bytes that hostile input may make a process take."""

# What every measured child begins with. `grown()` is what its peak of resident memory rose by since `start()`.
_PRELUDE = """
import json, sys
import numpy
import dhc_runtime
from dhc_runtime.errors import DhcError

def peak():
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmHWM"))

def start():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
        stream.write("5")  # the peak counts from here
    return peak()
"""


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ShuffleNet of the onnx package: 78 steps, 19 kernels, 2.9 MB."""
    path = tmp_path_factory.mktemp("artifact") / "shufflenet.dhc"
    dhc.compile(dhc.load_onnx(light_models.path_of("light_shufflenet")), targets=["cpu"]).save(path)
    return path


def small_model() -> bytes:
    """Two convolutions, pooling, a dense layer and softmax: the kinds of kernels, and soon compiled."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(4)
    weights = {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (16, 10), "b3": (10,)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "w2"], ["d"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), k) for k, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def measured_child() -> Callable[..., dict[str, Any]]:
    """Runs a script in a child and gives what it prints as JSON; a crash or too much memory fails the test."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell the peak memory of a process")

    def run(script: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", _PRELUDE + script, *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-3000:]}"
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert result["grown"] <= RSS_LIMIT
        return result

    return run


def one_paragraph(text: str) -> bool:
    """Whether a message is one readable paragraph: no trace, no blank line, not endless."""
    return bool(text.strip()) and "\n\n" not in text.strip() and "Traceback" not in text and len(text) < 1500


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory with given options; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip("only root may mount a file system")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)
