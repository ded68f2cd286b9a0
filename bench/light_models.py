"""The classification networks that ship in the onnx package: the size and shape of the real ones, weights made up."""

from __future__ import annotations

from pathlib import Path


def light_model(name: str) -> Path:
    """Path of a model such as ``resnet50``.

    Raises:
        FileNotFoundError: this version of the onnx package has none of that name.
    """
    import onnx

    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"the onnx package holds no {path.name}")
    return path


def with_random_weights(name: str, seed: int = 1) -> bytes:
    """A model such as ``resnet50`` with seeded random weights, not constant ones: its output depends on its input.

    Weights of convolutions and matrix products are drawn so that values keep their size from layer to layer; scales
    and variances are near one, shifts and means near zero.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(light_model(name.removeprefix("light_")))
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
    # Files before version 4 list weights among the inputs, and some readers then want them fed.
    model.ir_version = max(model.ir_version, 8)
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)
    return bytes(model.SerializeToString())
