"""Cold and warm compile of whole networks, by stage: what a user waits for once."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.light_models import light_model

TITLE = "Compile time of whole networks (seconds), kernel cache empty and filled"

_MODELS = ("resnet50", "densenet121", "squeezenet")


def run() -> list[dict[str, Any]]:
    """One cold and one warm compile of each model with a kernel cache of its own."""
    import dhc

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in _MODELS:
            os.environ["DHC_CACHE_DIR"] = str(Path(folder) / name)
            for state in ("cold", "warm"):
                start = time.perf_counter()
                graph = dhc.load_onnx(light_model(name))
                imported = time.perf_counter() - start
                artifact = dhc.compile(graph)
                total = time.perf_counter() - start
                seconds = artifact.report.seconds
                rows.append(
                    {
                        "model": name,
                        "cache": state,
                        "import": imported,
                        "passes": seconds["passes"],
                        "lowering": seconds.get("lowering", 0.0),
                        "code": seconds.get("code", 0.0),
                        "packaging": seconds["packaging"],
                        "total": total,
                        "kernels compiled": artifact.report.backend.get("compiled", 0),
                        "artifact MB": len(artifact.to_bytes()) / 1e6,
                    }
                )
    return rows
