"""PyTorch without a compiler, convolutions channels-last."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.peers import Arrays, Run
from bench.signature import Signature

NAME = "torch_eager"


def version() -> str:
    import torch

    return str(torch.__version__)


def prepare(model: Path, signature: Signature) -> Path:
    return model


def load(prepared: Path, threads: int, signature: Signature) -> Run:
    import torch

    import dhc
    from bench.peers.torch_graph import GraphModule, channels_last, input_tensor

    torch.set_num_threads(threads)
    module = GraphModule(dhc.load_onnx(prepared)).eval()
    channels_last(module)

    def run(given: Arrays) -> list[np.ndarray]:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return [value.numpy() for value in module(*[input_tensor(array) for array in given.values()])]

    return run


def warm_import() -> None:
    import torch  # noqa: F401
