"""Graphs that once came out wrong on the CPU, in text form, as small as they could be made."""

from __future__ import annotations

import numpy as np
import pytest

import dhc
from dhc.ir import Graph
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.text import parse_graph
from tests.backends.cpu.differential.running import MINIMAL, assert_close, run

# name -> (graph, sizes of its symbols)
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "group returns a value twice": (
        """graph @g(%x: f32[3], %y: f32[3]) -> (%0: f32[3] as "a", %1: f32[3] as "b") {
          %0, %1 = fused(%x, %y) : f32[3], f32[3] {
            graph @group(%p: f32[3], %q: f32[3]) -> (%0: f32[3] as "o0", %0: f32[3] as "o1") {
              %0 = add(%p, %q) : f32[3]
              return %0, %0
            }
          }
          return %0, %1
        }""",
        {},
    ),
    "group returns what it was given": (
        """graph @g(%x: f32[3], %y: f32[3]) -> (%0: f32[3] as "a", %1: f32[3] as "b") {
          %0, %1 = fused(%x, %y) : f32[3], f32[3] {
            graph @group(%p: f32[3], %q: f32[3]) -> (%0: f32[3] as "o0", %q: f32[3] as "o1") {
              %0 = add(%p, %q) : f32[3]
              return %0, %q
            }
          }
          return %0, %1
        }""",
        {},
    ),
    "contraction in a group that is no chain": (
        """graph @g(%x: f32[3, 4], %w: f32[4, 5], %y: f32[3, 5]) -> (%0: f32[3, 5] as "a", %1: f32[3, 5] as "b") {
          %0, %1 = fused(%x, %w, %y) : f32[3, 5], f32[3, 5] {
            graph @group(%p: f32[3, 4], %q: f32[4, 5], %r: f32[3, 5])
                -> (%2: f32[3, 5] as "o0", %0: f32[3, 5] as "o1") {
              %0 = matmul(%p, %q) : f32[3, 5]
              %1 = mul(%r, %r) : f32[3, 5]
              %2 = add(%0, %1) : f32[3, 5]
              return %2, %0
            }
          }
          return %0, %1
        }""",
        {},
    ),
    "sizes that are symbols feed a scatter of constant shape": (
        """graph @g(%x: f32[N], %u: i64[1]) -> (%2: i64[2] as "a") {
          %0 = dims() {values = [1, N]} : i64[2]
          %1 = constant() {value = dense<i64[1]: [0]>, dtype = i64} : i64[1]
          %2 = scatter_elements(%0, %1, %u) {reduction = "min"} : i64[2]
          return %2
        }""",
        {"N": 3},
    ),
    "tile behind an axis of one": (
        """graph @g(%x: f32[1, 2]) -> (%0: f32[1, 6] as "a") {
          %0 = tile(%x) {repeats = [1, 3]} : f32[1, 6]
          return %0
        }""",
        {},
    ),
    "branches see the shape of a view": (
        """graph @g(%x: f32[1, N], %c: bool[]) -> (%1: f32[N] as "a") {
          %0 = reshape(%x) {shape = [N]} : f32[N]
          %1 = if(%c, %0) : f32[N] {
            graph @then(%v: f32[N]) -> (%0: f32[N] as "o") {
              %0 = neg(%v) : f32[N]
              return %0
            }
            graph @else(%v: f32[N]) -> (%v: f32[N] as "o") {
              return %v
            }
          }
          return %1
        }""",
        {"N": 3},
    ),
}


def inputs_of(graph: Graph, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Small whole numbers of the right types."""
    rng = np.random.default_rng(0)
    arrays = {}
    for value in graph.inputs:
        shape = tuple(d if isinstance(d, int) else sizes[str(d)] for d in value.shape)
        arrays[value.name] = rng.integers(0, 3, shape).astype(as_dtype(value.dtype).numpy)
    return arrays


@pytest.mark.parametrize("optimised", [True, False], ids=["standard", "minimal"])
@pytest.mark.parametrize("name", list(CASES))
def test_regression(name: str, optimised: bool) -> None:
    text, sizes = CASES[name]
    graph = parse_graph(text)
    inputs = inputs_of(graph, sizes)
    wanted = graph.evaluate(**inputs)
    session = dhc.compile(graph, passes=None if optimised else list(MINIMAL)).session(threads=2)
    for a, b in zip(wanted, run(session, graph, inputs), strict=True):
        assert_close(a, b, what=name)
