"""The light models of the onnx package: real architectures whose weights are made by ConstantOfShape nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bench.light_models import with_random_weights

__all__ = [
    "CONVOLUTIONAL",
    "NAMES",
    "folder",
    "package_input",
    "path_of",
    "stored_output",
    "with_random_weights",
]

NAMES = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_squeezenet",
    "light_vgg19",
    "light_zfnet512",
)
CONVOLUTIONAL = tuple(name for name in NAMES if name not in ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512"))
"""Those without fully connected layers of hundreds of megabytes."""


def folder() -> Path:
    """Where the onnx package keeps them."""
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def path_of(name: str) -> Path:
    return folder() / f"{name}.onnx"


def stored_output(name: str) -> np.ndarray:
    """The output that the package stores for `package_input`."""
    data = (folder() / f"{name}_output_0.pb").read_bytes()
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def package_input() -> np.ndarray:
    """The input for which the package's tests know the output: rising numbers between 0 and 1."""
    size = 3 * 224 * 224
    return (np.arange(size, dtype=np.float64) / size).astype(np.float32).reshape(1, 3, 224, 224)
