"""From a group of ops to one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhc_runtime.errors import DhcError

from dhc.backends.loop.columns import column_fold, emit_columns
from dhc.backends.loop.expand import Expansion, Position
from dhc.backends.loop.functions import stored
from dhc.backends.loop.generalize import SizeSymbols
from dhc.backends.loop.ir import Buffer, Kernel, Store, loads, values_of, walk
from dhc.backends.loop.nest import Nest
from dhc.backends.loop.schedule import Scheduler
from dhc.ir import scalar as s
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce, Structural
from dhc.ir.op import Limitation
from dhc.ir.ops.view import linear_index
from dhc.ir.symbols import Dim, Shape


@dataclass(frozen=True)
class LoweredKernel:
    """A kernel and how to call it.

    Attributes:
        kernel: buffers are the inputs in order, then the outputs.
        params: the dims whose run-time values are the kernel's parameters, in order.
        inplace: (input, output) numbers that may share memory: every element is read where it is written.
    """

    kernel: Kernel
    params: tuple[Dim, ...]
    inplace: tuple[tuple[int, int], ...]


def supports(node: Node) -> Limitation | None:
    """Why a node cannot be part of a loop nest; None when it can."""
    kind = node.op.kind
    if isinstance(kind, (Elementwise, Map, Reduce, Contract)):
        return None
    if isinstance(kind, Structural) and kind.name == "constant":
        if node.result.type.numel == 1 and node.result.dtype.kind != "s":
            return None
        return Limitation("constants of more than one element are operands of a kernel, not part of it")
    return Limitation(f"{node.op.name} is {kind.name}, which is not computed element by element")


def lower_group(nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value], name: str) -> LoweredKernel:
    """Composes the definitions of nodes into one kernel.

    Args:
        nodes: elementwise, map, reduce, contract and one-element constant nodes, in topological order.
        inputs: values from outside, each once; they become buffers 0, 1, …
        outputs: values of the nodes to be stored; they become the buffers after the inputs. Outputs of one shape share
            a nest of loops; other shapes get nests of their own, which compute again what they have in common.
        name: for humans.

    Raises:
        CompileError: a node is of another kind, or a value is neither computed nor given.
    """
    try:
        return _lower(nodes, inputs, outputs, name, SizeSymbols(nodes))
    except (TypeError, ValueError, AssertionError, DhcError):
        # A definition that needs to know a size (it counts with it in Python) gets the sizes as they are.
        return _lower(nodes, inputs, outputs, name, SizeSymbols(nodes, enabled=False))


def _lower(
    nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value], name: str, sizes: SizeSymbols
) -> LoweredKernel:
    values = [*inputs, *(v for node in nodes for v in (*node.operands, *node.results))]
    expansion = Expansion(
        {value: i for i, value in enumerate(inputs)},
        {node: sizes.call(node) for node in nodes},
        {value: sizes.value_shape(value) for value in values},
    )
    groups: dict[Shape, list[int]] = {}
    for number, value in enumerate(outputs):
        groups.setdefault(expansion.shapes[value], []).append(number)
    scheduler = Scheduler(expansion)
    for group, (shape, members) in enumerate(groups.items()):
        nest = _nest(expansion, group, shape, [(len(inputs) + k, outputs[k]) for k in members])
        nest.order({fold.name: scheduler.fold_reach(fold) for fold in nest.folds})
        nest.collapse()
        _emit(scheduler, nest, expansion)
    buffers = [Buffer(f"x{i}", stored(v.dtype), "read") for i, v in enumerate(inputs)]
    read = {load.operand for st in walk(scheduler.body) for e in values_of(st) for load in loads(e)}
    for number, value in enumerate(outputs):
        buffers.append(Buffer(f"y{number}", stored(value.dtype), "both" if len(inputs) + number in read else "write"))
    params = tuple(sizes.concrete(d) for d in scheduler.params)
    kernel = Kernel(name, tuple(buffers), tuple(scheduler.params.values()), scheduler.body)
    return LoweredKernel(kernel, params, _inplace(kernel, len(inputs)) if len(groups) == 1 else ())


def _nest(expansion: Expansion, group: int, shape: Shape, members: Sequence[tuple[int, Value]]) -> Nest:
    loops: list[tuple[str, Dim]] = []
    index: list[s.ScalarExpr] = []
    for axis, extent in enumerate(shape):
        if extent == 1:
            index.append(s.const(0, s.i64))
            continue
        var = f"i{axis}" if group == 0 else f"i{group}_{axis}"
        expansion.ranges.extents[var] = extent
        loops.append((var, extent))
        index.append(s.Var(var))
    offset = expansion.ranges.simplify(linear_index(index, shape))
    stores = []
    for buffer, value in members:
        element = expansion.at(value, Position(tuple(index), offset))
        assert isinstance(element, s.Var), "values have names"
        stores.append((buffer, offset, element))
    return Nest(expansion, loops, stores)


def _emit(scheduler: Scheduler, nest: Nest, expansion: Expansion) -> None:
    """Writes the loops. The outermost one is shared among threads; of three or more the outer two become one for it."""
    loops = list(nest.loops)
    columns = column_fold(nest, [v.dtype for _, _, v in nest.stores])
    if columns is not None:
        emit_columns(scheduler, nest, columns)
        return

    def inside(rest: list[tuple[str, Dim]], parallel: bool) -> None:
        if rest:
            (var, extent), *inner = rest
            with scheduler.loop(var, extent, parallel):
                inside(inner, False)
            return
        for _, _, value in nest.stores:
            scheduler.emit(value)  # all results are computed before the first is stored: they may replace operands
        for buffer, offset, value in nest.stores:
            scheduler.store(buffer, value.dtype, offset, value)

    if len(loops) < 3:
        inside(loops, True)
        return
    (outer, outer_extent), (second, second_extent), *rest = loops
    both = f"{outer}_{second}"
    expansion.ranges.extents[both] = outer_extent * second_extent
    with scheduler.loop(both, outer_extent * second_extent, True):
        scheduler.bind(outer, s.Binary(s.i64, "div", s.Var(both), s.size(second_extent)))
        scheduler.bind(second, s.Binary(s.i64, "fmod", s.Var(both), s.size(second_extent)))
        inside(rest, False)


def _inplace(kernel: Kernel, inputs: int) -> tuple[tuple[int, int], ...]:
    reads: dict[int, set[s.ScalarExpr]] = {}
    writes: dict[int, list[s.ScalarExpr]] = {}
    for statement in walk(kernel.body):
        for e in values_of(statement):
            for load in loads(e):
                reads.setdefault(load.operand, set()).add(load.index[0])
        if isinstance(statement, Store):
            writes.setdefault(statement.buffer, []).append(statement.offset)
    found = []
    for source in range(inputs):
        for target in range(inputs, len(kernel.buffers)):
            same_size = kernel.buffers[source].dtype.itemsize == kernel.buffers[target].dtype.itemsize
            if same_size and len(writes[target]) == 1 and reads.get(source, set()) <= set(writes[target]):
                found.append((source, target - inputs))
    return tuple(found)
