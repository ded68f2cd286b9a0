"""Where the time of a run goes, step by step, against what the machine could do: the table of ``dhc bench --layers``.

A step's bound is its roofline (Williams et al., CACM 2009): the larger of its operations over the measured peak and its
bytes over the measured speed of reading. Operations are those of the definition, so that a convolution by Winograd's
algorithm, which needs fewer, may stay below its bound. Bytes are operands and results, each moved once.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhc.ir.graph import Graph, Node

SHOWN = 40
"""Rows that people see; JSON has all."""

_HASH = re.compile(r"_[0-9a-f]{16,}$")


@dataclass(frozen=True)
class Limits:
    """What the machine reaches.

    Attributes:
        gflops: operations in 10⁹ a second.
        gigabytes: 10⁹ bytes a second that are read, in terms of how many bytes there are.
    """

    gflops: float
    gigabytes: Callable[[int], float]


@dataclass(frozen=True)
class Layer:
    """One step, or several that belong together.

    Attributes:
        node: the place in the user's model.
        op: the operation.
        kernel: which generators made the code, and how many steps there are when there are several.
        milliseconds: median over the runs.
        gflop: operations in 10⁹; None where the sizes are not known before the run.
        gigabytes: bytes in 10⁹ that operands and results take.
        bound: compute or memory, whichever limits.
        bound_ms: the least time that the limits allow.
    """

    node: str
    op: str
    kernel: str
    milliseconds: float
    gflop: float | None = None
    gigabytes: float | None = None
    bound: str = ""
    bound_ms: float | None = None

    @property
    def lost_ms(self) -> float:
        """Time above the bound; all of it where the bound is not known."""
        return max(self.milliseconds - (self.bound_ms or 0.0), 0.0)

    @property
    def gflops(self) -> float | None:
        """Operations in 10⁹ a second."""
        return None if self.gflop is None or not self.milliseconds else self.gflop / self.milliseconds * 1e3

    @property
    def share(self) -> float | None:
        """Part of the roofline that is reached."""
        return None if self.bound_ms is None or not self.milliseconds else self.bound_ms / self.milliseconds

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {**asdict(self), "lost_ms": self.lost_ms, "gflops": self.gflops, "share": self.share}


def profile_runs(session: Any, feeds: Mapping[str, Any], rounds: int) -> list[list[Any]]:
    """The steps of every run, after one that warms up."""
    session.run(feeds, profile=True)
    runs = []
    for _ in range(rounds):
        session.run(feeds, profile=True)
        runs.append(session.profile())
    return runs


def layers(graph: Graph, runs: Sequence[Sequence[Any]], sizes: Mapping[str, int], limits: Limits) -> list[Layer]:
    """The layers of profiled runs, those that lose most time first.

    Args:
        graph: as it was compiled.
        runs: steps of each run: anything with node, op, symbol and microseconds.
        sizes: values of the symbols of the graph's inputs.
        limits: of the machine.
    """
    nodes: dict[tuple[str, str], list[Node]] = {}
    for node in _executed(graph):
        nodes.setdefault((str(node.location), node.op.name), []).append(node)
    made: list[Layer] = []
    for key, (times, symbols, steps) in _by_place(runs).items():
        behind = nodes.get(key, [])
        if len(times) == len(behind):
            for node, milliseconds, symbol in zip(behind, times, symbols):
                made.append(_layer(key, [symbol], milliseconds, [node], sizes, limits))
        else:  # a node of several kernels, nodes without any, or a loop: only the sum can be compared
            repeated = steps != len(behind) and bool(behind) and _in_loop(behind[0], graph)
            known = [] if repeated else behind
            made.append(_layer(key, symbols, sum(times), known, sizes, limits))
    return sorted(made, key=lambda layer: (-layer.lost_ms, -layer.milliseconds))


def _by_place(
    runs: Sequence[Sequence[Any]],
) -> dict[tuple[str, str], tuple[list[float], list[str], int]]:
    """Medians in ms of the steps at each place in order, their symbols, and how many there are."""
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for number, run in enumerate(runs):
        for step in run:
            groups = found.setdefault((step.node, step.op), [[] for _ in runs])
            groups[number].append(step)
    places = {}
    for key, groups in found.items():
        symbols = [step.symbol for step in groups[0]]
        if all([step.symbol for step in group] == symbols for group in groups):
            times = [statistics.median(step.microseconds for step in same) / 1e3 for same in zip(*groups)]
        else:  # how often a loop runs depends on the data
            symbols = list(dict.fromkeys(step.symbol for group in groups for step in group))
            times = [statistics.median(sum(step.microseconds for step in group) for group in groups) / 1e3]
        places[key] = times, symbols, len(groups[0])
    return places


def _executed(graph: Graph) -> Iterator[Node]:
    """Nodes that may have kernels: those of nested graphs of control flow, but not the parts of fused groups."""
    for node in graph:
        if node.op.name == "constant":
            continue
        yield node
        if node.op.name != "fused":
            for region in node.regions:
                yield from _executed(region)


def _in_loop(node: Node, graph: Graph) -> bool:
    return node.graph is not graph


def _layer(
    key: tuple[str, str],
    symbols: Sequence[str],
    milliseconds: float,
    nodes: Sequence[Node],
    sizes: Mapping[str, int],
    limits: Limits,
) -> Layer:
    kernels = list(dict.fromkeys(kernel_name(symbol) for symbol in symbols))
    kernel = "+".join(kernels) + (f" ({len(symbols)})" if len(symbols) > len(kernels) else "")
    work = _work(nodes, sizes)
    if work is None:
        return Layer(key[0], key[1], kernel, milliseconds)
    flops, moved = work
    compute, memory = flops / limits.gflops / 1e6, moved / limits.gigabytes(moved) / 1e6
    bound = "compute" if compute >= memory else "memory"
    return Layer(key[0], key[1], kernel, milliseconds, flops / 1e9, moved / 1e9, bound, max(compute, memory))


def kernel_name(symbol: str) -> str:
    """``winograd`` of ``winograd_30ff81ad1d612da8922a``: the generator; kernels of loops have no name of their own."""
    name = _HASH.sub("", symbol)
    return "loop" if name in ("dhc_k", "") else name


def _work(nodes: Sequence[Node], sizes: Mapping[str, int]) -> tuple[int, int] | None:
    """Operations and bytes; None where a size is known only during the run."""
    from dhc.backends.cost import operations_at
    from dhc.ir.symbols import evaluate, free_symbols
    from dhc.ir.types import TensorType

    if not nodes:
        return None
    flops = moved = 0
    for node in nodes:
        count = operations_at(node, sizes)
        if count is None:
            return None
        flops += count
        for value in dict.fromkeys((*node.operands, *node.results)):
            if isinstance(value.type, TensorType):
                if not set(free_symbols(value.type.nbytes)) <= set(sizes):
                    return None
                moved += evaluate(value.type.nbytes, dict(sizes))
    return flops, max(moved, 1)


def input_sizes(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Values of the symbols that stand alone as a size of an input."""
    from dhc.ir.symbols import format_dim, free_symbols

    sizes: dict[str, int] = {}
    for value in graph.inputs:
        for dim, size in zip(value.type.shape, feeds[value.name].shape):
            if not isinstance(dim, int) and list(free_symbols(dim)) == [format_dim(dim)]:
                sizes[format_dim(dim)] = int(size)
    return sizes


