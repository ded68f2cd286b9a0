"""Text in, text out: one file for each behaviour in `golden/`, refusals with their reasons included.

A file says which passes run, and holds the graph before and after:

    passes: cse
    about: equal nodes become one
    ---- before
    graph @main(...
    ---- after
    graph @main(...
    ---- refused
    rule: reason

``DHC_UPDATE_GOLDEN=1 pytest tests/passes/test_golden.py`` writes what is below ``before`` anew: look at the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from dhc.errors import DhcError
from dhc.ir import Graph, symbols
from dhc.ir.text import parse_graph, print_graph
from dhc.passes import find_pass, parse_passes, pass_names, run_passes
from dhc.passes.base import refusals

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.txt"))
UPDATE = os.environ.get("DHC_UPDATE_GOLDEN") == "1"


def parts_of(text: str) -> dict[str, str]:
    head, *rest = re.split(r"^---- (\w+)\n", text, flags=re.MULTILINE)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    return {**fields, **dict(zip(rest[::2], rest[1::2], strict=True))}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_text_in_text_out(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parts = parts_of(text)
    graph = parse_graph(parts["before"])
    before = graph.clone()
    records = run_passes(graph, parse_passes(parts["passes"]), verify=True)
    after = print_graph(graph, locations=False)
    refused = "".join(f"{r.rule}: {r.reason}\n" for r in refusals(records))
    if UPDATE:
        head = text.partition("---- after\n")[0]
        path.write_text(f"{head}---- after\n{after}---- refused\n{refused}", encoding="utf-8")
        return
    assert after == parts["after"]
    assert refused == parts["refused"]
    assert any(r.result.modified for r in records) == (after != print_graph(before, locations=False))
    _means_the_same(before, graph)


def _means_the_same(before: Graph, after: Graph) -> None:
    """The interpreter gives the same results on fixed numbers, every symbol being 4."""
    rng = np.random.default_rng(0)
    inputs = {}
    for value in before.inputs:
        shape = [symbols.evaluate(d, dict.fromkeys(symbols.free_symbols(d), 4)) for d in value.shape]
        numbers = rng.normal(size=shape) if value.dtype.is_float else rng.integers(0, 2, shape)
        inputs[value.name] = np.asarray(numbers).astype(value.dtype.numpy)
    wanted, found = _outcome(before, inputs), _outcome(after, inputs)
    assert type(wanted) is type(found), f"{wanted} became {found}"
    if isinstance(wanted, DhcError):
        return
    for a, b in zip(wanted, found, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _outcome(graph: Graph, inputs: dict[str, np.ndarray]) -> list[np.ndarray] | DhcError:
    """Results, or the error of the run."""
    try:
        return graph.evaluate(**inputs)
    except DhcError as error:
        return error


def test_every_pass_has_golden_files() -> None:
    named = " ".join(parts_of(p.read_text(encoding="utf-8"))["passes"] for p in FILES)
    ours = [n for n in pass_names() if find_pass(n).__module__.startswith("dhc.")]
    assert [n for n in ours if n not in re.split(r"[^a-z_]+", named)] == []


def test_every_rule_has_a_golden_file() -> None:
    from dhc.passes.canonicalize import RULES

    applied = set()
    for path in FILES:
        parts = parts_of(path.read_text(encoding="utf-8"))
        records = run_passes(parse_graph(parts["before"]), parse_passes(parts["passes"]))
        applied.update(name for r in records for name in r.result.statistics)
    assert sorted({r.name for r in RULES} - applied) == []
