"""Checking the arrays that a user gives to a run; all wrong ones are reported at once."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from dhc_runtime.dims import bind_shapes
from dhc_runtime.dtypes import accepted_dtypes, numpy_dtype, storage_dtype, value_range
from dhc_runtime.errors import DhcError, ResourceError, ShapeError, TypeMismatchError, UsageError
from dhc_runtime.memory import Budget
from dhc_runtime.program import Port

__all__ = ["Feed", "prepare_output", "raise_problems"]

_REMEMBERED = 64


def _suggestion(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return " (did you mean {!r}?)".format(close[0]) if close else ""


def raise_problems(kind: "type[DhcError]", problems: Sequence[str], where: str, hint: str) -> None:
    """Raises one error that lists all problems, if there are any."""
    if not problems:
        return
    if len(problems) == 1:
        raise kind(problems[0], where, hint)
    raise kind("{} problems: {}".format(len(problems), "; ".join(problems)), where, hint)


class Feed:
    """Brings the arrays of a run into the form that the code reads.

    Args:
        ports: the inputs of the model.
        where: what to call the model in messages.
        budget: limits the copies of arrays that cannot be read in place; None: no limit.
    """

    def __init__(self, ports: Sequence[Port], where: str, budget: Optional[Budget] = None) -> None:
        self._ports = ports
        self._budget = budget
        self._names = [port.name for port in ports]
        self._where = where
        self._accepted = [accepted_dtypes(port.dtype) for port in ports]
        self._fitting: Set[Tuple[Tuple[int, ...], ...]] = set()

    def collect(self, arguments: Tuple[Any, ...]) -> "List[np.ndarray[Any, Any]]":
        """Checks the arrays of a run.

        Arrays that are contiguous in C order and aligned are used as they are; others are copied.

        Args:
            arguments: a dict of arrays by name, or one array for each input in order.

        Returns:
            One array for each input, contiguous and aligned, of the storage type.

        Raises:
            UsageError: inputs are missing or unknown.
            TypeMismatchError: a dtype is wrong.
            ShapeError: a shape is wrong.
            ResourceError: an array that must be copied is too large.
        """
        given = self._pair(arguments)
        arrays: "List[np.ndarray[Any, Any]]" = []
        fit = len(given) == len(self._names)
        for name, accepted in zip(self._names, self._accepted):
            value = given.get(name)
            array = value if isinstance(value, np.ndarray) else self._array_of(name, value)
            fit = fit and value is not None and array.dtype in accepted
            arrays.append(array)
        shapes = tuple([array.shape for array in arrays])
        if not fit or shapes not in self._fitting:
            self._check(given, arrays)
            # Only a shortcut: the shapes that fitted last time need no second look.
            if len(self._fitting) >= _REMEMBERED:
                self._fitting.clear()
            self._fitting.add(shapes)
        return [self._usable(array, port) for array, port in zip(arrays, self._ports)]

    def _array_of(self, name: str, value: Any) -> "np.ndarray[Any, Any]":
        try:
            return np.asarray(value)
        except (TypeError, ValueError) as error:  # nested lists of different lengths, for example
            raise UsageError(
                "input {!r} is no array: {}".format(name, error), self._where, "Give a NumPy array"
            ) from None

    def _pair(self, arguments: Tuple[Any, ...]) -> Mapping[str, Any]:
        if len(arguments) == 1 and isinstance(arguments[0], Mapping):
            return arguments[0]
        if len(arguments) != len(self._names):
            raise UsageError(
                "{} arrays were given and the model has {} inputs: {}".format(
                    len(arguments), len(self._names), ", ".join(self._names) or "none"
                ),
                self._where,
                "Give one array for each input, or a dict of arrays by name",
            )
        return dict(zip(self._names, arguments))

    def _usable(self, array: "np.ndarray[Any, Any]", port: Port) -> "np.ndarray[Any, Any]":
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            array = self._copied(array, port)
        limits = value_range(port.dtype)
        if limits is not None and array.size and not (array.min() >= limits[0] and array.max() <= limits[1]):
            raise TypeMismatchError(
                "input {!r}: values of {} lie from {} to {}".format(port.name, port.dtype, *limits), self._where
            )
        storage = storage_dtype(port.dtype)
        return array if array.dtype == storage else array.view(storage)

    def _copied(self, array: "np.ndarray[Any, Any]", port: Port) -> "np.ndarray[Any, Any]":
        """A contiguous copy. A broadcast array may be far larger than the memory that it looks into."""
        if self._budget is not None:
            self._budget.require(array.nbytes)
        try:
            return np.array(array, order="C", copy=True)
        except (MemoryError, ValueError) as error:
            raise ResourceError(
                "The system cannot give the {} bytes that a contiguous copy of input {!r} takes".format(
                    array.nbytes, port.name
                ),
                array.nbytes,
                self._where,
                "Give a smaller array, or one that is contiguous in C order",
            ) from error

    def _check(self, given: Mapping[str, Any], arrays: "Sequence[np.ndarray[Any, Any]]") -> None:
        problems: List[str] = []
        kind: "type[DhcError]" = ShapeError
        missing = [name for name in self._names if given.get(name) is None]
        for name in missing:
            problems.append("input {!r} is missing".format(name))
        for name in given:
            if name not in self._names:
                note = _suggestion(str(name), missing or self._names)
                problems.append("input {!r} is unknown{}".format(name, note))
        if problems:
            kind = UsageError
        present = [(port, array) for port, array in zip(self._ports, arrays) if port.name not in missing]
        for port, array in present:
            if array.dtype not in accepted_dtypes(port.dtype):
                expected = numpy_dtype(port.dtype)
                swapped = array.dtype.kind == expected.kind and array.dtype.newbyteorder("=") == expected
                note = " in the byte order of this machine" if swapped else ""
                problems.append(
                    "input {!r}: expected dtype {}{}, got {}".format(port.name, expected.name, note, array.dtype)
                )
                kind = TypeMismatchError if kind is ShapeError else kind
        problems.extend(
            bind_shapes(
                [port.name for port, _ in present],
                [port.shape for port, _ in present],
                [array.shape for _, array in present],
                {},
            )
        )
        raise_problems(kind, problems, self._where, "Session.inputs lists what the model takes")


def prepare_output(name: str, array: Any, port: Port, inputs: "Sequence[np.ndarray[Any, Any]]", where: str) -> bool:
    """Checks an array that the user offers for an output.

    Returns:
        Whether the code may write straight into it: it is contiguous, aligned, and shares no memory with an input.

    Raises:
        UsageError: it is no array, or read-only.
        TypeMismatchError: its dtype is wrong.
    """
    if not isinstance(array, np.ndarray):
        raise UsageError("outputs[{!r}] is not a NumPy array".format(name), where)
    if not array.flags.writeable:
        raise UsageError("outputs[{!r}] is read-only".format(name), where)
    if array.dtype not in accepted_dtypes(port.dtype):
        raise TypeMismatchError(
            "output {!r} has dtype {} and the array given for it {}".format(
                name, numpy_dtype(port.dtype).name, array.dtype
            ),
            where,
        )
    apart = not any(np.may_share_memory(array, value) for value in inputs)
    return bool(array.flags.c_contiguous and array.flags.aligned and apart)
