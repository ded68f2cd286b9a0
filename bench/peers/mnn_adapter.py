"""MNN from its wheel, precision high (float32), converted by its own tool."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np

from bench.peers import Arrays, PeerError, Run, converted, is_current
from bench.peers.tools import run_tool
from bench.signature import Signature

NAME = "mnn"


def version() -> str:
    return installed("MNN")


def prepare(model: Path, signature: Signature) -> Path:
    path = converted(model, "mnn")
    if not is_current(path, model):
        # The command mnnconvert would report to a server, and install a package for that.
        here, there = str(model.absolute()), str(path.absolute())
        options = ["-f", "ONNX", "--modelFile", here, "--MNNModel", there, "--bizCode", "bench"]
        code = f"import _tools; _tools.mnnconvert({['mnnconvert', *options]!r})"
        run_tool([sys.executable, "-c", code], path)
    return path


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import MNN
    from MNN import expr, nn

    runtime = nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    module = nn.load_module_from_file(
        str(prepared), list(signature.inputs), list(signature.outputs), runtime_manager=runtime
    )
    if module is None:
        raise PeerError("load_module_from_file gives nothing")

    def run(given: Arrays) -> list[np.ndarray]:
        inputs = []
        for array in given.values():
            held = expr.placeholder(list(array.shape), expr.NCHW, MNN.numpy.float32)
            held.write(array)
            inputs.append(held)
        return [np.array(expr.convert(value, expr.NCHW).read(), copy=True) for value in module.forward(inputs)]

    return run


def warm_import() -> None:
    import MNN  # noqa: F401
