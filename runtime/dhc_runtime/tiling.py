"""Running a program patch by patch: what a plan's entry ``tiles`` says, checked, and carried out.

The program computes one patch. Patches of the inputs are cut out, and of each result the part that does not depend on
what lies outside of its patch is put into the whole. Both are described in the documentation of the artifact format.
"""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from dhc_runtime.errors import ArtifactError
from dhc_runtime.program import Port, Program

__all__ = ["Tiles", "parse_tiles"]

_MAX_PATCHES = 1 << 24


class _Side(NamedTuple):
    """An input or output as a whole: its shape, and which of its axes are axes of space."""

    shape: Tuple[int, ...]
    axes: Tuple[int, ...]


class Tiles(NamedTuple):
    """Patches of all inputs and outputs.

    Attributes:
        size: of a patch along each axis of space.
        starts: for each axis of space, where the patches start.
        inputs: the inputs as a whole.
        outputs: the outputs as a whole.
        kept: for each output and axis of space, for each start: first and last (excluded) element of the patch's
            result that is kept, and where it goes.
    """

    size: Tuple[int, ...]
    starts: Tuple[Tuple[int, ...], ...]
    inputs: Tuple[_Side, ...]
    outputs: Tuple[_Side, ...]
    kept: Tuple[Tuple[Tuple[Tuple[int, int, int], ...], ...], ...]

    def ports(self, ports: Sequence[Port], sides: Sequence[_Side]) -> Tuple[Port, ...]:
        """The ports of the program with the shapes of the whole."""
        return tuple([port._replace(shape=side.shape) for port, side in zip(ports, sides)])

    def run(
        self,
        arrays: "Sequence[np.ndarray[Any, Any]]",
        results: "Sequence[np.ndarray[Any, Any]]",
        compute: "Callable[[List[np.ndarray[Any, Any]]], Sequence[np.ndarray[Any, Any]]]",
    ) -> None:
        """Computes all patches.

        Args:
            arrays: the inputs.
            results: receive the outputs.
            compute: the outputs of a patch from its inputs.
        """
        for places in self._places():
            parts = compute([self._cut(array, side, places) for array, side in zip(arrays, self.inputs)])
            for result, part, side, kept in zip(results, parts, self.outputs, self.kept):
                source: List[Any] = [slice(None)] * result.ndim
                target: List[Any] = [slice(None)] * result.ndim
                for axis, entries, place in zip(side.axes, kept, places):
                    begin, stop, to = entries[place]
                    source[axis], target[axis] = slice(begin, stop), slice(to, to + stop - begin)
                result[tuple(target)] = part[tuple(source)]

    def _places(self) -> Iterator[Tuple[int, ...]]:
        return itertools.product(*[range(len(starts)) for starts in self.starts])

    def _cut(self, array: "np.ndarray[Any, Any]", side: _Side, places: Sequence[int]) -> "np.ndarray[Any, Any]":
        where: List[Any] = [slice(None)] * array.ndim
        for axis, starts, place, size in zip(side.axes, self.starts, places, self.size):
            where[axis] = slice(starts[place], starts[place] + size)
        return np.ascontiguousarray(array[tuple(where)])


def parse_tiles(data: Any, program: Program, where: str) -> Tiles:
    """Reads the entry ``tiles`` of a plan.

    Raises:
        ArtifactError: it is malformed, or does not fit the program.
    """

    def fail(what: str) -> ArtifactError:
        return ArtifactError("The description of the patches is wrong: " + what, where, "Compile the model again")

    def numbers(values: Any, what: str) -> Tuple[int, ...]:
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 1 << 62 for v in values):
            raise fail(what)
        return tuple(values)

    def listed(table: Any, key: str) -> List[Any]:
        if not isinstance(table, dict) or not isinstance(table.get(key), list):
            raise fail(key)
        found: List[Any] = table[key]
        return found

    size = numbers(listed(data, "size"), "size")
    starts = tuple([numbers(s, "starts") for s in listed(data, "starts")])
    if len(starts) != len(size) or not all(starts):
        raise fail("starts")
    count = 1
    for places in starts:
        count *= len(places)
    if count > _MAX_PATCHES:
        raise fail("there are too many")

    def side(raw: Any, port: Port, may_be_whole: bool) -> _Side:
        shape, axes = numbers(listed(raw, "shape"), "shape"), numbers(listed(raw, "axes"), "axes")
        fits = len(shape) == len(port.shape) and len(set(axes)) == len(axes) and all(a < len(shape) for a in axes)
        if not fits or not (len(axes) == len(size) or may_be_whole and not axes):
            raise fail("the axes of {!r}".format(port.name))
        others = [i for i in range(len(shape)) if i not in axes]
        if any(shape[i] != port.shape[i] for i in others):
            raise fail("the shape of {!r}".format(port.name))
        return _Side(shape, axes)

    raw_inputs, raw_outputs = listed(data, "inputs"), listed(data, "outputs")
    if len(raw_inputs) != len(program.inputs) or len(raw_outputs) != len(program.outputs):
        raise fail("inputs or outputs are missing")
    inputs = tuple([side(raw, port, True) for raw, port in zip(raw_inputs, program.inputs)])
    for entry, port in zip(inputs, program.inputs):
        for axis, places, extent in zip(entry.axes, starts, size):
            if port.shape[axis] != extent or max(places) + extent > entry.shape[axis]:
                raise fail("a patch of {!r} lies outside".format(port.name))
    outputs = tuple([side(raw, port, False) for raw, port in zip(raw_outputs, program.outputs)])
    kept = []
    for raw, entry, port in zip(raw_outputs, outputs, program.outputs):
        rows = listed(raw, "kept")
        if len(rows) != len(size):
            raise fail("kept")
        kept.append(
            tuple([_kept(row, len(places), port.shape[axis], entry.shape[axis], fail)
                   for row, places, axis in zip(rows, starts, entry.axes)])
        )  # fmt: skip
    return Tiles(size, starts, inputs, outputs, tuple(kept))


def _kept(
    row: Any, count: int, part: Any, whole: int, fail: Callable[[str], ArtifactError]
) -> Tuple[Tuple[int, int, int], ...]:
    """Which elements are kept along an axis: they lie in the patch and cover the whole, one after the other."""
    if not isinstance(row, list) or len(row) != count or type(part) is not int:
        raise fail("kept")
    covered = 0
    found: Dict[int, Tuple[int, int, int]] = {}
    for number, entry in enumerate(row):
        good = isinstance(entry, list) and len(entry) == 3 and all(type(v) is int for v in entry)
        if not good or not 0 <= entry[0] <= entry[1] <= part or entry[2] != covered:
            raise fail("kept")
        covered += entry[1] - entry[0]
        found[number] = (entry[0], entry[1], entry[2])
    if covered != whole:
        raise fail("the patches do not cover the whole")
    return tuple([found[number] for number in range(count)])
