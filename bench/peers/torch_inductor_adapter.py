"""PyTorch with its compiler, weights frozen so that batch norms fold; the first run compiles, or reads its cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.peers import Arrays, Run
from bench.signature import Signature

NAME = "torch_inductor"


def version() -> str:
    import torch

    return str(torch.__version__)


def prepare(model: Path, signature: Signature) -> Path:
    return model


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import torch
    import torch._inductor.config as settings

    import dhc
    from bench.peers.torch_graph import GraphModule, channels_last, input_tensor

    settings.freezing = True
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    module = GraphModule(dhc.load_onnx(prepared)).eval()
    channels_last(module)
    compiled = torch.compile(module)

    def run(given: Arrays) -> list[np.ndarray]:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return [value.numpy() for value in compiled(*[input_tensor(array) for array in given.values()])]

    return run


def warm_import() -> None:
    import torch  # noqa: F401
