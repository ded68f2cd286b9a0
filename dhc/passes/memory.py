"""Which values share memory, and how much a graph needs.

The decisions that the IR alone allows live here: views that need no work, operands of concatenations that are computed
where they belong, results that may take over the memory of a dying operand. The planner of a device's program uses
them; the pass `memory` reports them together with liveness: the peak with and without sharing, and the lower bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dhc.ir import symbols, types
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Elementwise, Structural
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType
from dhc.passes.base import Pass, PassResult, Refusal, register_pass

# ---- views -----------------------------------------------------------------------------------------------------------


def view_offset(node: Node) -> Dim | None:
    """Element offset of the result inside the operand when the node is a contiguous view, else None."""
    if node.op.name == "reshape":
        return 0
    if node.op.name == "broadcast_to":
        same = symbols.product(node.result.shape) == symbols.product(node.operands[0].shape)
        return 0 if same else None
    if node.op.name == "transpose":
        return 0 if _moves_only_ones(node) else None
    if node.op.name == "slice":
        return _slice_offset(node)
    return None


def _moves_only_ones(node: Node) -> bool:
    shape = node.operands[0].shape
    kept = [axis for axis in node.attrs["perm"] if shape[axis] != 1]
    return kept == sorted(kept)


def _slice_offset(node: Node) -> Dim | None:
    shape = node.operands[0].shape
    starts, sizes, steps = node.attrs["starts"], node.attrs["sizes"], node.attrs["steps"]
    cut = [axis for axis, dim in enumerate(shape) if sizes[axis] != dim]
    if not cut:
        return 0 if all(step == 1 or dim == 1 for step, dim in zip(steps, shape)) else None
    first = cut[0]
    whole_after = all(sizes[a] == shape[a] and steps[a] == 1 for a in range(first + 1, len(shape)))
    ones_before = all(shape[a] == 1 for a in range(first))
    if len(cut) > 1 or not whole_after or not ones_before or steps[first] != 1:
        return None
    offset: Dim = starts[first] * symbols.contiguous_strides(shape)[first]
    return offset


# ---- sizes -----------------------------------------------------------------------------------------------------------


def known_symbols(graph: Graph) -> set[str]:
    """Symbols that have values before the graph runs: those of its inputs and of the inputs around it."""
    known: set[str] = set()
    around: Graph | None = graph
    while around is not None:
        known |= set(around.symbols())
        around = around.parent
    return known


def is_size_bound_later(graph: Graph, value: Value) -> bool:
    """True when the size depends on data: its symbols are not all known from the inputs."""
    return not set(types.free_symbols(value.type)) <= known_symbols(graph)


# ---- concatenation in place ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """A place inside the result of a concatenation: the node, and the offset in bytes."""

    concat: Node
    offset: Dim


def concat_homes(graph: Graph, refusals: list[Refusal] | None = None) -> dict[Value, Home]:
    """Values that are computed right where a concatenation along the outermost axis wants them.

    A concatenation of neighbours among the operands of a longer one is such a value too: a part of the longer result.

    Args:
        graph: the graph; nested graphs are planned on their own.
        refusals: receives the operands that must be copied, with reasons.
    """
    homes: dict[Value, Home] = {}
    # The longest first: shorter ones over a run of the same operands (DenseNet) are then parts of its result.
    concats = sorted((n for n in graph if n.op.name == "concat"), key=lambda n: -len(n.operands))
    for node in concats:
        axis = node.attrs["axis"] % node.result.type.rank
        reason = None
        if any(d != 1 for d in node.result.shape[:axis]):
            reason = "it does not concatenate along the outermost axis"
        elif is_size_bound_later(graph, node.result):
            reason = "its size depends on data"
        if reason is not None:
            if refusals is not None:
                refusals.append(Refusal.at("concat_in_place", node, reason))
            continue
        around = _run_of(node, homes)
        if around is not None:
            homes[node.result] = around
            continue
        offset: Dim = 0
        for operand in node.operands:
            reason = why_not_in_concat(graph, operand, node, homes)
            if reason is None:
                homes[operand] = Home(node, offset)
            elif refusals is not None:
                refusals.append(Refusal.at("concat_in_place", node, f"an operand is copied: {reason}"))
            offset = offset + operand.type.nbytes
    return homes


def _run_of(node: Node, homes: Mapping[Value, Home]) -> Home | None:
    """Where a concatenation lies when its operands follow one another inside of another one already."""
    found = [homes.get(operand) for operand in node.operands]
    first = found[0] if found else None
    if first is None or node.result.is_output:
        return None
    offset = first.offset
    for operand, home in zip(node.operands, found):
        if home is None or home.concat is not first.concat or home.offset != offset:
            return None
        offset = offset + operand.type.nbytes
    return first


def why_not_in_concat(graph: Graph, operand: Value, concat: Node, homes: Mapping[Value, Home]) -> str | None:
    """Why an operand cannot be computed inside the result of a concatenation; None when it can."""
    producer = operand.producer
    if producer is None:
        return "it is an input"
    if isinstance(producer.op.kind, Structural) and producer.op.kind.name != "group":
        return f"it comes from {producer.op.name}"
    if operand in homes:
        return "it lies in another concatenation"
    if concat.operands.count(operand) != 1:
        return "it occurs twice"
    if operand.is_output:
        return "it is an output"
    if view_offset(producer) is not None:
        return "it is a view"
    if producer.op.name == "concat":
        return "it is a concatenation itself"
    if is_size_bound_later(graph, operand) or any(a.kind == "symbol" for a in producer.op.attrs):
        return "its size depends on data"
    return None


# ---- outputs and in place --------------------------------------------------------------------------------------------


def returned_as(value: Value) -> list[Value]:
    """The value once for each time that it, or a view of all of it, is returned."""
    found = [value] * sum(1 for u in value.uses if isinstance(u.user, Graph))
    for use in value.uses:
        user = use.user
        if isinstance(user, Node) and view_offset(user) == 0 and user.result.type.nbytes == value.type.nbytes:
            found.extend(returned_as(user.result))
    return found


def is_direct_output(graph: Graph, value: Value) -> bool:
    """True when a kernel may write straight into the caller's array: the value, or one view of it, is returned once."""
    return not is_size_bound_later(graph, value) and len(returned_as(value)) == 1


