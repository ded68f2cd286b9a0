"""Which part of the inputs an element of a result depends on, along the axes of space.

A graph is *local* when each element of each value depends on a window of the inputs that moves with it: convolutions,
pooling, upsampling by whole factors, everything element-wise, and reductions and concatenations of channels. Such a
graph can be run patch by patch, and away from the edges of the patches the results are those of the whole.

A value is described along each axis of space by the input positions that it moves by from one element to the next
(`step`, a fraction where the value is finer than the input), and by how far its elements reach: the element at `q`
depends on input positions from ``q * step - before`` up to ``q * step + after``, and on nothing outside. Padding counts
as positions outside: what reads it in a patch is told apart by its reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dhc_runtime.errors import UnsupportedError

from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Elementwise, Structural
from dhc.ir.ops.window import ints
from dhc.ir.types import TensorType

_REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric")


@dataclass(frozen=True)
class Axis:
    """A value along one axis of space; see the module's text.

    Attributes:
        position: which axis of the value it is.
        step: input positions from one element to the next.
        before: reach towards the start, in input positions.
        after: reach towards the end; negative when elements lie behind all that they depend on.
    """

    position: int
    step: Fraction
    before: Fraction
    after: Fraction


Reach = tuple[Axis, ...]


@dataclass(frozen=True)
class Locality:
    """What a local graph's values depend on.

    Attributes:
        space: sizes of the inputs along the axes of space.
        inputs: for each input, its axes of space; empty for one that has none.
        outputs: for each output, its axes.
        alignment: patches start at multiples of this along each axis, so that they start at an element of every value.
    """

    space: tuple[int, ...]
    inputs: tuple[Reach, ...]
    outputs: tuple[Reach, ...]
    alignment: tuple[int, ...]


def locality(graph: Graph) -> Locality:
    """Describes a graph whose composite ops have been decomposed.

    Raises:
        UnsupportedError: it is not local; the message lists the nodes that are in the way, with reasons.
    """
    return _Analysis(graph).run()


class _Analysis:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reach: dict[Value, Reach] = {}
        self.steps: list[set[Fraction]] = []
        self.problems: list[str] = []

    def run(self) -> Locality:
        rank = max((v.type.rank for v in self.graph.inputs if isinstance(v.type, TensorType)), default=0)
        spatial = [v for v in self.graph.inputs if isinstance(v.type, TensorType) and v.type.rank == rank]
        if rank < 3:
            raise self._refusal(["no input has axes of space: [N, C, ...] is needed"])
        spaces = {tuple(v.shape[2:]) for v in spatial}
        space = next(iter(spaces))
        if len(spaces) > 1 or not all(isinstance(d, int) for d in space):
            raise self._refusal(["the inputs differ in size, or their sizes are open"])
        self.steps = [{Fraction(1)} for _ in space]
        zero = Fraction(0)
        for value in self.graph.inputs:
            axes = range(2, rank) if value in spatial else ()
            self.reach[value] = tuple(Axis(axis, Fraction(1), zero, zero) for axis in axes)
        for node in self.graph:
            self._visit(node)
        for name, value in zip(self.graph.output_names, self.graph.outputs):
            if value in self.reach and not self.reach[value]:
                self.problems.append(f"output {name!r} has no axes of space")
        if self.problems:
            raise self._refusal(self.problems)
        alignment = []
        for steps in self.steps:
            least = 1
            for step in steps:
                least = _least_common_multiple(least, step.numerator)
            alignment.append(least)
        return Locality(
            tuple(int(d) for d in space),
            tuple(self.reach[v] for v in self.graph.inputs),
            tuple(self.reach[v] for v in self.graph.outputs),
            tuple(alignment),
        )

    def _refusal(self, problems: Sequence[str]) -> UnsupportedError:
        return UnsupportedError(
            "the model cannot be run patch by patch",
            problems=list(problems),
            hint="raise the limit of memory, or use a smaller input",
        )

    def _visit(self, node: Node) -> None:
        """The reach of the results; what cannot be described is a problem, and so is nothing that follows it."""
        if isinstance(node.op.kind, Structural) and node.op.name == "constant":
            self.reach[node.result] = ()
            return
        if any(v not in self.reach for v in node.operands):
            return
        found: Reach | str = ()
        if any(self.reach[v] for v in node.operands):
            found = self._of(node)
        elif node.regions:
            found = f"{node.op.name} is not looked into"
        if isinstance(found, str):
            self.problems.append(f"{node.op.name} at {node.location}: {found}")
            return
        for steps, axis in zip(self.steps, found):
            steps.add(axis.step)
        for value in node.results:
            self.reach[value] = found

    def _of(self, node: Node) -> Reach | str:
        name = node.op.name
        if name in ("conv", "max_pool", "avg_pool", "lp_pool"):
            return self._window(node)
        if name == "conv_transpose":
            return self._transposed(node)
        if isinstance(node.op.kind, Elementwise):
            return self._aligned(node)
        if name == "concat":
            axis = node.attrs["axis"] % node.result.type.rank
            joined = self._aligned(node)
            inside = not isinstance(joined, str) and any(a.position == axis for a in joined)
            return "it joins values along an axis of space" if inside else joined
        if name == "transpose":
            perm = node.attrs["perm"]
            return tuple(_moved(a, perm.index(a.position)) for a in self.reach[node.operands[0]])
        if name in _REDUCTIONS:
            return self._reduced(node)
        if name == "resize":
            return self._resized(node)
        return "its results depend on positions far away, or on the size"

    def _window(self, node: Node) -> Reach | str:
        x = self.reach[node.operands[0]]
        if any(self.reach[v] for v in node.operands[1:]):
            return "its weights are computed from the input"
        kernel = ints(node.operands[1].shape[2:] if node.op.name == "conv" else node.attrs["kernel"])
        if [a.position for a in x] != list(range(2, 2 + len(kernel))):
            return "its windows do not move along the axes of space alone"
        found = []
        for i, axis in enumerate(x):
            stride, dilation, low, high = (_attr(node, n, i) for n in ("strides", "dilations", "pads_low", "pads_high"))
            if not isinstance(low, int) or not isinstance(high, int) or low < 0 or high < 0:
                return "its padding is negative or not known"
            reach = dilation * (kernel[i] - 1)
            found.append(
                Axis(
                    axis.position,
                    axis.step * stride,
                    axis.before + low * axis.step,
                    axis.after + (reach - low) * axis.step,
                )
            )
        return tuple(found)

    def _transposed(self, node: Node) -> Reach | str:
        x = self.reach[node.operands[0]]
        if any(self.reach[v] for v in node.operands[1:]):
            return "its weights are computed from the input"
        kernel = ints(node.operands[1].shape[2:])
        if [a.position for a in x] != list(range(2, 2 + len(kernel))):
            return "its windows do not move along the axes of space alone"
        found = []
        for i, axis in enumerate(x):
            stride, dilation, low = (_attr(node, n, i) for n in ("strides", "dilations", "pads_low"))
            size, larger = node.operands[0].shape[i + 2], node.result.shape[i + 2]
            if not isinstance(low, int) or low < 0 or not isinstance(larger, int) or larger < size * stride:
                return "its result is smaller than its operand times the stride"
            fine = axis.step / stride
            reach = dilation * (kernel[i] - 1)
            found.append(Axis(axis.position, fine, axis.before + max(reach - low, 0) * fine, axis.after + low * fine))
        return tuple(found)

    def _aligned(self, node: Node) -> Reach | str:
        """Operands that lie upon one another from the last axis on."""
        rank, found = node.result.type.rank, None
        for operand in node.operands:
            shift = rank - operand.type.rank
            moved = tuple(_moved(axis, axis.position + shift) for axis in self.reach[operand])
            if moved and any(operand.shape[a.position] == 1 for a in self.reach[operand]):
                return "an operand has one element along an axis of space"
            if not moved:
                continue
            if found is None:
                found = moved
                continue
            if [(a.position, a.step) for a in found] != [(a.position, a.step) for a in moved]:
                return "its operands differ in scale"
            found = tuple(
                Axis(a.position, a.step, max(a.before, b.before), max(a.after, b.after)) for a, b in zip(found, moved)
            )
        assert found is not None
        for operand in node.operands:
            shift = rank - operand.type.rank
            fixed = () if self.reach[operand] else [a for a in found if a.position >= shift]
            if any(operand.shape[a.position - shift] != 1 for a in fixed):
                return "a constant differs from position to position"
        return found

    def _reduced(self, node: Node) -> Reach | str:
        x, rank = self.reach[node.operands[0]], node.operands[0].type.rank
        given = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
        axes = sorted(a % rank for a in given) or list(range(rank))
        if any(a.position in axes for a in x):
            return "it takes in whole axes of space"
        if node.attrs["keepdims"]:
            return x
        return tuple(_moved(a, a.position - sum(axis < a.position for axis in axes)) for a in x)

    def _resized(self, node: Node) -> Reach | str:
        attrs, before = node.attrs, node.operands[0].shape
        if attrs["mode"] not in ("nearest", "linear") or attrs["coordinate"] not in _COORDINATES or attrs["antialias"]:
            return "its coordinates depend on the whole size"
        found = []
        for axis in self.reach[node.operands[0]]:
            old, new = before[axis.position], attrs["shape"][axis.position]
            factor = new // old if isinstance(new, int) and isinstance(old, int) and old else 0
            if factor < 1 or new != old * factor or attrs["scales"] and attrs["scales"][axis.position] != factor:
                return "it does not enlarge by a whole factor"
            taps = 1 if attrs["mode"] == "nearest" else 2
            wide = taps * axis.step if factor > 1 else Fraction(0)
            found.append(Axis(axis.position, axis.step / factor, axis.before + wide, axis.after + wide))
        others = set(range(len(before))) - {a.position for a in found}
        if any(before[i] != attrs["shape"][i] for i in others):
            return "it resizes another axis than those of space"
        return tuple(found)


def _moved(axis: Axis, position: int) -> Axis:
    return Axis(position, axis.step, axis.before, axis.after)


def _attr(node: Node, name: str, axis: int) -> Any:
    values = node.attrs[name]
    return values[axis] if values else (0 if name.startswith("pads") else 1)


def _least_common_multiple(a: int, b: int) -> int:
    import math

    return a * b // math.gcd(a, b)


def with_space(graph: Graph, found: Locality, space: Sequence[int]) -> Graph:
    """The same local graph for inputs of other sizes along the axes of space.

    Raises:
        DhcError: the graph does not allow the sizes.
    """
    target = Graph(graph.name)
    target.metadata.update(graph.metadata)
    mapping: dict[Value, Value] = {}
    for value, reach in zip(graph.inputs, found.inputs):
        shape = list(value.shape)
        for axis, size in zip(reach, space):
            shape[axis.position] = size
        mapping[value] = target.add_input(value.name, TensorType(value.dtype, tuple(shape)))
    for node in graph:
        attrs = dict(node.attrs)
        if node.op.name == "resize":
            old, new = node.operands[0].shape, mapping[node.operands[0]].shape
            attrs["shape"] = tuple(
                s if before == after else s // before * after for s, before, after in zip(attrs["shape"], old, new)
            )
        made = target.create(
            node.op, [mapping[v] for v in node.operands], attrs, location=node.location,
            names=[r.name for r in node.results],
        )  # fmt: skip
        mapping.update(zip(node.results, made.results))
    target.output(*(mapping[v] for v in graph.outputs), names=graph.output_names)
    return target
