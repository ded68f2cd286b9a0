"""Views: networkx, critical path, Graphviz."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dhc_runtime.errors import UsageError

from dhc.ir import Graph
from dhc.ir.text import parse_graph
from dhc.ir.view import critical_path, seconds, to_dot, to_networkx

TEXT = """graph @g(%x: f32[N, 64], %w: f32[64, 64]) -> (%d: f32[N, 64] as "out", %a: f32[N, 64]) {
  %a = matmul(%x, %w)
  %k = constant() {value = dense<f32[]: 1.0>, dtype = f32}
  %b = add(%x, %k)
  %c = mul(%b, %b)
  %d = add(%a, %c)
  return %d, %a
}"""


def test_networkx():
    import networkx

    graph = parse_graph(TEXT)
    view = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(view)
    assert sorted(d["label"] for _, d in view.nodes(data=True) if d["kind"] == "node") == [
        "add", "add", "constant", "matmul", "mul",
    ]  # fmt: skip
    a, _, b, c, d = graph.nodes
    assert view.number_of_edges(b, c) == 2  # both operands
    assert view.edges[a, d, 0]["value"] is a.results[0] and str(view.edges[a, d, 0]["bytes"]) == "256*N"
    assert str(view.nodes[a]["flops"]) == "8192*N"
    assert list(view.successors(d)) == [("output", "out")] and ("output", "a") in view.successors(a)


def test_critical_path():
    graph = parse_graph(TEXT)
    path, total = critical_path(graph, bindings={"N": 100})
    assert [n.op.name for n in path] == ["matmul", "add"]
    assert total == pytest.approx(sum(seconds(n, {"N": 100}) for n in path))
    path, total = critical_path(graph, cost=lambda node: 1.0)
    assert [n.op.name for n in path] == ["constant", "add", "mul", "add"] and total == 4
    assert critical_path(Graph()) == ([], 0.0)
    with pytest.raises(UsageError, match="size N"):
        critical_path(graph)


def test_dot():
    dot = to_dot(parse_graph(TEXT.replace("@g", '@"odd \\"name\\""')))
    assert dot.startswith('digraph "odd \\"name\\"" {\n') and dot.endswith("}\n")
    assert '  in0 -> n0 [label="f32[N, 64]"];' in dot
    assert "constant" not in dot and "constant" in to_dot(parse_graph(TEXT), constants=True)
    assert dot.count(" -> ") == 9


def test_networkx_is_imported_only_when_used():
    code = "import sys, dhc.ir.view, dhc.ir.text; sys.exit('networkx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
