"""Branches and loops against Python's own, their result sizes, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from dhc.errors import DhcError, ShapeError, TypeMismatchError
from dhc.ir.autodiff import gradient
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph, Value
from dhc.ir.ops.control import if_symbols, loop_symbols
from dhc.ir.symbols import sym
from dhc.ir.verifier import verify
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import run_onnx

Write = Callable[..., Sequence[Value]]
SCALAR = ((), "f64")


def body_of(parent: Graph, inputs: Sequence[tuple[Sequence[Any], str]], write: Write) -> Graph:
    """A nested graph: `write(builder, *inputs)` returns its outputs."""
    body = Graph("body", parent=parent)
    values = [body.input(f"v{i}", dtype, shape) for i, (shape, dtype) in enumerate(inputs)]
    body.output(*write(Builder(body), *values))
    return body


def finish(graph: Graph, results: Any) -> Graph:
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    verify(graph)
    return graph


# ---- if --------------------------------------------------------------------------------------------------------------


def branching(then: Write, otherwise: Write, symbols: Sequence[str] = (), shape: Sequence[Any] = ("N",)) -> Graph:
    graph = Graph("branching")
    condition, x, y = graph.input("c", "bool"), graph.input("x", "f64", shape), graph.input("y", "f64", shape)
    regions = [body_of(graph, [(shape, "f64")] * 2, write) for write in (then, otherwise)]
    return finish(graph, Builder(graph).if_(condition, x, y, symbols=symbols, regions=regions))


def test_if_takes_one_branch() -> None:
    graph = branching(lambda b, x, y: (b.mul(x, y), x), lambda b, x, y: (b.sub(x, y), y))
    assert [v.shape for v in graph.outputs] == [(sym("N"),)] * 2
    x, y = np.array([1.0, 2, 3]), np.array([4.0, 5, 6])
    for condition, expected in [(True, (x * y, x)), (False, (x - y, y))]:
        for a, e in zip(graph.evaluate(np.array(condition), x, y), expected, strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("condition", [True, False])
def test_gradient_of_if_is_that_of_the_branch(condition: bool) -> None:
    graph = branching(lambda b, x, y: (b.mul(x, y), b.exp(x)), lambda b, x, y: (b.sub(x, b.mul(y, y)), y))
    check_gradient(graph, [np.array(condition), np.array([0.5, -1, 2]), np.array([1.5, 0.25, -1])])


def test_a_capture_that_no_branch_differentiates_gets_zeros() -> None:
    graph = branching(lambda b, x, y: (x,), lambda b, x, y: (b.mul(x, x),))
    check_gradient(graph, [np.array(False), np.array([0.5, -1]), np.array([1.0, 2])])


def test_sizes_that_differ_become_symbols() -> None:
    def short(b: Builder, x: Value, y: Value) -> Sequence[Value]:
        return (b.slice(x, starts=(1,), sizes=(2,), steps=(1,)),)

    def long(b: Builder, x: Value, y: Value) -> Sequence[Value]:
        return (b.concat(x, b.mul(x, y), axis=0),)

    graph = branching(short, long, ["m"], shape=(4,))
    assert graph.outputs[0].shape == (sym("m"),)
    assert if_symbols([v.type for v in graph.inputs[1:]], *graph.nodes[0].regions) == 1
    x, y = np.arange(4.0), np.arange(4.0) - 1
    np.testing.assert_array_equal(graph.evaluate(np.array(True), x, y)[0], [1, 2])
    assert graph.evaluate(np.array(False), x, y)[0].shape == (8,)
    for condition in (True, False):
        check_gradient(graph, [np.array(condition), x, y])
    with pytest.raises(ShapeError, match="new symbols"):
        branching(short, long, shape=(4,))


def test_sizes_found_inside_a_branch_are_new_outside() -> None:
    graph = Graph("found")
    condition, x = graph.input("c", "bool"), graph.input("x", "f32", ("N",))
    regions = [
        body_of(graph, [(("N",), "f32")], lambda b, v: (b.nonzero(v, count="hits"),)),
        body_of(graph, [(("N",), "f32")], lambda b, v: (b.nonzero(b.sub(v, 1.0), count="hits"),)),
    ]
    finish(graph, Builder(graph).if_(condition, x, symbols=["found"], regions=regions))
    assert graph.outputs[0].shape == (1, sym("found"))
    np.testing.assert_array_equal(graph.evaluate(np.array(False), np.array([1, 1, 5], np.float32))[0], [[2]])


def test_branches_must_agree() -> None:
    with pytest.raises(TypeMismatchError, match="one branch gives"):
        branching(lambda b, x, y: (x,), lambda b, x, y: (b.cast(x, dtype="f32"),))
    with pytest.raises(ShapeError, match="one branch gives 1 values, the other 2"):
        branching(lambda b, x, y: (x,), lambda b, x, y: (x, y))


# ---- loop ------------------------------------------------------------------------------------------------------------


def looping(
    write: Write,
    carried: Sequence[tuple[Sequence[Any], str]],
    captures: Sequence[tuple[Sequence[Any], str]] = (),
    symbols: Sequence[str] = (),
    trip: int | None = None,
    inside: Sequence[tuple[Sequence[Any], str]] | None = None,
) -> Graph:
    """A loop; with `trip` the count is a constant and there is no condition, else both are inputs."""
    graph = Graph("looping")
    b = Builder(graph)
    values = [graph.input(f"x{i}", dtype, shape) for i, (shape, dtype) in enumerate([*carried, *captures])]
    count = graph.input("trip", "i64") if trip is None else b.constant(trip, "i64")
    condition = graph.input("cond", "bool") if trip is None else b.constant(True, "bool")
    body = body_of(graph, [((), "i64"), ((), "bool"), *(inside or carried), *captures], write)
    results = b.loop(count, condition, *values, carried=len(carried), symbols=symbols, regions=[body])
    return finish(graph, results)


def fibonacci(b: Builder, i: Value, c: Value, x: Value, y: Value, limit: Value) -> Sequence[Value]:
    total = b.add(x, y)
    return b.lt(total, limit), y, total, b.mul(total, b.cast(i, dtype="f64"))


@pytest.mark.parametrize(("trip", "condition", "limit"), [(6, True, 1e9), (100, True, 30), (0, True, 9), (5, False, 9)])
def test_loop_is_pythons(trip: int, condition: bool, limit: float) -> None:
    graph = looping(fibonacci, [SCALAR, SCALAR], [SCALAR], ["runs"])
    assert graph.outputs[2].shape == (sym("runs"),)
    x, y, stack, i, go = 1.0, 1.0, [], 0, condition
    while i < trip and go:
        x, y = y, x + y
        stack.append(y * i)
        go, i = y < limit, i + 1
    arrays = [np.array(v) for v in (1.0, 1.0, float(limit), trip, condition)]
    for a, e in zip(graph.evaluate(*arrays), (x, y, np.array(stack)), strict=True):
        np.testing.assert_array_equal(a, e)


def test_loop_is_onnx() -> None:
    """The same body in ONNX: a running sum of rows with its history."""
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gather", ["rows", "i"], ["row"], axis=0),
        helper.make_node("Add", ["s", "row"], ["t"]),
        helper.make_node("Identity", ["t"], ["u"]),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Constant", [], ["rows"], value=helper.make_tensor("r", 1, (3, 2), [1, 2, 3, 4, 5, 6])),
    ]
    nodes.insert(0, nodes.pop())
    inputs = [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("s", 1, [2])]
    outputs = [info("d", TensorProto.BOOL, []), info("t", 1, [2]), info("u", 1, [2])]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    start = np.array([10, 20], np.float32)
    expected = run_onnx("Loop", [np.array(3, np.int64), np.array(True), start], 2, body=body)

    def write(b: Builder, i: Value, c: Value, s: Value) -> Sequence[Value]:
        rows = b.constant(np.arange(1, 7, dtype=np.float32).reshape(3, 2))
        t = b.add(s, b.gather(rows, i, axis=0))
        return c, t, t

    graph = looping(write, [((2,), "f32")], symbols=["runs"], trip=3)
    for a, e in zip(graph.evaluate(start), expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_a_tensor_that_grows() -> None:
    def grow(b: Builder, i: Value, c: Value, x: Value, row: Value) -> Sequence[Value]:
        longer = b.concat(x, row, axis=0)
        return c, longer, b.reduce_sum(longer, axes=(0,))

    graph = looping(grow, [(("N", 2), "f64")], [((1, 2), "f64")], ["m", "runs"], 3, inside=[(("k", 2), "f64")])
    assert [v.shape for v in graph.outputs] == [(sym("m"), 2), (sym("runs"), 2)]
    loop = graph.nodes[-1]
    assert loop_symbols(loop.types, loop.regions[0], 1) == 2
    x, row = np.ones((2, 2)), np.full((1, 2), 3.0)
    longer, sums = graph.evaluate(x, row)
    np.testing.assert_array_equal(longer, np.concatenate([x, row, row, row]))
    np.testing.assert_array_equal(sums, [[5, 5], [8, 8], [11, 11]])
    with pytest.raises(DhcError, match="keep their size"):
        gradient(graph)
    with pytest.raises(ShapeError, match=r"after one run .*symbol of its own in the body"):
        looping(grow, [((2, 2), "f64")], [((1, 2), "f64")], ["m", "runs"], 3)


def test_sizes_that_the_body_keeps_are_known_outside() -> None:
    def keep(b: Builder, i: Value, c: Value, x: Value) -> Sequence[Value]:
        return c, b.mul(x, 2.0), x

    graph = looping(keep, [(("N", 3), "f64")], symbols=["runs"], inside=[(("k", 3), "f64")], trip=2)
    assert [v.shape for v in graph.outputs] == [(sym("N"), 3), (sym("runs"), sym("N"), 3)]


@pytest.mark.parametrize("trip", [0, 1, 4])
def test_gradient_of_a_counted_loop(trip: int) -> None:
    def write(b: Builder, i: Value, c: Value, x: Value, n: Value, w: Value) -> Sequence[Value]:
        step = b.mul(b.sin(x), b.add(w, b.cast(i, dtype="f64")))
        return c, step, b.add(n, np.int64(2)), b.mul(step, b.cast(n, dtype="f64"))

    graph = looping(write, [((2,), "f64"), ((), "i64")], [((2,), "f64")], ["runs"], trip)
    check_gradient(graph, [np.array([0.3, -1.1]), np.array(1), np.array([0.7, 1.2])])


def test_loops_of_unknown_length_say_why_they_have_no_gradient() -> None:
    graph = looping(fibonacci, [SCALAR, SCALAR], [SCALAR], ["runs"])
    with pytest.raises(DhcError, match="number of runs that is known beforehand"):
        gradient(graph)


# ---- scan ------------------------------------------------------------------------------------------------------------


def scanning(
    write: Write, inputs: Sequence[tuple[Sequence[Any], str]], carried: int, scanned: int, **attrs: Any
) -> Graph:
    graph = Graph("scanning")
    values = [graph.input(f"x{i}", dtype, shape) for i, (shape, dtype) in enumerate(inputs)]
    axes = attrs.get("in_axes") or [0] * scanned
    sliced = list(inputs)
    for i, axis in enumerate(axes, carried):
        shape = list(inputs[i][0])
        del shape[axis]
        sliced[i] = (shape, inputs[i][1])
    body = body_of(graph, sliced, write)
    return finish(graph, Builder(graph).scan(*values, carried=carried, scanned=scanned, regions=[body], **attrs))


def weighted(b: Builder, h: Value, x: Value, y: Value, w: Value) -> Sequence[Value]:
    state = b.tanh(b.add(b.mul(h, w), b.mul(x, y)))
    return state, b.mul(state, x), b.add(h, y)


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"in_reverse": (1, 0), "out_reverse": (0, 1)},
    {"in_axes": (1, -1), "out_axes": (1, -1), "in_reverse": (0, 1), "out_reverse": (1, 0)},
]


@pytest.mark.parametrize("attrs", LAYOUTS)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_scan_is_a_loop_over_slices(attrs: dict[str, Any], steps: int) -> None:
    rng = np.random.default_rng(2)
    last = "in_axes" in attrs
    shape: tuple[Any, ...] = (3, "T") if last else ("T", 3)
    h, w = rng.uniform(-1, 1, (2, 3))
    x, y = rng.uniform(-1, 1, (2, 3, steps) if last else (2, steps, 3))
    graph = scanning(weighted, [((3,), "f64"), (shape, "f64"), (shape, "f64"), ((3,), "f64")], 1, 2, **attrs)
    xs, ys = (np.moveaxis(v, -1, 0) if last else v for v in (x, y))
    back = attrs.get("in_reverse", (0, 0)), attrs.get("out_reverse", (0, 0))
    state, first, second = h, [], []
    for t in range(steps):
        a, c = (v[::-1][t] if r else v[t] for v, r in zip((xs, ys), back[0]))
        second.append(state + c)
        state = np.tanh(state * w + a * c)
        first.append(state * a)
    stacks = [np.array(s).reshape(-1, 3) for s in (first, second)]
    stacks = [s[::-1] if r else s for s, r in zip(stacks, back[1])]
    stacks = [s.T if last else s for s in stacks]
    for a, e in zip(graph.evaluate(h, x, y, w), (state, *stacks), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-14)
    check_gradient(graph, [h, x, y, w])


def test_scan_without_state_and_with_integers() -> None:
    def write(b: Builder, x: Value, i: Value, table: Value) -> Sequence[Value]:
        return b.mul(x, b.gather(table, i, axis=0)), b.add(i, np.int64(1))

    inputs = [(("T",), "f64"), (("T",), "i64"), ((3,), "f64")]
    graph = scanning(write, inputs, 0, 2)
    x, i, table = np.array([1.0, 2, 3, 4]), np.array([2, 0, 2, 1]), np.array([0.5, 3, -1])
    products, following = graph.evaluate(x, i, table)
    np.testing.assert_array_equal(products, x * table[i])
    np.testing.assert_array_equal(following, i + 1)
    check_gradient(graph, [x, i, table])


def test_second_derivative_of_a_scan() -> None:
    graph = scanning(lambda b, h, x: (b.mul(h, x), h), [SCALAR, (("T",), "f64")], 1, 1)
    first = gradient(graph)
    verify(first)
    check_gradient(first, [np.array(1.5), np.array([2.0, -1, 0.5]), np.array(1.0), np.array([0.2, 0.3, 0.4])])


def test_scan_checks_its_values() -> None:
    with pytest.raises(ShapeError, match="number of steps"):
        scanning(lambda b, x, y: (x, y), [((2,), "f64"), ((3,), "f64")], 0, 2)
    with pytest.raises(ShapeError, match="after one run"):
        scanning(lambda b, h, x: (b.concat(h, h, axis=0),), [((2,), "f64"), ((3,), "f64")], 1, 1)
    with pytest.raises(ShapeError, match="in_axes needs 1 entries"):
        graph = Graph("scan")
        x = graph.input("x", "f64", (2,))
        body = body_of(graph, [SCALAR], lambda b, v: (v,))
        Builder(graph).scan(x, carried=0, scanned=1, in_axes=(0, 0), regions=[body])
