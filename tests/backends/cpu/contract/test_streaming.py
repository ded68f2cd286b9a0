"""Products of a few rows with a constant matrix, read as one stream, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import MatmulSpec
from dhc.backends.cpu.contract.streaming import MOST_ROWS, streamed_rows
from dhc.ir import Builder, Graph
from dhc.ir.symbols import sym
from tests.backends.cpu.contract.test_contract import RUNNABLE, check, matmul_case
from tests.support.cpu_targets import ALL_TARGETS


@settings(max_examples=40)
@given(
    m=st.integers(1, MOST_ROWS), n=st.sampled_from([0, 1, 7, 16, 33, 64, 65, 100, 130, 259]),
    k=st.sampled_from([0, 1, 5, 40]), ta=st.booleans(), tb=st.booleans(), bias=st.sampled_from(["none", "n", "m"]),
    relu=st.booleans(), dtype=st.sampled_from(["f32", "f32", "f64"]), data=st.data(),
)  # fmt: skip
def test_few_rows(m, n, k, ta, tb, bias, relu, dtype, data):
    epilogue = ep.Relu() if relu else ep.Epilogue()
    spec = MatmulSpec(dtype, ta, tb, packed_b=True, bias=bias, epilogue=epilogue, streamed=m)
    target_name = data.draw(st.sampled_from(RUNNABLE))
    operands, params, expected, magnitude = matmul_case(spec, (1, 1, 1), m, n, k, seed=n)
    operands["b"] = registry.pack_weights(spec, targets.target(target_name), operands["b"][0, 0, 0])
    check(spec, target_name, operands, params, expected, magnitude)


@pytest.mark.parametrize("target_name", ALL_TARGETS)
def test_every_target_has_code(target_name):
    target = targets.target(target_name)
    spec = MatmulSpec(packed_b=True, bias="n", streamed=2)
    assert registry.select(spec, target).name == "matmul-streamed"
    assert len(targets.compile_ir(registry.emit(spec, target).ir, target)) > 0
    assert streamed_rows(sym("M"), target) == 0 and streamed_rows(MOST_ROWS + 1, target) == 0


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_classifier(rows):
    """A constant matrix behind a few rows, and the same behind more than a few."""
    rng = np.random.default_rng(0)
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", (rows, 70))
    scores = b.matmul(x, b.constant(rng.standard_normal((70, 101)).astype(np.float32)))
    graph.output(b.relu(b.add(scores, b.constant(rng.standard_normal(101).astype(np.float32)))))
    features = rng.standard_normal((rows, 70)).astype(np.float32)
    (found,) = dhc.compile(graph).session(threads=2).run({"x": features}).values()
    np.testing.assert_allclose(found, graph.evaluate(features)[0], rtol=1e-5, atol=1e-4)
