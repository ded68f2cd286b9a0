"""Which nodes need no work at all because their result already lies in their operand's memory."""

from __future__ import annotations

from dhc.ir import symbols
from dhc.ir.graph import Node
from dhc.ir.symbols import Dim


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
    return starts[first] * symbols.contiguous_strides(shape)[first]
