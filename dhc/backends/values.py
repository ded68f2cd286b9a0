"""Which values a device can hold: tensors of numbers, in plain memory."""

from __future__ import annotations

from dhc.ir.graph import Node
from dhc.ir.op import Limitation
from dhc.ir.types import TensorType


def interpreter_only(node: Node) -> Limitation | None:
    """Why the interpreter alone can run a node: a value that is no tensor of numbers; None when there is none."""
    for value in (*node.operands, *node.results):
        if not isinstance(value.type, TensorType):
            return Limitation(f"{value.type} is held by the interpreter only", "use the reference target")
        if value.type.dtype.kind == "s":
            return Limitation("strings are held by the interpreter only", "use the reference target")
    return None
