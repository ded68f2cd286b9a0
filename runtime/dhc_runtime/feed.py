"""Checking the arrays that a user gives to a run; all wrong ones are reported at once."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from dhc_runtime.dims import bind_shapes
from dhc_runtime.dtypes import accepted_dtypes, numpy_dtype, storage_dtype, value_range
from dhc_runtime.errors import DhcError, ShapeError, TypeMismatchError, UsageError
from dhc_runtime.program import Port

__all__ = ["collect_inputs", "prepare_output", "raise_problems"]

Array = "np.ndarray[Any, Any]"


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


def _pair(arguments: Tuple[Any, ...], ports: Sequence[Port], where: str) -> Dict[str, Any]:
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        return dict(arguments[0])
    if len(arguments) != len(ports):
        raise UsageError(
            "{} arrays were given and the model has {} inputs: {}".format(
                len(arguments), len(ports), ", ".join(port.name for port in ports) or "none"
            ),
            where,
            "Give one array for each input, or a dict of arrays by name",
        )
    return {port.name: value for port, value in zip(ports, arguments)}


def collect_inputs(arguments: Tuple[Any, ...], ports: Sequence[Port], where: str) -> "List[np.ndarray[Any, Any]]":
    """Checks the arrays of a run and brings them into the form that the code reads.

    Arrays that are contiguous in C order and aligned are used as they are; others are copied.

    Args:
        arguments: a dict of arrays by name, or one array for each input in order.
        ports: the inputs of the model.
        where: what to call the model in messages.

    Returns:
        One array for each input, contiguous and aligned, of the storage type.

    Raises:
        UsageError: inputs are missing or unknown.
        TypeMismatchError: a dtype is wrong.
        ShapeError: a shape is wrong.
    """
    given = _pair(arguments, ports, where)
    names = [port.name for port in ports]
    problems: List[str] = []
    kind: "type[DhcError]" = ShapeError
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    for name in missing:
        problems.append("input {!r} is missing".format(name))
    for name in unknown:
        problems.append("input {!r} is unknown{}".format(name, _suggestion(str(name), missing or names)))
    if problems:
        kind = UsageError
    arrays: "List[np.ndarray[Any, Any]]" = []
    present: List[Port] = []
    for port in ports:
        if port.name not in given:
            continue
        array = given[port.name]
        if not isinstance(array, np.ndarray):
            array = np.asarray(array)
        if array.dtype not in accepted_dtypes(port.dtype):
            expected = numpy_dtype(port.dtype)
            note = " in the byte order of this machine" if array.dtype.newbyteorder("=") == expected else ""
            problems.append(
                "input {!r}: expected dtype {}{}, got {}".format(port.name, expected.name, note, array.dtype)
            )
            kind = TypeMismatchError if kind is ShapeError else kind
        arrays.append(array)
        present.append(port)
    problems.extend(
        bind_shapes([port.name for port in present], [port.shape for port in present], [a.shape for a in arrays], {})
    )
    raise_problems(kind, problems, where, "Session.inputs lists what the model takes")
    return [_usable(array, port, where) for array, port in zip(arrays, present)]


def _usable(array: "np.ndarray[Any, Any]", port: Port, where: str) -> "np.ndarray[Any, Any]":
    limits = value_range(port.dtype)
    if limits is not None and array.size and not (array.min() >= limits[0] and array.max() <= limits[1]):
        raise TypeMismatchError(
            "input {!r}: values of {} lie from {} to {}".format(port.name, port.dtype, *limits), where
        )
    storage = storage_dtype(port.dtype)
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.array(array, order="C", copy=True)
    return array if array.dtype == storage else array.view(storage)


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
