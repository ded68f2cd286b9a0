"""Graph, Node and Value: typed SSA with use lists.

Identity is equality: two nodes are the same only when they are the same object (`compare.py` compares structure).
All edits go through methods, which keep the use lists right; operands, results and regions are read-only tuples.
A graph's nodes form a linked list in topological order, so iterating while erasing or inserting is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from dhc.ir.location import UNKNOWN, Location
from dhc.ir.types import TensorType, Type
from dhc.ir.value_operators import ValueOperators

if TYPE_CHECKING:
    import numpy as np

    from dhc.ir.op import OpDef


class Use(NamedTuple):
    """One use of a value: operand `index` of `user`, or output `index` of the graph `user`."""

    user: Node | Graph
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs on a use


class Value(ValueOperators):
    """Something a graph computes with: a graph input or a result of a node.

    Operators, indexing and methods such as `reshape` and `sum` write nodes (`value_operators.py`).

    Attributes:
        type: its type; replaced only through `Graph.retype`.
        name: a hint for printing, may be empty, never an identity.
        producer: the node that defines it, None for graph inputs.
        index: position among the producer's results or the graph's inputs.
        graph: the graph it belongs to.
    """

    __slots__ = ("type", "name", "producer", "index", "graph", "_uses", "__weakref__")

    def __init__(self, graph: Graph, type_: Type, name: str, producer: Node | None, index: int) -> None:
        self.graph = graph
        self.type: Any = type_
        self.name = name
        self.producer = producer
        self.index = index
        self._uses: dict[Use, None] = {}

    @property
    def uses(self) -> tuple[Use, ...]:
        """Every use, in the order in which they were made."""
        return tuple(self._uses)

    @property
    def users(self) -> list[Node]:
        """The distinct nodes that use this value (graph outputs are not nodes)."""
        return list(dict.fromkeys(u.user for u in self._uses if isinstance(u.user, Node)))

    @property
    def is_output(self) -> bool:
        """True when a graph returns this value."""
        return any(isinstance(u.user, Graph) for u in self._uses)

    @property
    def dtype(self) -> Any:
        """Element type of a tensor value."""
        return self.type.dtype

    @property
    def shape(self) -> Any:
        """Shape of a tensor value."""
        return self.type.shape

    @property
    def location(self) -> Location:
        """Where the value was made."""
        return self.producer.location if self.producer is not None else Location(node=self.name, op="input")

    def replace_all_uses_with(self, other: Value) -> None:
        """Makes every user of this value use `other` instead."""
        if other is self:
            return
        for use in self.uses:
            if isinstance(use.user, Graph):
                use.user.set_output(use.index, other)
            else:
                use.user.set_operand(use.index, other)

    def __repr__(self) -> str:
        return f"<{'%' + self.name if self.name else 'value'}: {self.type}>"


class Node:
    """One application of an op.

    Attributes:
        op: the op's record.
        attrs: read-only attributes, defaults filled in.
        regions: nested graphs (bodies of control flow and of fused groups).
        location: where it came from in the user's model.
        device: name of the device it is placed on; empty before placement.
    """

    __slots__ = (
        "op", "attrs", "regions", "location", "device", "graph", "_operands", "_results", "_previous", "_next",
        "__weakref__",
    )  # fmt: skip

    def __init__(
        self,
        graph: Graph,
        op: OpDef,
        operands: Sequence[Value],
        attrs: Mapping[str, Any],
        regions: Sequence[Graph],
        result_types: Sequence[Type],
        location: Location,
        names: Sequence[str],
    ) -> None:
        self.graph: Graph | None = graph
        self.op = op
        self.attrs: Mapping[str, Any] = MappingProxyType(dict(attrs))
        self.regions = tuple(regions)
        self.location = location
        self.device = ""
        self._previous: Node | None = None
        self._next: Node | None = None
        self._operands: tuple[Value, ...] = tuple(operands)
        for i, operand in enumerate(self._operands):
            operand._uses[Use(self, i)] = None
        self._results = tuple(
            Value(graph, t, names[i] if i < len(names) else "", self, i) for i, t in enumerate(result_types)
        )

    @property
    def operands(self) -> tuple[Value, ...]:
        """The values it takes."""
        return self._operands

    @property
    def results(self) -> tuple[Value, ...]:
        """The values it defines."""
        return self._results

    @property
    def result(self) -> Value:
        """The only result.

        Raises:
            ValueError: the node has not exactly one.
        """
        (only,) = self._results
        return only

    @property
    def types(self) -> tuple[Any, ...]:
        """Types of the operands."""
        return tuple(v.type for v in self._operands)

    @property
    def previous(self) -> Node | None:
        """The node before it in its graph."""
        return self._previous

    @property
    def next(self) -> Node | None:
        """The node after it in its graph."""
        return self._next

    def set_operand(self, index: int, value: Value) -> None:
        """Replaces one operand, keeping use lists right."""
        old = self._operands[index]
        if old is value:
            return
        del old._uses[Use(self, index)]
        self._operands = (*self._operands[:index], value, *self._operands[index + 1 :])
        value._uses[Use(self, index)] = None

    def set_attr(self, name: str, value: Any) -> None:
        """Sets one attribute (the caller keeps the result types right)."""
        self.attrs = MappingProxyType({**self.attrs, name: self.op.check_attr(name, value)})

    def erase(self) -> None:
        """Removes the node from its graph.

        Raises:
            ValueError: one of its results is still used.
        """
        for result in self._results:
            if result._uses:
                raise ValueError(f"cannot erase {self!r}: its result {result!r} is used by {result.uses[0].user!r}")
        for i, operand in enumerate(self._operands):
            del operand._uses[Use(self, i)]
        self._operands = ()
        if self.graph is not None:
            self.graph._unlink(self)

    def __repr__(self) -> str:
        results = ", ".join(f"%{r.name}" if r.name else "%_" for r in self._results)
        operands = ", ".join(f"%{o.name}" if o.name else "%_" for o in self._operands)
        types = ", ".join(str(r.type) for r in self._results)
        return f"<{results} = {self.op.name}({operands}): {types}>"


class Graph:
    """A function from inputs to outputs in SSA form.

    Attributes:
        name: for printing.
        inputs: values given by the caller.
        outputs: values returned.
        metadata: free-form text about the whole graph (producer, opset); never read by passes.
        parent: for a nested graph, the graph around it (new symbols must be new there too); nested graphs see
            nothing of it: what they use is passed in as operands of the node that holds them.
    """

    def __init__(self, name: str = "main", parent: Graph | None = None) -> None:
        self.name = name
        self.parent = parent
        self.metadata: dict[str, str] = {}
        self.output_names: list[str] = []
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self._anchor: Node | None = None  # new nodes go before it; None: at the end
        self._fresh = 0
        self._named: set[str] = set()  # symbols that nodes define here or in a graph inside

    # ---- reading -------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Values given by the caller."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Values returned to the caller."""
        return tuple(self._outputs)

    @property
    def nodes(self) -> list[Node]:
        """The nodes in order, as a new list."""
        return list(self)

    def __iter__(self) -> Iterator[Node]:
        node = self._first
        while node is not None:
            following = node._next  # read first: the body of the loop may erase the node
            yield node
            if node.graph is self:
                following = node._next
            node = following

    def __len__(self) -> int:
        return self._count

    def __reversed__(self) -> Iterator[Node]:
        node = self._last
        while node is not None:
            previous = node._previous
            yield node
            if node.graph is self:
                previous = node._previous
            node = previous

    def walk(self) -> Iterator[Node]:
        """All nodes, those of nested graphs after the node that holds them."""
        for node in self:
            yield node
            for region in node.regions:
                yield from region.walk()

    def symbols(self) -> list[str]:
        """Symbols of the input types, sorted."""
        from dhc.ir.types import free_symbols

        return sorted({s for v in self._inputs for s in free_symbols(v.type)})

    # ---- building ------------------------------------------------------------------------------------------------

    def add_input(self, name: str, type_: Type) -> Value:
        """Adds an input.

        Raises:
            ValueError: an input of that name exists.
        """
        if name and any(v.name == name for v in self._inputs):
            raise ValueError(f"graph {self.name!r} already has an input {name!r}")
        value = Value(self, type_, name, None, len(self._inputs))
        self._inputs.append(value)
        return value

    def input(self, name: str, dtype: Any = "f32", shape: Sequence[Any] = ()) -> Value:
        """Adds a tensor input; dims may be ints, symbol names or size expressions such as ``"2*N"``."""
        from dhc.ir.dtypes import dtype as as_dtype
        from dhc.ir.symbols import parse_dim

        dims = tuple(parse_dim(d) if isinstance(d, str) else d for d in shape)
        return self.add_input(name, TensorType(as_dtype(dtype), dims))

    def remove_input(self, value: Value) -> None:
        """Removes an unused input.

        Raises:
            ValueError: it is used.
        """
        if value._uses:
            raise ValueError(f"input {value.name!r} is used")
        self._inputs.remove(value)
        for i, v in enumerate(self._inputs):
            v.index = i

    def output(self, *values: Value, names: Sequence[str] = ()) -> None:
        """Appends outputs; names default to the values' own."""
        for i, value in enumerate(values):
            value._uses[Use(self, len(self._outputs))] = None
            self._outputs.append(value)
            given = names[i] if i < len(names) else value.name
            name = given or f"output{len(self._outputs) - 1}"
            base, n = name, 1
            while name in self.output_names:
                name, n = f"{base}_{n}", n + 1
            self.output_names.append(name)

    def set_output(self, index: int, value: Value) -> None:
        """Replaces one output."""
        del self._outputs[index]._uses[Use(self, index)]
        self._outputs[index] = value
        value._uses[Use(self, index)] = None

    def clear_outputs(self) -> None:
        """Removes all outputs (to set them anew)."""
        for i, value in enumerate(self._outputs):
            del value._uses[Use(self, i)]
        self._outputs = []
        self.output_names = []

    def create(
        self,
        op: OpDef,
        operands: Sequence[Value],
        attrs: Mapping[str, Any] | None = None,
        regions: Sequence[Graph] = (),
        location: Location = UNKNOWN,
        names: Sequence[str] = (),
        result_types: Sequence[Type] | None = None,
    ) -> Node:
        """Infers the types of a new node and inserts it at the insertion point.

        Args:
            op: the op's record.
            operands: values of this graph.
            attrs: attributes; missing ones take their defaults.
            regions: nested graphs.
            location: origin, shown in messages.
            names: hints for the results' names.
            result_types: types to keep instead of the inferred ones (the parser and passes that carry image or
                quantization types use this); the verifier checks that they agree.

        Raises:
            dhc.errors.DhcError: operands or attributes do not fit the op.
        """
        from dhc.ir.op import infer_types

        full = op.check_attrs(attrs or {}, location)
        for spec in op.attrs:
            if spec.kind == "symbol" and not full[spec.name]:
                full[spec.name] = self.fresh_symbol()
        for operand in operands:
            if operand.graph is not self:
                raise ValueError(f"operand {operand!r} of {op.name} belongs to another graph")
        if result_types is None:
            result_types = infer_types(op, [v.type for v in operands], full, regions, location)
        node = Node(self, op, operands, full, regions, result_types, location, names)
        self._link(node, self._anchor)
        return node

    def insertion_before(self, node: Node | None) -> _Insertion:
        """Context manager: nodes created inside go before `node` (None: at the end)."""
        return _Insertion(self, node)

    def retype(self, value: Value, type_: Type) -> None:
        """Replaces the type of a value (used when symbols are bound or types refined)."""
        value.type = type_

    def move_before(self, node: Node, anchor: Node | None) -> None:
        """Moves a node before `anchor` (None: to the end); the caller keeps the order topological."""
        if node is anchor:
            return
        self._unlink(node)
        self._link(node, anchor)

    def fresh_symbol(self, prefix: str = "u") -> str:
        """A symbol name that neither this graph nor one around it has handed out or been given yet."""
        if self.parent is not None:
            return self.parent.fresh_symbol(prefix)
        taken = self._named.union(self.symbols())
        while True:
            name = f"{prefix}{self._fresh}"
            self._fresh += 1
            if name not in taken:
                return name

    def _note_symbols(self, node: Node) -> None:
        """Keeps the names of sizes that a node was given out of what `fresh_symbol` hands out."""
        for spec in node.op.attrs:
            if spec.kind == "symbol" or (spec.kind == "strs" and spec.name in ("symbols", "names")):
                value = node.attrs[spec.name]
                graph: Graph | None = self
                while graph is not None:
                    graph._named.update((value,) if isinstance(value, str) else value)
                    graph = graph.parent

    def _link(self, node: Node, anchor: Node | None) -> None:
        node.graph = self
        self._note_symbols(node)
        for result in node._results:
            result.graph = self
        previous = anchor._previous if anchor is not None else self._last
        node._previous, node._next = previous, anchor
        if previous is None:
            self._first = node
        else:
            previous._next = node
        if anchor is None:
            self._last = node
        else:
            anchor._previous = node
        self._count += 1

    def _unlink(self, node: Node) -> None:
        if node._previous is None:
            self._first = node._next
        else:
            node._previous._next = node._next
        if node._next is None:
            self._last = node._previous
        else:
            node._next._previous = node._previous
        if self._anchor is node:
            self._anchor = node._next
        node.graph = None
        self._count -= 1

    # ---- using ---------------------------------------------------------------------------------------------------

    def clone(self, name: str | None = None) -> Graph:
        """A deep copy: nodes, regions and values are new, constants' arrays are shared."""
        from dhc.ir.copying import clone

        return clone(self, self.name if name is None else name)

    def compile(self, *targets: str, **options: Any) -> Any:
        """Compiles the graph and opens a session: ``graph.compile("cpu")(x)``.

        Takes the options of `dhc.compile`.
        """
        from importlib import import_module

        return import_module("dhc.compiler").compile(self, targets=list(targets) or ["cpu"], **options).session()

    def evaluate(self, *inputs: np.ndarray, **named: np.ndarray) -> list[np.ndarray]:
        """Runs the graph in the reference interpreter (slow, exact by definition)."""
        from dhc.ir.interpreter import interpret

        by_name = {v.name: array for v, array in zip(self._inputs, inputs)}
        return interpret(self, {**by_name, **named})

    def __str__(self) -> str:
        from dhc.ir.text import print_graph

        return print_graph(self, constants="elide")

    def __repr__(self) -> str:
        ins = ", ".join(f"{v.name}: {v.type}" for v in self._inputs)
        outs = ", ".join(f"{n}: {v.type}" for n, v in zip(self.output_names, self._outputs))
        return f"<Graph {self.name!r} ({ins}) -> ({outs}), {self._count} nodes>"


class _Insertion:
    def __init__(self, graph: Graph, anchor: Node | None) -> None:
        self._graph, self._wanted = graph, anchor
        self._before: Node | None = None

    def __enter__(self) -> Graph:
        self._before, self._graph._anchor = self._graph._anchor, self._wanted
        return self._graph

    def __exit__(self, *_: object) -> None:
        self._graph._anchor = self._before