def why_not_in_place(graph: Graph, value: Value, operand: Value, homes: Mapping[Value, Home]) -> str | None:
    """Why a result cannot take over the memory of an operand that is used for the last time; None when it can.

    Whether the kernel reads each element before it writes it, and whether this is the operand's last use, is for the
    caller to know.
    """
    if value in homes:
        return "it lies in a concatenation"
    if operand in homes:
        return "the operand lies in a concatenation"
    if is_direct_output(graph, value):
        return "it is written into the caller's array"
    if operand.type.nbytes != value.type.nbytes:
        return "the operand has another size"
    if is_size_bound_later(graph, value):
        return "its size depends on data"
    return None


# ---- the report ------------------------------------------------------------------------------------------------------


@register_pass
@dataclass(frozen=True)
class Memory(Pass):
    """Reports memory: views, in-place results, concatenations in place, peak bytes; changes nothing.

    Attributes:
        size: stands for every symbol where bytes are counted.
    """

    name: ClassVar[str] = "memory"
    size: int = 1

    def run(self, graph: Graph) -> PassResult:
        """Statistics of the graph; those of nested graphs are added up, peaks are the largest."""
        result = PassResult()
        for g in _graphs(graph):
            found = _Liveness(g, self.size, result.refusals).statistics()
            for name, n in found.items():
                before = result.statistics.get(name, 0)
                result.statistics[name] = (
                    max(before, n) if name.endswith("peak_bytes") or "bound" in name else before + n
                )
        return result


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph:
        if isinstance(node.op.kind, Structural) and node.op.kind.name == "control":
            for region in node.regions:
                yield from _graphs(region)


