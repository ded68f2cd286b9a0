"""One op applied to arrays by the interpreter, and the ONNX operator of the same meaning by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Graph
from tests.support.onnxruntime_session import onnxruntime_session


def graph_of(
    op: str,
    arrays: Sequence[np.ndarray],
    attrs: Mapping[str, Any] | None = None,
    symbolic: bool | Sequence[Any] = False,
    dtypes: Sequence[DType | str] = (),
) -> Graph:
    """A graph of one call.

    Args:
        op: the op's name.
        arrays: operands; their shapes are the inputs' shapes.
        attrs: attributes.
        symbolic: True makes every size of every operand a symbol of its own (``s0_1``: operand 0, axis 1); a
            sequence gives the sizes of the first operand, outermost first, as expressions; empty or False: as given.
        dtypes: of the operands, where an array does not tell (i4, u4).
    """
    graph = Graph(op)
    shapes: list[Sequence[Any]] = [a.shape for a in arrays]
    if symbolic is True:
        shapes = [[f"s{i}_{axis}" for axis in range(a.ndim)] for i, a in enumerate(arrays)]
    elif symbolic:
        shapes[0] = symbolic
    kinds = [as_dtype(d) for d in dtypes] or [as_dtype(a.dtype) for a in arrays]
    inputs = [graph.input(f"x{i}", kind, shape) for i, (kind, shape) in enumerate(zip(kinds, shapes))]
    results = Builder(graph).call(op, *inputs, attrs=dict(attrs or {}))
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    return graph


def run_dhc(op: str, arrays: Sequence[np.ndarray], **attrs: Any) -> list[np.ndarray]:
    """All results of one op in the interpreter."""
    return graph_of(op, arrays, attrs).evaluate(*arrays)


def run_op(op: str, *arrays: Any, dtypes: Sequence[DType | str] = (), **attrs: Any) -> Any:
    """The result of one op in the interpreter, or a tuple of them."""
    operands = [np.asarray(a) for a in arrays]
    values = graph_of(op, operands, attrs, dtypes=dtypes).evaluate(*operands)
    return values[0] if len(values) == 1 else tuple(values)


def run_onnx(
    op: str, inputs: Sequence[np.ndarray | None], outputs: int = 1, opset: int = 21, **attrs: Any
) -> list[Any]:
    """All results of one ONNX operator in onnxruntime; None stands for an input that is left out."""
    from onnx import ValueInfoProto, helper

    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs)
        if a is not None
    ]
    node = helper.make_node(op, names, results, **attrs)
    graph = helper.make_graph([node], "one", given, [ValueInfoProto(name=n) for n in results])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime_session(model.SerializeToString(), threads=1)
    return list(session.run(None, {n: a for n, a in zip(names, inputs) if a is not None}))


def assert_close(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float = 2e-5) -> None:
    """Equal dtypes and shapes, numbers within a tolerance."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
