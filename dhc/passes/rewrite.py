"""Local rewrites: pattern, check with a reason, replace.

A rule looks at one node. It answers None (the pattern is not here), a `Refusal` (the pattern is here, but a check
failed: the reason is reported), or the values that replace the node's results. `apply_rules` runs rules until none
applies, visiting the users of what changed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Union

from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node, Value
from dhc.passes.base import Pass, PassResult, Refusal

Rewritten = Union[None, Refusal, Value, Sequence[Value]]


@dataclass(frozen=True)
class Rule:
    """A rewrite of nodes of certain ops.

    Attributes:
        name: for statistics and refusals.
        ops: names of the ops it looks at; empty: all.
        apply: ``(builder, node) -> Rewritten``; the builder inserts before the node and keeps its location. It must
            not create nodes when it returns None or a Refusal.
    """

    name: str
    ops: tuple[str, ...]
    apply: Callable[[Builder, Node], Rewritten]


def rule(name: str, *ops: str) -> Callable[[Callable[[Builder, Node], Rewritten]], Rule]:
    """Decorator that makes a `Rule` of a function."""
    return lambda function: Rule(name, ops, function)


def apply_rules(graph: Graph, rules: Sequence[Rule], *, nested: bool = True, limit: int = 100_000) -> PassResult:
    """Applies rules to every node until none applies any more.

    Args:
        graph: edited in place.
        rules: tried in order at each node.
        nested: also rewrite nested graphs.
        limit: bound on the number of rewrites, against rules that undo each other.

    Raises:
        RuntimeError: the limit was reached.
    """
    result = PassResult()
    by_op: dict[str, list[Rule]] = {}
    general = [r for r in rules if not r.ops]
    for r in rules:
        for op in r.ops:
            by_op.setdefault(op, []).append(r)
    waiting = _Waiting(graph)
    refused: dict[tuple[str, Node], Refusal] = {}
    steps = 0
    while (node := waiting.take()) is not None:
        if node.graph is not graph:
            continue
        for region in node.regions if nested else ():
            merge_results(result, apply_rules(region, rules, nested=True, limit=limit))
        for r in (*by_op.get(node.op.name, ()), *general):
            before = node.previous
            with graph.insertion_before(node):
                replacement = r.apply(Builder(graph, node.location), node)
            refused.pop((r.name, node), None)
            if replacement is None:
                continue
            if isinstance(replacement, Refusal):
                refused[(r.name, node)] = replacement
                continue
            values = [replacement] if isinstance(replacement, Value) else list(replacement)
            affected = _new_nodes(graph, before, node)
            affected += [v.producer for v in values if v.producer is not None and v.producer.graph is graph]
            affected += [u for v in node.results for u in v.users]
            # An operand that loses a user may now meet a rule that asks for a single one: its users look again.
            affected += [u for v in node.operands for u in v.users if u is not node and len(v.uses) <= 2]
            replace_node(node, values)
            result.count(r.name)
            steps += 1
            if steps > limit:
                raise RuntimeError(f"rewriting did not end after {limit} steps, last rule {r.name!r}")
            for n in affected:
                waiting.add(n)
            break
    result.refusals.extend(f for (_, node), f in refused.items() if node.graph is graph)
    return result


class _Waiting:
    """Nodes to look at, first come, first served, each at most once at a time."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._queue = deque(nodes)
        self._members = set(self._queue)

    def add(self, node: Node) -> None:
        if node not in self._members:
            self._members.add(node)
            self._queue.append(node)

    def take(self) -> Node | None:
        if not self._queue:
            return None
        node = self._queue.popleft()
        self._members.discard(node)
        return node


def _new_nodes(graph: Graph, before: Node | None, node: Node) -> list[Node]:
    """The nodes that a rule wrote: those between the one that was before `node` and `node`."""
    found: list[Node] = []
    current = node.previous
    while current is not None and current is not before:
        found.append(current)
        current = current.previous
    return found[::-1]


def merge_results(into: PassResult, inner: PassResult) -> None:
    """Adds what was done in a nested graph."""
    for name, n in inner.statistics.items():
        into.count(name, n)
    into.refusals.extend(inner.refusals)
    into.modified |= inner.modified


def run_inside(grouping: Pass, graph: Graph) -> PassResult:
    """Runs a pass on the bodies of the graph's control flow; groups that are fused already are left alone."""
    result = PassResult()
    for node in graph:
        for region in node.regions if node.op.name != "fused" else ():
            merge_results(result, grouping.run(region))
    return result


def replace_node(node: Node, values: Sequence[Value]) -> None:
    """Makes users of a node's results use `values` and erases the node; names move along."""
    for old, new in zip(node.results, values, strict=True):
        if old.name and not new.name and new.producer is not None:
            new.name = old.name
        old.replace_all_uses_with(new)
    node.erase()
