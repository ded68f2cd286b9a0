"""Structural comparison and hashing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from dhc.ir import Builder, Graph, TensorType, dtype
from dhc.ir.compare import difference, node_key, structural_hash, structurally_equal
from dhc.ir.text import parse_graph, print_graph
from tests.support.random_graphs import random_graphs

BASE = """graph @g(%x: f32[N, 4], %y: f32[N, 4]) -> (%c: f32[4, N], %a: f32[N, 4] as "sum") {
  %a = add(%x, %y) : f32[N, 4] @cpu loc("m", node = "n")
  %k = constant() {value = dense<f32[4]: [1.0, 2.0, nan, -0.0]>, dtype = f32}
  %b = mul(%a, %k)
  %c = transpose(%b) {perm = [1, 0]}
  %f = fused(%x) {
    graph @body(%p: f32[N, 4]) -> (%q: f32[N, 4]) {
      %q = neg(%p)
      return %q
    }
  }
  return %c, %a
}"""


def test_equal():
    a, b = parse_graph(BASE), parse_graph(BASE)
    assert difference(a, b) is None and structurally_equal(a, b) and structurally_equal(a, a.clone())
    assert structural_hash(a) == structural_hash(b) == structural_hash(a.clone())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("%a = add(%x, %y)", "%a = add(%y, %x)", "node 0: operands"),
        ("add(", "mul(", "node 0: add against mul"),
        ("@cpu", "@gpu", "device"),
        ("@cpu", "", "device"),
        ("2.0", "2.5", "attribute 'value'"),
        ("-0.0", "0.0", "attribute 'value'"),
        ("[1, 0]} ", "[1, 0]} : f32[4, 3]", "types of"),
        ("neg(", "abs(", "region 0 of fused: node 0: neg against abs"),
        ("return %c, %a", "%z = neg(%a) return %c, %a", "nodes against"),
        ('as "sum"', 'as "total"', "output names"),
        ("%y: f32[N, 4])", "%z: f32[N, 4])", "input 1: name"),
        ("%y: f32[N, 4])", "%y: f32[N, 4], %z: i8[])", "2 inputs against 3"),
    ],
)
def test_differences_in_words(old, new, words):
    text = BASE.replace("[1, 0]}", "[1, 0]} ").replace(old, new)
    if words == "input 1: name":
        text = text.replace("%y)", "%z)")
    if words == "types of":
        text = text.replace("%c: f32[4, N]", "%c")
    a, b = parse_graph(BASE), parse_graph(text)
    assert words in (difference(a, b) or "equal") and not structurally_equal(a, b)
    if "name" not in words:
        assert structural_hash(a) != structural_hash(b)
    else:
        assert structurally_equal(a, b, names=False) and structural_hash(a) == structural_hash(b)
        assert structural_hash(a, names=True) != structural_hash(b, names=True)


def test_outputs_and_locations():
    a = parse_graph(BASE)
    b = parse_graph(BASE.replace('node = "n"', 'node = "o"').replace("%b", "%other"))
    assert structurally_equal(a, b) and "location" in (difference(a, b, locations=True) or "")
    c = parse_graph(BASE)
    c.set_output(1, c.inputs[0])
    assert "outputs" in (difference(a, c) or "") and structural_hash(a) != structural_hash(c)
    d = parse_graph(BASE)
    d.retype(d.inputs[0], TensorType(dtype("f32"), (2, 4)))
    assert "input 0: type" in (difference(a, d) or "")


def test_node_key():
    graph = Graph()
    x = graph.input("x", "f32", (2,))
    b = Builder(graph)
    same = [b.add(x, x), b.add(x, x)]
    other = [b.mul(x, x), b.constant(0.0), b.constant(-0.0), b.constant(np.zeros(1)), b.constant(0)]
    keys = [node_key(v.producer) for v in [*same, *other]]
    assert keys[0] == keys[1] and len(set(keys)) == 6


@settings(max_examples=100)
@given(random_graphs())
def test_text_and_clone_keep_everything(case):
    parsed = parse_graph(print_graph(case.graph))
    assert difference(case.graph, parsed, locations=True) is None
    assert structural_hash(case.graph, names=True) == structural_hash(case.graph.clone(), names=True)
