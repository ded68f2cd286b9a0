"""What rules ask about values: constants and their elements."""

from __future__ import annotations

import numpy as np

from dhc.ir.graph import Node, Value

LARGEST_SPLAT = 4096
"""Constants with more elements are not searched for being all equal."""


def constant_of(value: Value) -> np.ndarray | None:
    """The array of a constant, else None."""
    producer = value.producer
    if producer is None or producer.op.name != "constant":
        return None
    array: np.ndarray = producer.attrs["value"]
    return array


def splat_of(value: Value) -> float | None:
    """The number that every element of a constant is, bit for bit; None for other values."""
    array = constant_of(value)
    if array is None or array.size == 0 or array.size > LARGEST_SPLAT or array.dtype == object:
        return None
    if array.dtype.kind == "c":
        return None
    flat = array.reshape(-1)
    if not bool(np.all(flat == flat[0])):
        return None
    first = float(flat[0])
    if first == 0 and array.dtype.kind not in "iub" and len(set(np.signbit(flat.astype(np.float64)).tolist())) > 1:
        return None
    return first


def is_splat(node: Node, index: int, number: float) -> bool:
    """True when an operand is a constant whose elements are all `number`."""
    return splat_of(node.operands[index]) == number


def keeps_type(node: Node, index: int) -> bool:
    """True when an operand has the type of the only result."""
    same: bool = node.operands[index].type == node.result.type
    return same
