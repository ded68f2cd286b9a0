"""Turns a lowered graph into a program for the runtime: buffers, steps, segments (see docs/artifact.md).

This part is the same for every device that runs native step lists: it decides which values share memory (views,
concatenation in place, element-wise in place), tracks liveness and writes control flow as nested programs. How a
single node becomes kernels is the device's `lower` function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import CompileError, UnsupportedError

from dhc.backends.constants import ConstantPool
from dhc.backends.cost import nanoseconds
from dhc.ir import symbols
from dhc.ir.dtypes import DType
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.kinds import Structural
from dhc.ir.op import constraints_of
from dhc.ir.symbols import Dim, to_json
from dhc.ir.types import TensorType
from dhc.ir.verifier import defined_symbols
from dhc.passes.memory import Home, concat_homes, is_direct_output, view_offset, why_not_in_place

Lower = Callable[[Node, "PlanBuilder"], None]


class PlanBuilder:
    """Builds the program of one graph (nested graphs get their own builder over the same constants)."""

    def __init__(self, graph: Graph, lower: Lower, constants: ConstantPool) -> None:
        self.graph = graph
        self.constants = constants
        self._lower = lower
        self._buffers: list[dict[str, Any]] = []
        self._items: list[dict[str, Any]] = []
        self._constraints: list[list[Any]] = []
        self._buffer_of: dict[Value, int] = {}
        self._sizes: dict[int, Dim] = {}
        self._uses_left: dict[int, int] = {}
        self._homes: dict[Value, Home] = {}
        self._concats: dict[Node, int] = {}
        self._runtime_symbols: set[str] = set()
        self._required: set[tuple[Dim, Dim]] = set()

    # ---- what `lower` uses ---------------------------------------------------------------------------------------

    def buffer(self, value: Value) -> int:
        """The buffer of a value; a result of the node being lowered gets its memory here."""
        found = self._buffer_of.get(value)
        if found is None:
            if value.graph is not self.graph:
                raise CompileError(f"{value!r} is not a value of graph {self.graph.name!r}", where=str(value.location))
            found = self._stored(value) if _is_constant(value) else self._define(value)
        return found

    def shaped(self, value: Value) -> int:
        """The buffer of a value for control flow, which hands element type and shape of buffers on to its bodies.

        A value may lie in memory that was made for one of another shape or element type (views, reuse in place).
        """
        buffer = self.buffer(value)
        entry = self._buffers[buffer]
        if entry["dtype"] == value.dtype.name and entry["shape"] == [to_json(d) for d in value.shape]:
            return buffer
        return self._add({"kind": "alias", "of": buffer, "offset": 0}, value.type)

    def constant(self, array: np.ndarray, dtype: DType | None = None) -> int:
        """A buffer that holds a constant array (packed weights, tables)."""
        from dhc.ir.dtypes import dtype as as_dtype

        kind = dtype or as_dtype(array.dtype)
        name = self.constants.add(array)
        for i, buffer in enumerate(self._buffers):
            if buffer.get("constant") == name and buffer["dtype"] == kind.name and buffer["shape"] == list(array.shape):
                return i
        return self._add({"kind": "const", "constant": name}, TensorType(kind, array.shape))

    def scratch(self, dtype: DType, shape: Sequence[Dim]) -> int:
        """Working memory of the kernel that is emitted next."""
        buffer = self._add({"kind": "arena"}, TensorType(dtype, tuple(shape)))
        self._touch(buffer, len(self._items))
        return buffer

    def reuse(self, value: Value, operand: Value) -> bool:
        """Lets a result take over the memory of a dying operand of the same size (element-wise in place).

        Returns:
            True when it did.
        """
        if value in self._buffer_of:
            return False
        source = self._buffer_of.get(operand)
        if source is None or self._buffers[source]["kind"] != "arena" or self._uses_left.get(source, 0) != 1:
            return False
        if why_not_in_place(self.graph, value, operand, self._homes) is not None:
            return False
        if len([v for v, b in self._buffer_of.items() if b == source]) != 1:
            return False
        del self._buffer_of[operand]  # this was its last use; another result may take the memory over in turn
        self._buffer_of[value] = source
        self._uses_left[source] = self._count_uses(value)
        return True

    def kernel(
        self, symbol: str, buffers: Sequence[int], params: Sequence[Dim], node: Node, barrier: bool = True
    ) -> None:
        """Appends one kernel step. Buffers used before get their liveness extended."""
        for buffer in buffers:
            self._touch(buffer, len(self._items))
        self._items.append(
            {
                "do": "kernel",
                "symbol": symbol,
                "buffers": list(buffers),
                "params": [to_json(p) for p in params],
                "barrier": barrier,
                "node": str(node.location),
                "op": node.op.name,
                **self._work(node),
            }
        )

    def _work(self, node: Node) -> dict[str, Any]:
        """The estimate that the runtime weighs threads by; left out when long, or when only the result tells it."""
        work = nanoseconds(node)
        needed = set(symbols.free_symbols(work))
        if len(symbols.format_dim(work)) > 200 or needed & set(defined_symbols(node)):
            return {}
        return {"work": to_json(work)}

    def bind(self, symbol: str, buffer: int, index: int, largest: Dim | None = None) -> None:
        """Binds a symbol to an element of an i64 buffer: later sizes may use it."""
        self._touch(buffer, len(self._items))
        bound = None if largest is None else to_json(largest)
        self._items.append({"do": "bind", "symbol": symbol, "buffer": buffer, "index": index, "max": bound})
        self._runtime_symbols.add(symbol)

    def bounded(self, value: Value, shape: Sequence[Dim]) -> int:
        """Memory for a result whose size is only known after its kernel ran; `shape` is the upper bound."""
        buffer = self._add({"kind": "arena"}, TensorType(value.type.dtype, tuple(shape)))
        # Readers see the part that came to be used: control flow passes the shapes of buffers on to its bodies.
        used = self._add({"kind": "alias", "of": buffer, "offset": 0}, value.type)
        self._buffer_of[value] = used
        self._uses_left[used] = self._count_uses(value)
        return buffer

    # ---- building ------------------------------------------------------------------------------------------------

    def build(self) -> dict[str, Any]:
        """The program."""
        for value in self.graph.inputs:
            self._require_tensor(value)
            buffer = self._add({"kind": "input"}, value.type)
            self._buffer_of[value] = buffer
            self._uses_left[buffer] = self._count_uses(value)
        self._homes = concat_homes(self.graph)
        for node in self.graph:
            self._constrain(node)
            self._place(node)
            for operand in node.operands:
                buffer = self._buffer_of.get(operand)
                if buffer is not None:  # a constant that went into its kernel in another form has none
                    self._uses_left[buffer] = self._uses_left.get(buffer, 0) - 1
        outputs = [self._return(name, value) for name, value in zip(self.graph.output_names, self.graph.outputs)]
        inputs = [
            {
                "name": v.name,
                "dtype": v.dtype.name,
                "shape": [to_json(d) for d in v.shape],
                "buffer": self._buffer_of[v],
            }
            for v in self.graph.inputs
        ]
        return {
            "symbols": self.graph.symbols(),
            "constraints": self._constraints,
            "inputs": inputs,
            "outputs": outputs,
            "buffers": self._buffers,
            "items": self._items,
        }

    def _constrain(self, node: Node) -> None:
        """Notes the sizes that must agree, and those that must not be negative, for a node and the nodes of a group."""
        where = f"({node.op.name} at {node.location})"
        for left, right, what in constraints_of(node):
            self._require(left, right, f"{what} {where}")
        for dim in dict.fromkeys(
            d for value in node.results if isinstance(value.type, TensorType) for d in value.shape
        ):
            if not symbols.is_nonnegative(dim):
                what = f"the size {symbols.format_dim(dim)} is not negative"
                self._require(symbols.minimum(dim, 0), 0, f"{what} {where}")
        if node.op.kind == Structural("group"):
            for inner in node.regions[0]:
                self._constrain(inner)

    def _require(self, left: Dim, right: Dim, message: str) -> None:
        if (left, right) not in self._required:  # the first node that needs it is named
            self._required.add((left, right))
            self._constraints.append([to_json(left), to_json(right), message])

    def _place(self, node: Node) -> None:
        kind = node.op.kind
        if isinstance(kind, Structural) and kind.name == "constant":
            self._require_tensor(node.result)
            return  # stored when something reads it: weights that kernels take packed are not kept unpacked too
        if isinstance(kind, Structural) and kind.name == "bind":
            source = self.buffer(node.operands[0])
            for index, symbol in enumerate(node.attrs["names"]):
                self.bind(symbol, source, index)
            self._share(node.result, node.operands[0], 0)
            return
        if isinstance(kind, Structural) and kind.name == "control":
            self._control(node)
            return
        offset = view_offset(node)
        if offset is not None and node.result not in self._homes:
            self._share(node.result, node.operands[0], offset)
            return
        if node.op.name == "concat" and self._concatenated_in_place(node):
            return
        for value in node.results:
            self._require_tensor(value)
        self._lower(node, self)
        for value in node.results:
            if value not in self._buffer_of:
                raise CompileError(f"lowering {node.op.name} left a result without memory", where=str(node.location))

    def _share(self, value: Value, source: Value, offset: Dim) -> None:
        """Makes `value` lie in the memory of `source` (a view)."""
        parent = self.buffer(source)
        if offset == 0 and value.type.nbytes == source.type.nbytes:
            self._buffer_of[value] = parent
            self._uses_left[parent] = self._uses_left.get(parent, 0) + self._count_uses(value)
            return
        alias = self._add({"kind": "alias", "of": parent, "offset": to_json(offset * value.dtype.itemsize)}, value.type)
        self._buffer_of[value] = alias
        self._uses_left[alias] = self._count_uses(value)
        # The parent stays alive as long as the view: reuse of its memory in place must not happen.
        self._uses_left[parent] = self._uses_left.get(parent, 0) + self._count_uses(value) + 1

    def _home_of(self, concat: Node) -> int:
        if concat not in self._concats:
            self._concats[concat] = self._allocate(concat.result)
        return self._concats[concat]

    def _concatenated_in_place(self, node: Node) -> bool:
        """Concat whose operands all lie in place already needs no kernel."""
        if node.result in self._homes:  # and the operands before it: it is a part of a longer one
            self._define(node.result)
            return True
        buffer = self._concats.get(node)
        if buffer is not None:
            self._buffer_of[node.result] = buffer
            self._uses_left[buffer] = self._count_uses(node.result) + len(node.operands)
        homes = [self._homes.get(operand) for operand in node.operands]
        return all(home is not None and home.concat is node for home in homes) and bool(homes)

    def _stored(self, constant: Value) -> int:
        producer = constant.producer
        assert producer is not None
        buffer = self.constant(producer.attrs["value"], constant.dtype)
        self._buffer_of[constant] = buffer
        self._uses_left[buffer] = self._uses_left.get(buffer, 0) + self._count_uses(constant)
        return buffer

    def _define(self, value: Value) -> int:
        home = self._homes.get(value)
        if home is not None:
            parent = self._home_of(home.concat)
            buffer = self._add({"kind": "alias", "of": parent, "offset": to_json(home.offset)}, value.type)
        else:
            buffer = self._allocate(value)
        self._buffer_of[value] = buffer
        self._uses_left[buffer] = self._count_uses(value)
        return buffer

    def _allocate(self, value: Value) -> int:
        kind = "output" if is_direct_output(self.graph, value) else "arena"
        return self._add({"kind": kind}, value.type)

    def _return(self, name: str, value: Value) -> dict[str, Any]:
        self._require_tensor(value)
        source = self.buffer(value)
        if self._buffers[source]["kind"] == "output" and not self._buffers[source].get("returned"):
            self._buffers[source]["returned"] = True
            buffer = source
        else:
            buffer = self._add({"kind": "output", "returned": True}, value.type)
            self._touch(source, len(self._items))
            self._items.append({"do": "copy", "from": source, "to": buffer})
        shape = [to_json(d) for d in value.shape]
        self._buffers[buffer]["shape"] = shape
        return {"name": name, "dtype": value.dtype.name, "shape": shape, "buffer": buffer}

    def _control(self, node: Node) -> None:
        from dhc.backends.plan_control import lower_control

        lower_control(self, node, self._lower)

    def item(self, item: dict[str, Any], reads: Sequence[int]) -> None:
        """Appends a control item that reads buffers."""
        for buffer in reads:
            self._touch(buffer, len(self._items))
        self._items.append(item)

    def dynamic(self, value: Value) -> int:
        """A buffer that the runtime itself allocates when a control item has finished."""
        self._require_tensor(value)
        buffer = self._add({"kind": "dynamic"}, value.type)
        self._buffer_of[value] = buffer
        self._uses_left[buffer] = self._count_uses(value)
        return buffer

    def note_symbols(self, names: Sequence[str]) -> None:
        """Symbols that a control item binds."""
        self._runtime_symbols.update(names)

    def _add(self, entry: dict[str, Any], type_: TensorType) -> int:
        entry = {
            **entry,
            "dtype": type_.dtype.name,
            "shape": [to_json(d) for d in type_.shape],
            "bytes": to_json(type_.nbytes),
        }
        self._buffers.append(entry)
        return len(self._buffers) - 1

    def _touch(self, buffer: int, item: int) -> None:
        entry = self._buffers[buffer]
        while entry["kind"] == "alias":
            entry = self._buffers[entry["of"]]
        if entry["kind"] == "arena":
            entry["first"] = min(entry.get("first", item), item)
            entry["last"] = max(entry.get("last", item), item)

    def _count_uses(self, value: Value) -> int:
        return len(value.uses)

    def _require_tensor(self, value: Value) -> None:
        if not isinstance(value.type, TensorType) or value.type.dtype.kind == "s":
            raise UnsupportedError(f"{value.type} cannot be held on a device", where=str(value.location))


def _is_constant(value: Value) -> bool:
    """Whether a value is the result of a constant node of its graph."""
    kind = None if value.producer is None else value.producer.op.kind
    return isinstance(kind, Structural) and kind.name == "constant"
