"""Text in, text out: the way passes are tested."""

from __future__ import annotations

import textwrap

from dhc.ir.graph import Graph
from dhc.ir.text import parse_graph, print_graph
from dhc.passes import parse_passes, run_passes
from dhc.passes.base import PassRecord


def graph_of(text: str) -> Graph:
    """A graph from indented text."""
    return parse_graph(textwrap.dedent(text).lstrip("\n"))


def run(text: str, passes: str) -> tuple[Graph, list[PassRecord]]:
    """Runs passes (as `dhc opt` names them) with the verifier after each."""
    graph = graph_of(text)
    return graph, run_passes(graph, parse_passes(passes), verify=True)


def check(passes: str, before: str, after: str) -> list[PassRecord]:
    """The graph `before` must print exactly as `after` once the passes ran."""
    graph, records = run(before, passes)
    found = print_graph(graph, locations=False)
    wanted = textwrap.dedent(after).lstrip("\n")
    assert found == wanted, f"found:\n{found}\nwanted:\n{wanted}"
    return records


def reasons(records: list[PassRecord]) -> list[tuple[str, str]]:
    """Rule and reason of every refusal."""
    return [(r.rule, r.reason) for record in records for r in record.result.refusals]
