"""TVM's Relax with its default pipeline for CPUs; asked for by name only.

Without hours of tuning for each model its loops are neither tiled nor vectorised, hundreds of times slower than the
others; what a tuned build reaches must be measured by who tunes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.peers import Arrays, Run
from bench.signature import Signature

NAME = "tvm"


def version() -> str:
    import tvm

    return str(tvm.__version__)


def prepare(model: Path, signature: Signature) -> Path:
    return model


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    target = tvm.target.Target({"kind": "llvm", "mcpu": "native", "num-cores": threads})
    program = tvm.compile(from_onnx(onnx.load(str(prepared))), target=target)
    machine = relax.VirtualMachine(program, tvm.cpu())

    def run(given: Arrays) -> list[np.ndarray]:
        made = machine["main"](*[tvm.runtime.tensor(array) for array in given.values()])
        return [made.numpy()] if len(signature.outputs) == 1 and hasattr(made, "numpy") else [v.numpy() for v in made]

    return run


def warm_import() -> None:
    import tvm  # noqa: F401
