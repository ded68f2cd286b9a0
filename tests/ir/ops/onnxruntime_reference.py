"""Models of one ONNX node, run by ONNX Runtime, and calls of one dhc op, run by the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dhc.ir.builder import Builder
from dhc.ir.dtypes import dtype
from dhc.ir.graph import Graph

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run_onnx(
    op: str, inputs: Sequence[np.ndarray | None], outputs: int = 1, opset: int = 21, **attrs: Any
) -> list[np.ndarray]:
    """Results of an ONNX operator; None stands for an input that is left out."""
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attrs)
    given = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs)
        if a is not None
    ]
    taken = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", given, taken), opset_imports=[onnx.helper.make_opsetid("", opset)]
    )
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, {n: a for n, a in zip(names, inputs) if a is not None})
    return results


def graph_of(op: str, arrays: Sequence[np.ndarray], attrs: dict[str, Any], symbolic: Sequence[str] = ()) -> Graph:
    """A graph of one call.

    Args:
        op: the op's name.
        arrays: operands; their shapes are the inputs' shapes.
        attrs: attributes.
        symbolic: sizes of the first operand, outermost first, as expressions; empty: as in the array.
    """
    graph = Graph(op)
    shapes: list[Sequence[Any]] = [a.shape for a in arrays]
    if symbolic:
        shapes[0] = symbolic
    inputs = [graph.input(f"x{i}", dtype(a.dtype), s) for i, (a, s) in enumerate(zip(arrays, shapes))]
    results = Builder(graph).call(op, *inputs, attrs=attrs)
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    return graph


def run_dhc(op: str, arrays: Sequence[np.ndarray], **attrs: Any) -> list[np.ndarray]:
    """Results of one dhc op in the interpreter."""
    return graph_of(op, arrays, attrs).evaluate(*arrays)


def assert_close(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 2e-5) -> None:
    """Equal dtypes and shapes, numbers within a tolerance."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
