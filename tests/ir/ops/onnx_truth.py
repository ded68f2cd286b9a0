"""What onnxruntime says one ONNX operator computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper


def run_onnx(
    op: str, arrays: Sequence[np.ndarray | None], results: int = 1, opset: int = 18, **attrs: Any
) -> list[Any]:
    """Runs one operator on arrays (None: operand left out) and returns all its results."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays)
        if a is not None
    ]
    outputs = [f"y{i}" for i in range(results)]
    node = helper.make_node(op, names, outputs, **attrs)
    graph = helper.make_graph([node], op, inputs, [onnx.ValueInfoProto(name=n) for n in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {n: a for n, a in zip(names, arrays) if a is not None}))
