"""The light models of the onnx package: real architectures whose weights are made by ConstantOfShape nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

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


def with_random_weights(name: str, seed: int = 1) -> bytes:
    """The model with seeded random weights instead of constant ones, so that its output depends on its input.

    Weights of convolutions and matrix products are drawn so that values keep their size from layer to layer; scales
    and variances are near one, shifts and means near zero.
    """
    model = onnx.load(path_of(name))
    graph = model.graph
    rng = np.random.default_rng(seed)
    shapes = {t.name: [int(n) for n in numpy_helper.to_array(t)] for t in graph.initializer if t.data_type == 7}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    roles: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "BatchNormalization"):
            for position, operand in enumerate(node.input[1:], start=1):
                if operand in makers:
                    roles[operand] = f"{node.op_type} {position}"
    weights = []
    for output, node in makers.items():
        shape, role = shapes[node.input[0]], roles.get(output, "")
        if role in ("Conv 1", "Gemm 1"):
            values = rng.standard_normal(shape) * np.sqrt(2.0 / max(int(np.prod(shape[1:])), 1))
        elif role in ("BatchNormalization 1", "BatchNormalization 4"):
            values = rng.uniform(0.8, 1.2, shape)
        elif role:
            values = 0.1 * rng.standard_normal(shape)
        else:  # scales and shifts written as Mul and Add
            values = rng.uniform(0.5, 1.0, shape)
        weights.append(numpy_helper.from_array(values.astype(np.float32), output))
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    return bytes(model.SerializeToString())
