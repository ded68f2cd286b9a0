"""onnxruntime, all optimisations, sequential execution."""

from __future__ import annotations

from pathlib import Path

from bench.peers import Run
from bench.signature import Signature

NAME = "onnxruntime"


def version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def prepare(model: Path, signature: Signature) -> Path:
    return model


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(prepared), options, providers=["CPUExecutionProvider"])
    return lambda given: list(session.run(None, dict(given)))


def warm_import() -> None:
    import onnxruntime  # noqa: F401
