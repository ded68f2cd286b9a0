"""From a file to the first answer in a fresh process that has numpy already: dhc_runtime beside onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.interleaved import median
from bench.light_models import with_random_weights

TITLE = "Loading a network and the first inference, fresh process with numpy imported (ms); the limit for dhc is 500"

# Random weights: constant ones would be stored once where layers share a shape, and be less than a real network has.
_MODELS = ("resnet50", "squeezenet")
_ROUNDS = 9
_THREADS = 2

_DHC = """
import sys, time
import numpy as np
start = time.perf_counter()
import dhc_runtime
session = dhc_runtime.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
port = session.inputs[0]
session.run({port.name: np.zeros([d if isinstance(d, int) else 1 for d in port.shape], np.float32)})
print(loaded - start, time.perf_counter() - loaded)
"""
_ONNXRUNTIME = """
import sys, time
import numpy as np
start = time.perf_counter()
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
port = session.get_inputs()[0]
session.run(None, {port.name: np.zeros([d if isinstance(d, int) else 1 for d in port.shape], np.float32)})
print(loaded - start, time.perf_counter() - loaded)
"""


def run() -> list[dict[str, Any]]:
    """Medians over fresh processes that take turns; import of the engine included."""
    import dhc

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in _MODELS:
            model, artifact = Path(folder) / f"{name}.onnx", Path(folder) / f"{name}.dhc"
            model.write_bytes(with_random_weights(name))
            dhc.compile(dhc.load_onnx(model)).save(artifact)
            candidates = {"dhc": (_DHC, artifact)}
            if find_spec("onnxruntime") is not None:
                candidates["onnxruntime"] = (_ONNXRUNTIME, model)
            times: dict[str, list[tuple[float, float]]] = {engine: [] for engine in candidates}
            for _ in range(_ROUNDS):
                for engine, (code, path) in candidates.items():
                    times[engine].append(_process(code, path))
            for engine, pairs in times.items():
                load, first = (median([pair[part] for pair in pairs]) for part in (0, 1))
                total = median([sum(pair) for pair in pairs])
                rows.append(
                    {
                        "model": name,
                        "engine": engine,
                        "MB": candidates[engine][1].stat().st_size / 1e6,
                        "load": load,
                        "first run": first,
                        "together": total,
                    }
                )
    return rows


def _process(code: str, path: Path) -> tuple[float, float]:
    # A user's Python keeps compiled modules; some build machines forbid it, which would be measured here.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code, str(path), str(_THREADS)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    load, first = (float(text) * 1e3 for text in done.stdout.split())
    return load, first