def show(out: Any, found: Sequence[Layer], limits: Limits, threads: int) -> None:
    """Prints the table."""
    total = sum(layer.milliseconds for layer in found)
    rows = []
    for layer in found[:SHOWN]:
        rows.append(
            [
                _short(layer.node),
                layer.op,
                layer.kernel,
                f"{layer.milliseconds:.3f}",
                f"{100 * layer.milliseconds / total:.1f}" if total else "",
                _number(layer.gflop, 3),
                _number(layer.gigabytes, 4),
                _number(layer.gflops, 1),
                layer.bound,
                _number(layer.bound_ms, 3),
                "" if layer.share is None else f"{100 * layer.share:.0f} %",
                f"{layer.lost_ms:.3f}",
            ]
        )
    columns = [
        "node",
        "op",
        "kernel",
        ">ms",
        ">%",
        ">GFLOP",
        ">GB",
        ">GFLOP/s",
        "bound",
        ">bound ms",
        ">share",
        ">lost",
    ]
    out.table(columns, rows)
    bound = sum(layer.bound_ms or 0.0 for layer in found)
    more = f"; {len(found) - SHOWN} more are in --json" if len(found) > SHOWN else ""
    plural = "" if threads == 1 else "s"
    out.line(f"{len(found)} steps, {total:.3f} ms together, {bound:.3f} ms by their bounds{more}")
    memory = limits.gigabytes(1 << 28)
    out.line(
        f"measured limits of {threads} thread{plural}: {limits.gflops:.0f} GFLOP/s (f32), {memory:.0f} GB/s of memory"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _short(node: str) -> str:
    """The node's name where the place has one: ``Conv_1`` of ``Conv node 'Conv_1' of net.onnx``."""
    named = re.search(r"node '([^']+)'", node)
    return named.group(1) if named else node
