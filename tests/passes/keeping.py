"""Holds a graph after passes against the same graph before: text, verifier, results, bit for bit where promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir.text import parse_graph, print_graph
from dhc.ir.verifier import verify
from dhc.passes import Pass, run_passes
from tests.support.random_graphs import RandomGraph

EXACT = ("canonicalize", "cse", "dce", "fold", "sink", "fuse", "memory")
"""Passes that change no bit of any result (up to the sign of NaN)."""


def check_pass(case: RandomGraph, passes: Sequence[Pass], *, exact: bool) -> None:
    """Runs passes on a copy and compares everything that passes promise to keep."""
    graph = case.graph.clone()
    records = run_passes(graph, passes, verify=True)
    text = print_graph(graph)
    parsed = parse_graph(text)
    verify(parsed)
    assert print_graph(parsed) == text
    assert [(v.name, v.type) for v in graph.inputs] == [(v.name, v.type) for v in case.graph.inputs]
    assert graph.output_names == case.graph.output_names
    if not any(r.result.modified for r in records):
        assert text == print_graph(case.graph), "a pass changed the graph and says that it did not"
    for sizes in (dict(case.sizes), dict(case.smallest)):
        inputs = case.inputs(sizes)
        before, after = case.graph.evaluate(**inputs), graph.evaluate(**inputs)
        if exact:
            assert_same_bits(before, after, f"{passes}\n{case.graph}\n{graph}")
        else:
            case.check(before, after)


def check_idempotent(case: RandomGraph, pass_: Pass) -> None:
    """A second run of a pass finds nothing to do."""
    graph = case.graph.clone()
    pass_.run(graph)
    text = print_graph(graph)
    second = pass_.run(graph)
    assert not second.modified, f"{pass_} again: {second.statistics}\n{text}\n{graph}"
    assert print_graph(graph) == text


def assert_same_bits(wanted: Sequence[Any], found: Sequence[Any], what: str) -> None:
    """Equal arrays bit for bit; NaN equals any NaN."""
    assert len(wanted) == len(found)
    for a, b in zip(wanted, found):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape, what
        same = (_bits(a) == _bits(b)).all(axis=1).reshape(a.shape)
        if a.dtype.kind not in "iub":
            same |= np.isnan(a) & np.isnan(b)
        assert same.all(), f"{a[~same][:3]} became {b[~same][:3]}: {what}"


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers; complex ones as pairs."""
    part = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{part}")
    return flat.reshape(array.size, -1 if array.size else 1)
