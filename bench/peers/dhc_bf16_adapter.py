"""dhc with ``--precision bf16``."""

from __future__ import annotations

from pathlib import Path

from bench.peers import converted
from bench.peers.dhc_adapter import load as load
from bench.peers.dhc_adapter import version as version
from bench.peers.dhc_adapter import warm_import as warm_import
from bench.signature import Signature

NAME = "dhc_bf16"


def prepare(model: Path, signature: Signature) -> Path:
    """Compiles; always anew, since the compiler is what is being worked on."""
    import dhc

    path = converted(model, "bf16.dhc")
    dhc.compile(dhc.load_onnx(model), precision="bf16").save(path)
    return path
