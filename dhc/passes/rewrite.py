"""Local rewrites: pattern, check with a reason, replace.

A rule looks at one node. It answers None (the pattern is not here), a `Refusal` (the pattern is here, but a check
failed: the reason is reported), or the values that replace the node's results. `apply_rules` runs rules until none
applies, visiting the users of what changed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Node, Value
from dhc.passes.base import PassResult, Refusal

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
    pending: dict[Node, None] = dict.fromkeys(graph)
    refused: dict[tuple[str, Node], Refusal] = {}
    while pending:
        node = next(iter(pending))
        del pending[node]
        if node.graph is not graph:
            continue
        if nested:
            for region in node.regions:
                inner = apply_rules(region, rules, nested=True, limit=limit)
                for name, n in inner.statistics.items():
                    result.count(name, n)
                result.refusals.extend(inner.refusals)
        for r in (*by_op.get(node.op.name, ()), *general):
            with graph.insertion_before(node):
                replacement = r.apply(Builder(graph, node.location), node)
            if replacement is None:
                continue
            if isinstance(replacement, Refusal):
                refused[(r.name, node)] = replacement
                continue
            values = [replacement] if isinstance(replacement, Value) else list(replacement)
            users = [u for v in node.results for u in v.users]
            replace_node(node, values)
            result.count(r.name)
            if sum(result.statistics.values()) > limit:
                raise RuntimeError(f"rewriting did not end after {limit} steps, last rule {r.name!r}")
            for value in values:
                if value.producer is not None and value.producer.graph is graph:
                    pending[value.producer] = None
            pending.update(dict.fromkeys(users))
            break
    result.refusals.extend(f for (_, node), f in refused.items() if node.graph is graph)
    return result


def replace_node(node: Node, values: Sequence[Value]) -> None:
    """Makes users of a node's results use `values` and erases the node; names move along."""
    for old, new in zip(node.results, values, strict=True):
        if old.name and not new.name and new.producer is not None:
            new.name = old.name
        old.replace_all_uses_with(new)
    node.erase()
