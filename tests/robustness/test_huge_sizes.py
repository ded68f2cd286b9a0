"""Sizes that no machine has, given at run time: refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, checker, helper

import dhc
from tests.robustness.conftest import one_paragraph

Child = Callable[..., dict[str, Any]]


def _save(nodes: list[Any], inputs: list[Any], outputs: list[Any], path: Path) -> None:
    graph = helper.make_graph(nodes, "huge", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    dhc.compile(dhc.load_onnx(model.SerializeToString()), targets=["cpu"]).save(path)


def _info(name: str, dtype: int, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


_RUN = """
path, expression = sys.argv[1:]
feeds = {
    "outer": lambda: {"a": numpy.zeros((1 << 21, 1), "f4"), "b": numpy.zeros((1, 1 << 21), "f4")},
    "wide": lambda: {"a": numpy.broadcast_to(numpy.float32(0), (1 << 44, 1)), "b": numpy.zeros((1, 1), "f4")},
    "fill": lambda: {"shape": numpy.array([1 << 22, 1 << 22], "i8")},
    "overflow": lambda: {"shape": numpy.array([1 << 40, 1 << 40], "i8")},
    "wrap": lambda: {"shape": numpy.array([1 << 62, 4], "i8")},
    "negative": lambda: {"shape": numpy.array([-1, 4], "i8")},
    "repeat": lambda: {"x": numpy.zeros((2, 2), "f4"), "repeats": numpy.array([1 << 20, 1 << 20], "i8")},
}[expression]()
with dhc_runtime.load(path, threads=1) as session:
    before = start()
    try:
        session.run(feeds)
        outcome = ["ran", ""]
    except DhcError as error:
        outcome = [type(error).__name__, str(error)]
    print(json.dumps({"outcome": outcome, "grown": peak() - before}))
"""


@pytest.mark.parametrize("case", ["outer", "wide", "fill", "overflow", "wrap", "negative", "repeat"])
def test_huge_sizes_are_refused(tmp_path: Path, measured_child: Child, case: str) -> None:
    path = tmp_path / "huge.dhc"
    f4, i8 = TensorProto.FLOAT, TensorProto.INT64
    if case in ("outer", "wide"):
        nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Exp", ["s"], ["y"])]
        _save(nodes, [_info("a", f4, "N", 1), _info("b", f4, 1, "M")], [_info("y", f4, "N", "M")], path)
    elif case == "repeat":
        nodes = [helper.make_node("Tile", ["x", "repeats"], ["y"])]
        _save(nodes, [_info("x", f4, 2, 2), _info("repeats", i8, 2)], [_info("y", f4, "P", "Q")], path)
    else:
        value = helper.make_tensor("value", f4, [1], [1.5])
        nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"], value=value)]
        _save(nodes, [_info("shape", i8, 2)], [_info("y", f4, "P", "Q")], path)
    result = measured_child(_RUN, str(path), case)
    kind, message = result["outcome"]
    # A size that no integer of the runtime holds is an error of the value that gave it.
    assert kind == ("ModelError" if case in ("overflow", "wrap", "negative") else "ResourceError"), message
    assert one_paragraph(message)