class _Liveness:
    """When the memory of each value is needed, counted in nodes."""

    def __init__(self, graph: Graph, size: int, refusals: list[Refusal]) -> None:
        self.graph = graph
        self.size = size
        self.order = {node: i for i, node in enumerate(graph)}
        self.refusals = refusals
        self.homes = concat_homes(graph, refusals)
        self.counts = {"views": 0, "in_place": 0, "concat_in_place": len(self.homes)}

    def statistics(self) -> dict[str, int]:
        """Counts and bytes. `unshared_bytes`: all values at once; `bound_bytes`: what one node needs at least."""
        holders = self._holders()
        spans: dict[Value, tuple[int, int]] = {}
        needed = [0] * len(self.order)
        total = 0
        for value, holder in holders.items():
            first, last = self.order[value.producer] if value.producer is not None else 0, self._last_use(value)
            low, high = spans.get(holder, (first, last))
            spans[holder] = (min(low, first), max(high, last))
            total += self._bytes(value)
        change = [0] * (len(self.order) + 1)
        for holder, (first, last) in spans.items():
            change[first] += self._bytes(holder)
            change[last + 1] -= self._bytes(holder)
        running = peak = 0
        for step in change:
            running += step
            peak = max(peak, running)
        for node, position in self.order.items():
            used = {holders[v] for v in (*node.operands, *node.results) if v in holders}
            needed[position] = sum(self._bytes(v) for v in used)
        return {
            **self.counts,
            "values": len(holders),
            "buffers": len(spans),
            "unshared_bytes": total,
            "peak_bytes": peak,
            "bound_bytes": max(needed, default=0),
        }

    def _holders(self) -> dict[Value, Value]:
        """The value in whose memory each intermediate value lies; inputs, constants and outputs are not ours."""
        holders: dict[Value, Value] = {}
        for node in self.graph:
            if isinstance(node.op.kind, Structural) and node.op.kind.name == "constant":
                continue
            for value in node.results:
                if not isinstance(value.type, TensorType) or is_direct_output(self.graph, value):
                    continue
                holder = self._shared(node, value, holders)
                if holder is not None:
                    holders[value] = holder
        return holders

    def _shared(self, node: Node, value: Value, holders: Mapping[Value, Value]) -> Value | None:
        home = self.homes.get(value)
        if home is not None:
            return home.concat.result if not is_direct_output(self.graph, home.concat.result) else None
        if view_offset(node) is not None:
            self.counts["views"] += 1
            return holders.get(node.operands[0])
        for operand in node.operands if _reads_before_writing(node) else ():
            held = holders.get(operand)
            if held is None or self._last_use(operand) > self.order[node] or len(operand.users) != 1:
                continue
            reason = why_not_in_place(self.graph, value, operand, self.homes)
            if reason is None and held is not operand:
                reason = "the operand shares its memory with other values"
            if reason is None:
                self.counts["in_place"] += 1
                return held
            self.refusals.append(Refusal.at("in_place", node, reason))
        return value

    def _last_use(self, value: Value) -> int:
        uses = [self.order[u.user] if isinstance(u.user, Node) else len(self.order) - 1 for u in value.uses]
        produced = self.order[value.producer] if value.producer is not None else 0
        return max([produced, *uses])

    def _bytes(self, value: Value) -> int:
        count = value.type.nbytes
        return symbols.evaluate(count, dict.fromkeys(symbols.free_symbols(count), self.size))


def _reads_before_writing(node: Node) -> bool:
    """True when each element is written after the operands' elements at the same position were read."""
    if isinstance(node.op.kind, Elementwise):
        return True
    if node.op.name != "fused":
        return False
    return all(isinstance(n.op.kind, Elementwise) or n.op.name == "constant" for n in node.regions[0])
