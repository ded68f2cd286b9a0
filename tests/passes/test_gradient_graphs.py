"""Gradient graphs hold what a pass rarely meets otherwise: unused nodes in bodies, nested graphs with many captures."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings

from dhc.errors import DhcError
from dhc.ir.autodiff import gradient
from dhc.ir.graph import Graph
from dhc.passes import find_pass, parse_passes, run_passes
from tests.support.random_graphs import RandomGraph, random_graphs

SMOOTH = ("add", "sub", "mul", "tanh", "sigmoid", "exp", "matmul", "reduce_sum", "transpose", "reshape", "concat")
CONTROL = ("if", "scan", "fused", "softmax", "slice")


def arrays_for(graph: Graph, case: RandomGraph) -> dict[str, np.ndarray]:
    """The inputs of the case, and ones for the cotangents."""
    arrays = case.inputs()
    outputs = dict(zip(case.graph.output_names, case.graph.evaluate(**arrays), strict=True))
    for value in graph.inputs:
        if value.name not in arrays:
            arrays[value.name] = np.ones_like(outputs[value.name.removeprefix("d_").rstrip("_")])
    return arrays


@settings(max_examples=100)
@given(random_graphs(only=(*SMOOTH, *CONTROL), dtypes=("f64",), max_nodes=8, data_dependent=False))
def test_gradients_survive_every_pass(case):
    try:
        graph = gradient(case.graph)
    except DhcError:
        assume(False)
    arrays = arrays_for(graph, case)
    wanted = graph.evaluate(**arrays)
    for passes in ("dce", "cse,dce", "canonicalize,dce", "fuse", "standard"):
        changed = graph.clone()
        run_passes(changed, parse_passes(passes), verify=True)
        for a, b in zip(wanted, changed.evaluate(**arrays), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=f"{passes}\n{graph}\n{changed}")


@settings(max_examples=100)
@given(random_graphs(only=(*SMOOTH, *CONTROL), dtypes=("f64",), max_nodes=8, data_dependent=False))
def test_dead_code_is_found_in_one_run(case):
    try:
        graph = gradient(case.graph)
    except DhcError:
        assume(False)
    dce = find_pass("dce")()
    dce.run(graph)
    assert dce.run(graph).statistics == {}, str(graph)
    for node in graph.walk():
        assert any(v.uses for v in node.results) or not node.op.pure
