"""Runs one op on arrays: in the reference interpreter, and the ONNX operator of the same meaning in onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Graph


def run_op(name: str, *arrays: Any, dtypes: tuple[DType | str, ...] = (), **attrs: Any) -> Any:
    """The result of an op, or a tuple of them; `dtypes` where an array does not tell (i4, u4)."""
    operands = [np.asarray(a) for a in arrays]
    kinds = [as_dtype(d) for d in dtypes] or [as_dtype(a.dtype) for a in operands]
    graph = Graph(name)
    inputs = [graph.input(f"x{i}", d, a.shape) for i, (d, a) in enumerate(zip(kinds, operands))]
    results = Builder(graph).call(name, *inputs, attrs=attrs)
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    values = graph.evaluate(*operands)
    return values[0] if len(values) == 1 else tuple(values)


def run_onnx(op: str, *arrays: Any, opset: int = 20, outputs: int = 1, **attrs: Any) -> Any:
    """The result of one ONNX operator in onnxruntime."""
    import onnx
    import onnxruntime

    operands = [np.asarray(a) for a in arrays]
    names = [f"x{i}" for i in range(len(operands))]
    results = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(op, names, results, **attrs)
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, operands)
    ]
    untyped = [onnx.helper.make_empty_tensor_value_info(n) for n in results]
    graph = onnx.helper.make_graph([node], "single", inputs, untyped)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(None, dict(zip(names, operands)))
    return values[0] if outputs == 1 else tuple(values)
