"""Every op in every element type that it declares: compiled for the CPU, held against the interpreter.

The calls are those of `tests.ir.op_examples`: plain, broadcast, empty, of size one, extreme numbers, negative axes.
The examples of one op and element type are compiled into one artifact, as outputs of one graph.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dhc
from dhc.backends.registry import get_backend
from dhc.errors import DhcError
from dhc.ir import Builder, Graph, all_ops
from dhc.ir.kinds import Elementwise, Map, Opaque
from dhc.ir.op import OpDef
from tests.backends.cpu.differential.running import MINIMAL, assert_close, run
from tests.ir.op_examples import REGION_OPS, Example, examples_for

ROUNDINGS = 16.0
"""Half units in the last place that one op may differ by: libm functions, and sums in another order."""
SUMS = ("gelu", "resize")
"""Ops that are defined element by element and yet add numbers that may cancel."""


def is_plain(op: OpDef) -> bool:
    """Ops whose results need no memory of symbols or of what Python alone can hold."""
    return op.name not in REGION_OPS and bool(examples_for(op))


OPS = [op for op in all_ops() if is_plain(op)]


def supported(example: Example) -> bool:
    """Whether the CPU takes the call; refusals are held against the support matrix in another test."""
    backend = get_backend("cpu")
    graph = example.graph()
    return all(backend.supports(node) is None for node in graph)


def groups_of(op: OpDef) -> dict[str, list[Example]]:
    """Examples by element types of the operands."""
    groups: dict[str, list[Example]] = {}
    for example in examples_for(op):
        groups.setdefault(",".join(d.name for d in example.dtypes), []).append(example)
    return groups


def build(op: OpDef, examples: list[Example]) -> tuple[Graph, dict[str, np.ndarray], list[tuple[str, object]]]:
    """One graph of several calls: the graph, its inputs, and label and wanted array of every output."""
    graph = Graph(op.name)
    builder = Builder(graph)
    inputs: dict[str, np.ndarray] = {}
    outputs, wanted = [], []
    for number, example in enumerate(examples):
        operands = []
        for i, (d, array) in enumerate(zip(example.dtypes, example.arrays, strict=True)):
            name = f"x{number}_{i}"
            operands.append(graph.input(name, d, array.shape))
            inputs[name] = array
        found = builder.call(op, *operands, attrs=example.attrs)
        results = found if isinstance(found, tuple) else (found,)
        alone = example.graph().evaluate(**{f"x{i}": a for i, a in enumerate(example.arrays)})
        outputs += results
        wanted += [(f"{example} result {k}", array) for k, array in enumerate(alone)]
    graph.output(*outputs)
    return graph, inputs, wanted


def largest(inputs: dict[str, np.ndarray]) -> float:
    """The largest plain number among float inputs: what sums that cancel are measured by."""
    floats = [np.abs(a.astype(np.complex128)) for a in inputs.values() if a.dtype.kind not in "iub" and a.size]
    return max((float(a[np.isfinite(a) & (a < 200)].max(initial=0)) for a in floats), default=0.0)


EVERYDAY = ("f32", "i64", "u8", "bool", "f16")
"""A signed and an unsigned integer, a float, one that is computed as f32, and bool."""


def in_every_run(op: OpDef, example: Example) -> bool:
    """Whether `make test` compiles the example: one compiles a kernel for each type (opaque ops) or pair of them.

    Those ops take half of the time of this file. Their functions say nothing of types, and definitions of all casts
    are checked without compiling in tests/ir; so the other types are left to nightly runs.
    """
    if op.name == "cast":
        return example.dtypes[0].name in EVERYDAY[:2] or str(example.attrs["dtype"]) in EVERYDAY[:3]
    return not isinstance(op.kind, Opaque) or not op.kind.flat or example.dtypes[0].name in EVERYDAY


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_op(op: OpDef) -> None:
    check_op(op, lambda example: in_every_run(op, example))


@pytest.mark.nightly
@pytest.mark.parametrize(
    "op", [op for op in OPS if not all(in_every_run(op, e) for e in examples_for(op))], ids=lambda op: op.name
)
def test_op_in_further_types(op: OpDef) -> None:
    check_op(op, lambda example: not in_every_run(op, example))


def check_op(op: OpDef, wanted_here: Callable[[Example], bool]) -> None:
    checked = 0
    own_scale = isinstance(op.kind, (Elementwise, Map)) and op.name not in SUMS
    for _, group in groups_of(op).items():
        taken = [example for example in group if wanted_here(example) and supported(example)]
        symbolic = any(a.kind == "symbol" for a in op.attrs)
        for examples in [[e] for e in taken] if symbolic else [taken]:
            if not examples:
                continue
            graph, inputs, wanted = build(op, examples)
            least = 0 if op.name == "reduce_prod" else largest(inputs)
            found = run(dhc.compile(graph).session(threads=1), graph, inputs)
            for (what, array), result in zip(wanted, found, strict=True):
                assert_close(
                    array, result, roundings=ROUNDINGS, own_scale=own_scale, least=0 if own_scale else least, what=what
                )
                checked += 1
    assert checked or not any(supported(e) for e in examples_for(op) if wanted_here(e))


@pytest.mark.parametrize("op", [op for op in OPS if len(op.operands) == 1], ids=lambda op: op.name)
def test_constants_fold_to_the_same(op: OpDef) -> None:
    """Calls on constants: what folding leaves is what the CPU computes."""
    for example in examples_for(op)[:3]:
        if not supported(example) or any(a.kind == "symbol" for a in op.attrs):
            continue
        graph = Graph(op.name)
        builder = Builder(graph)
        operands = [builder.constant(a, d) for a, d in zip(example.arrays, example.dtypes, strict=True)]
        found = builder.call(op, *operands, attrs=example.attrs)
        graph.output(*(found if isinstance(found, tuple) else (found,)))
        wanted = graph.evaluate()
        for passes in (None, list(MINIMAL)):
            results = run(dhc.compile(graph, passes=passes).session(threads=1), graph, {})
            for a, b in zip(wanted, results, strict=True):
                assert_close(a, b, roundings=ROUNDINGS, own_scale=False, what=str(example))


def two_operands(op: str, dtype: str, divisor: list[int]) -> tuple[Graph, dict[str, np.ndarray]]:
    graph = Graph("division")
    a, b = graph.input("a", dtype, (3,)), graph.input("b", dtype, (3,))
    graph.output(getattr(Builder(graph), op)(a, b))
    kind = a.dtype.numpy
    return graph, {"a": np.array([5, 6, 7], kind), "b": np.array(divisor, kind)}


@pytest.mark.parametrize("op", ["div", "mod", "fmod"])
@pytest.mark.parametrize("dtype", ["i8", "i32", "i64", "u8", "u64"])
def test_division_of_integers_by_zero_is_an_error_with_the_node(op: str, dtype: str) -> None:
    graph, inputs = two_operands(op, dtype, [1, 0, 2])
    for threads in (1, 2):
        session = dhc.compile(graph).session(threads=threads)
        with pytest.raises(DhcError, match="divided by zero") as caught:
            session.run(inputs)
        assert "test_every_op.py" in str(caught.value), "the message names the node"
        good = {**inputs, "b": np.ones_like(inputs["b"])}
        assert_close(graph.evaluate(**good)[0], run(session, graph, good)[0])


@pytest.mark.parametrize("index", [[0, 4], [-5, 0], [2**40, 0]])
@pytest.mark.parametrize("op", ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd"])
def test_index_out_of_range_is_an_error_with_the_node(op: str, index: list[int]) -> None:
    graph = Graph("indexing")
    builder = Builder(graph)
    x = graph.input("x", "f32", (4,))
    shape = (2, 1) if op.endswith("nd") else (2,)
    i = graph.input("i", "i64", shape)
    operands = [x, i, graph.input("u", "f32", (2,))] if op.startswith("scatter") else [x, i]
    graph.output(getattr(builder, op)(*operands))
    inputs = {"x": np.arange(4, dtype=np.float32), "i": np.array(index).reshape(shape), "u": np.ones(2, np.float32)}
    inputs = {value.name: inputs[value.name] for value in graph.inputs}
    for threads in (1, 2):
        session = dhc.compile(graph).session(threads=threads)
        with pytest.raises(DhcError, match=r"index|range|bounds") as caught:
            session.run(inputs)
        assert "test_every_op.py" in str(caught.value), "the message names the node"
        good = {**inputs, "i": np.array([1, 2]).reshape(shape)}
        assert_close(graph.evaluate(**good)[0], run(session, graph, good)[0])
