"""dhc itself: compiled ahead, loaded as an artifact."""

from __future__ import annotations

import time
from pathlib import Path

from bench.peers import Run, converted
from bench.signature import Signature

NAME = "dhc"


def version() -> str:
    import dhc

    return dhc.__version__


def prepare(model: Path, signature: Signature) -> Path:
    """Compiles; always anew, since the compiler is what is being worked on."""
    import dhc

    path = converted(model, "dhc")
    start = time.perf_counter()
    artifact = dhc.compile(dhc.load_onnx(model))
    compile_seconds[model.stem] = time.perf_counter() - start
    artifact.save(path)
    return path


compile_seconds: dict[str, float] = {}
"""Seconds that import and compilation took, by model."""


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import dhc_runtime

    session = dhc_runtime.load(prepared, threads=threads)
    return lambda given: list(session.run(given).values())


def warm_import() -> None:
    import dhc_runtime  # noqa: F401
