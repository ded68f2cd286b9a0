"""One op applied to arrays, in the reference interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import dtype
from dhc.ir.graph import Graph


def graph_of(op: str, arrays: Sequence[np.ndarray], symbolic: bool = False, **attrs: Any) -> Graph:
    """A graph of one call; with `symbolic`, every size of every operand is a symbol of its own."""
    graph = Graph(op)
    values = []
    for i, array in enumerate(arrays):
        shape = [f"s{i}_{axis}" if symbolic else n for axis, n in enumerate(array.shape)]
        values.append(graph.input(f"x{i}", dtype(array.dtype), shape))
    results = Builder(graph).call(op, *values, attrs=attrs)
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    return graph


def apply(op: str, *arrays: Any, **attrs: Any) -> Any:
    """The results of one call (the result when there is one)."""
    given = [np.asarray(a) for a in arrays]
    results = graph_of(op, given, **attrs).evaluate(*given)
    return results[0] if len(results) == 1 else results
