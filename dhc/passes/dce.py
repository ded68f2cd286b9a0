"""Removes what nobody uses: nodes, results of control flow, values that are handed to nested graphs for nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dhc_runtime.errors import DhcError

from dhc.ir.agreement import type_difference
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Structural
from dhc.ir.op import infer_types
from dhc.ir.types import free_symbols
from dhc.ir.verifier import defined_symbols, used_symbols
from dhc.passes.base import Pass, PassResult, register_pass
from dhc.passes.rewrite import merge_results


@register_pass
@dataclass(frozen=True)
class DeadCode(Pass):
    """Erases unused pure nodes, unused results of control flow and unused captures, also in nested graphs.

    A node that defines a size stays as long as the size occurs anywhere. Graph inputs stay: they are the signature.
    """

    name: ClassVar[str] = "dce"

    def run(self, graph: Graph) -> PassResult:
        """Walks backwards once; erasing a node may free the ones before it."""
        result = PassResult()
        self._run(graph, _SymbolUses(graph), result)
        return result

    def _run(self, graph: Graph, sizes: _SymbolUses, result: PassResult) -> None:
        for node in reversed(graph):
            defined = defined_symbols(node)
            if not any(v.uses for v in node.results) and (node.op.pure or defined) and not sizes.used(defined, node):
                sizes.forget(node)
                node.erase()
                result.count("removed")
                continue
            if not node.regions:
                continue
            node = _without_unused_results(node, sizes, result)
            for region in node.regions:
                inner = PassResult()
                self._run(region, sizes, inner)
                merge_results(result, inner)
            _without_unused_captures(node, sizes, result)


class _SymbolUses:
    """How often each symbol occurs outside of the node that defines it, in a graph and the graphs nested in it."""

    def __init__(self, graph: Graph) -> None:
        self._count: Counter[str] = Counter()
        _count_graph(graph, self._count, 1)

    def used(self, names: Iterable[str], node: Node) -> bool:
        """True when one of the symbols that `node` defines occurs elsewhere (its own nested graphs do not count)."""
        inside: Counter[str] = Counter()
        for region in node.regions:
            _count_graph(region, inside, 1)
        return any(self._count[name] > inside[name] for name in names)

    def forget(self, node: Node) -> None:
        """The node goes, with its nested graphs."""
        _count_node(node, self._count, -1)

    def remember(self, node: Node) -> None:
        """A new node has come."""
        _count_node(node, self._count, 1)


def _count_graph(graph: Graph, count: Counter[str], sign: int) -> None:
    for value in (*graph.inputs, *graph.outputs):
        for name in free_symbols(value.type):
            count[name] += sign
    for node in graph:
        _count_node(node, count, sign)


def _count_node(node: Node, count: Counter[str], sign: int) -> None:
    own = set(defined_symbols(node))
    found: list[str] = []
    for value in (*node.operands, *node.results):
        found.extend(used_symbols(value.type))
    for spec in node.op.attrs:
        if spec.kind not in ("symbol", "strs"):
            found.extend(used_symbols(node.attrs[spec.name]))
    for name in found:
        if name not in own:
            count[name] += sign
    for region in node.regions:
        _count_graph(region, count, sign)


# ---- control flow ----------------------------------------------------------------------------------------------------


def _capture_start(node: Node) -> tuple[int, int] | None:
    """First operand that is a capture, and first region input that is one; None for other nodes with regions."""
    if node.op.name == "if":
        return 1, 0
    if node.op.name == "loop":
        return 2 + node.attrs["carried"], 2 + node.attrs["carried"]
    if node.op.name == "scan":
        start = node.attrs["carried"] + node.attrs["scanned"]
        return start, start
    if node.op.kind == Structural("group"):
        return 0, 0
    return None


def _without_unused_captures(node: Node, sizes: _SymbolUses, result: PassResult) -> None:
    """Drops captures that no nested graph uses. A capture may also stand for sizes: those must be known around it."""
    starts = _capture_start(node)
    if starts is None or not node.results:
        return
    first, start = starts
    unused = [
        index
        for index in range(first, len(node.operands))
        if all(_is_idle(region.inputs[index - first + start], node.operands[index]) for region in node.regions)
    ]
    if not unused:
        return
    sizes.forget(node)
    for region in node.regions:
        for value in [region.inputs[index - first + start] for index in unused]:
            region.remove_input(value)
    kept = [v for i, v in enumerate(node.operands) if i not in set(unused)]
    sizes.remember(_rebuild(node, kept, node.attrs, node.results))
    result.count("captures removed", len(unused))


def _is_idle(inner: Value, outer: Value) -> bool:
    return not inner.uses and set(free_symbols(inner.type)) <= set(free_symbols(outer.type))


def _without_unused_results(node: Node, sizes: _SymbolUses, result: PassResult) -> Node:
    """Drops results that nobody uses: of `if` and groups any, of loops the stacked ones. Returns what stands."""
    first = {"if": 0, "fused": 0}.get(node.op.name, node.attrs.get("carried"))
    if first is None or (kept := _kept_results(node, first, sizes)) is None:
        return node
    offset = 1 if node.op.name == "loop" else 0
    sizes.forget(node)
    before = [(region.outputs, list(region.output_names)) for region in node.regions]
    for region, (outputs, names) in zip(node.regions, before):
        positions = [*range(offset), *(i + offset for i in kept)]
        region.clear_outputs()
        region.output(*(outputs[i] for i in positions), names=[names[i] for i in positions])
    attrs = _fewer(node, kept, first)
    wanted = [node.results[i].type for i in kept]
    try:
        types = infer_types(node.op, node.types, attrs, node.regions, node.location)
    except DhcError:
        types = ()
    if len(types) == len(wanted) and all(type_difference(w, t) is None for w, t in zip(wanted, types)):
        result.count("results removed", len(node.results) - len(kept))
        node = _rebuild(node, node.operands, attrs, [node.results[i] for i in kept])
    else:  # sizes of the results depend on each other
        for region, (outputs, names) in zip(node.regions, before):
            region.clear_outputs()
            region.output(*outputs, names=names)
    sizes.remember(node)
    return node


def _fewer(node: Node, kept: Sequence[int], first: int) -> dict[str, Any]:
    """The attributes of a control op of which only some results stay."""
    attrs = dict(node.attrs)
    if "symbols" in attrs:
        seen = {name for i in kept for name in free_symbols(node.results[i].type)}
        attrs["symbols"] = tuple(name for name in attrs["symbols"] if name in seen)
    for name in ("out_axes", "out_reverse"):
        if attrs.get(name):
            attrs[name] = tuple(attrs[name][i - first] for i in kept if i >= first)
    return attrs


def _kept_results(node: Node, first: int, sizes: _SymbolUses) -> list[int] | None:
    """Numbers of the results that stay; None when all do."""
    defined = set(node.attrs.get("symbols", ()))
    kept = []
    for index, value in enumerate(node.results):
        own = [name for name in free_symbols(value.type) if name in defined]
        if index < first or value.uses or (own and sizes.used(own, node)):
            kept.append(index)
    return kept if len(kept) < len(node.results) and kept else None


def _rebuild(node: Node, operands: Sequence[Value], attrs: Mapping[str, Any], results: Sequence[Value]) -> Node:
    """Puts a node with fewer operands or results in the place of `node`, around the same nested graphs."""
    graph = node.graph
    assert graph is not None
    with graph.insertion_before(node):
        new = graph.create(
            node.op, operands, attrs, node.regions, node.location, [r.name for r in results], [r.type for r in results]
        )
    new.device = node.device
    for old, fresh in zip(results, new.results):
        old.replace_all_uses_with(fresh)
    node.erase()
    return new
