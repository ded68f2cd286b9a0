"""OpenVINO, latency hint, float32 forced: its default on processors with bf16 rounds to bf16.

Its threads are not tied to cores: that is no quicker here, and sessions opened one after the other in one process
can end up tied to the same core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.peers import Arrays, Run
from bench.signature import Signature

NAME = "openvino"


def version() -> str:
    import openvino

    return str(openvino.__version__).split("-")[0]


def prepare(model: Path, signature: Signature) -> Path:
    return model


def load(prepared: Path, threads: int, signature: Signature, precision: str = "f32") -> Run:
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = ov.Core().compile_model(str(prepared), "CPU", settings)
    request = compiled.create_infer_request()
    outputs = compiled.outputs

    def run(given: Arrays) -> list[np.ndarray]:
        results = request.infer(dict(given), share_inputs=True)
        return [results[output] for output in outputs]

    return run


def warm_import() -> None:
    import openvino  # noqa: F401
