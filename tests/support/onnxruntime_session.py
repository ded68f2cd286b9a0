"""onnxruntime, the engine that tests take for the truth about an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def onnxruntime_session(model: Path | bytes, optimize: bool = True, threads: int = 2) -> Any:
    """A session on the CPU that logs nothing.

    Without graph optimisation it does what the model says, node by node; with it, int8 models run in fused kernels
    that round differently.
    """
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.read_bytes() if isinstance(model, Path) else model
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
