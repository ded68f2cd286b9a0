"""The verifier: every invariant is broken once, and the message says which."""

from __future__ import annotations

import numpy as np
import pytest

from dhc_runtime.errors import VerifyError

from dhc.ir import Builder, Graph, ImageType, QuantType, TensorType, dtype, registry, sym
from dhc.ir.graph import Use
from dhc.ir.text import parse_graph
from dhc.ir.verifier import find_problems, verify

F32 = dtype("f32")


def example() -> Graph:
    return parse_graph("""
        graph @g(%x: f32[N, 4], %t: i64[1]) -> (%b: f32[N, 4], %r: i64[1]) {
          %a = add(%x, %x)
          %b = mul(%a, %x)
          %r = read_dims(%t) {names = ["K"]}
          %d = dims() {values = [K, N]}
          return %b, %r
        }""")


def one_problem(graph: Graph, words: str) -> None:
    (problem,) = find_problems(graph)
    assert words in problem
    with pytest.raises(VerifyError, match="1 problem"):
        verify(graph)


def test_a_good_graph_passes():
    verify(example())


def test_use_before_definition():
    graph = example()
    a, b = graph.nodes[:2]
    graph.move_before(b, a)
    one_problem(graph, "operand 0, <%a: f32[N, 4]>, is defined later")


def test_operand_of_another_graph():
    graph, other = example(), example()
    graph.nodes[0].set_operand(0, other.inputs[0])
    assert "belongs to another graph" in find_problems(graph)[0]


def test_operand_of_an_erased_node():
    graph = example()
    d = graph.nodes[3]
    result = d.results[0]
    d.erase()
    graph.nodes[2].set_operand(0, result)
    assert "is the result of an erased node" in find_problems(graph)[0]


def test_captured_outer_value():
    graph = example()
    body = Graph("body", parent=graph)
    p = body.input("p", "f32", ("N", 4))
    y = Builder(body).add(p, p)
    body.output(y)
    x = graph.inputs[0]
    Builder(graph).call("fused", x, regions=[body])
    verify(graph)
    y.producer.set_operand(1, x)
    inner, outer = find_problems(graph)
    assert inner.startswith("in region 0 of fused") and "belongs to another graph" in inner
    assert "records a use that is none" in outer


def test_missing_and_false_uses():
    graph = example()
    a = graph.nodes[0].results[0]
    del a._uses[Use(graph.nodes[1], 0)]
    one_problem(graph, "lacks its use by the node")
    graph = example()
    a = graph.nodes[0].results[0]
    a._uses[Use(graph.nodes[3], 0)] = None
    one_problem(graph, "records a use that is none")
    graph = example()
    del graph.outputs[0]._uses[Use(graph, 0)]
    one_problem(graph, "lacks its use by the graph")


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(F32, (sym("N"), 5)),
        TensorType(F32, (sym("N") + 1, 4)),
        TensorType(F32, (4,)),
        TensorType(dtype("f64"), (sym("N"), 4)),
    ],
    ids=str,
)
def test_wrong_type(type_):
    graph = example()
    graph.retype(graph.outputs[0], type_)
    one_problem(graph, "inference says f32[N, 4]")


@pytest.mark.parametrize(
    "type_",
    [
        TensorType(F32, (7, 4)),
        TensorType(F32, (sym("N"), 4), quant=QuantType((0.5,), (0,))),
        ImageType(F32, (sym("N"), 4), color="gray", unit="hu"),
    ],
    ids=str,
)
def test_refined_type_passes(type_):
    graph = example()
    graph.retype(graph.outputs[0], type_)
    verify(graph)


def test_attributes():
    graph = parse_graph("graph @g(%x: f32[2, 3]) {\n %y = transpose(%x) {perm = [1, 0]}\n return %y }")
    (node,) = graph.nodes
    node.attrs = {"perm": [1, 0]}
    one_problem(graph, "the attribute 'perm' is [1, 0], normalised (1, 0)")
    node.attrs = {"perm": (1.0, 0)}
    one_problem(graph, "expected an integer")
    node.attrs = {}
    one_problem(graph, "'perm' is missing")
    node.attrs = {"perm": (1, 0), "x": 1}
    one_problem(graph, "no attribute 'x'")
    node.attrs = {"perm": (0, 0)}
    one_problem(graph, "not a permutation")
    node.attrs = {"perm": (0, 1)}
    one_problem(graph, "inference says f32[2, 3]")
    node.attrs = {"perm": (True, 0)}
    one_problem(graph, "expected an integer")


def test_output_names():
    graph = example()
    graph.output_names[1] = graph.output_names[0]
    one_problem(graph, "two outputs are named 'b'")
    graph.output_names.pop()
    one_problem(graph, "2 outputs have 1 names")


def test_symbols():
    graph = example()
    graph.nodes[3].set_attr("values", [sym("M"), sym("M") + sym("Q")])
    problems = find_problems(graph)
    assert ["the symbol M is not defined here" in p for p in problems] == [True, False]
    assert "the symbol Q is not defined here" in problems[1]

    graph = example()
    graph.move_before(graph.nodes[3], graph.nodes[2])
    one_problem(graph, "the symbol K is not defined here")

    graph = example()
    graph.nodes[2].set_attr("names", ["N"])
    problems = find_problems(graph)
    assert "the symbol N is already defined" in problems[0]
    assert "the symbol K is not defined" in problems[1]


def test_regions():
    graph = example()
    body = Graph("body")
    body.output(body.input("p", "f32", (3, 3)))
    node = Graph.create(graph, registry.get("fused"), [graph.inputs[0]], regions=[body])
    assert any("of the region: the type is given as f32[3, 3]" in p for p in find_problems(graph))
    body.parent = body
    assert any("names another graph as the one around it" in p for p in find_problems(graph))
    assert node.regions == (body,)


def test_device():
    graph = example()
    graph.nodes[0].device = None
    one_problem(graph, "the device is no string")


def test_places():
    graph = example()
    graph.inputs[1].index = 0
    one_problem(graph, "does not know its place")


def test_inputs_of_one_name():
    graph = example()
    graph.inputs[1].name = "x"
    one_problem(graph, "two inputs are named 'x'")


def test_all_problems_are_listed():
    graph = example()
    graph.output_names[1] = graph.output_names[0]
    graph.nodes[0].device = 3
    graph.inputs[0].name = graph.inputs[1].name
    with pytest.raises(VerifyError, match="3 problems") as caught:
        verify(graph)
    assert str(caught.value).count("\n  - ") == 3


def test_constant_of_another_dtype():
    graph = Graph()
    Builder(graph).constant(np.zeros(2, np.float32))
    graph.nodes[0].attrs = {**graph.nodes[0].attrs, "value": np.zeros(2)}
    one_problem(graph, "the array is float64")
