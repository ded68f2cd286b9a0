"""Loops: counted, ended by a condition, with stacked results, inside of each other."""

from __future__ import annotations

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.errors import ArtifactError, ResourceError

import dhc
from tests.runtime.artifacts import Plan
from tests.runtime.bodies import body


def expected(x: np.ndarray, k: np.ndarray, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    elements = []
    for _ in range(count):
        x = x * 2 + k
        elements.append(x)
    return x, elements


@pytest.mark.parametrize("threads", [1, 2])
def test_counted_loop(threads: int) -> None:
    plan = Plan("N")
    t, x, k = plan.input("t", "i64", []), plan.input("x", "f32", ["N"]), plan.input("k", "f32", ["N"])
    result = plan.arena("f32", ["N"])
    plan.item(
        "loop", trip=t, cond=None, carried=[x], captures=[k], body=body().program(), results=[result], scans=[], bind=[]
    )
    plan.kernel("k_copy", [result, plan.output("y", "f32", ["N"])], ["N"])
    session = dhc_runtime.load(plan.artifact(), threads=threads)
    for n in (3, 10_000):
        x_value, k_value = np.ones(n, np.float32), np.arange(n, dtype=np.float32)
        for count in (0, 1, 2, 7, -3):
            result_value = session.run(np.int64(count), x_value, k_value)["y"]
            assert np.array_equal(result_value, expected(x_value, k_value, max(count, 0))[0])
        assert np.array_equal(x_value, np.ones(n))


def test_while_loop_ends_with_its_condition() -> None:
    plan = Plan("N")
    c, x, k = plan.input("c", "bool", []), plan.input("x", "f32", ["N"]), plan.input("k", "f32", ["N"])
    y = plan.output("y", "f32", ["N"])
    program = body(stop_at=4).program()
    plan.item("loop", trip=None, cond=c, carried=[x], captures=[k], body=program, results=[y], scans=[], bind=[])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    one = np.ones(2, np.float32)
    assert np.array_equal(session.run(np.True_, one, one)["y"], expected(one, one, 5)[0])
    assert np.array_equal(session.run(np.False_, one, one)["y"], one)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("axis", "reverse"), [(0, False), (1, False), (0, True), (1, True)])
@pytest.mark.parametrize("kind", ["output", "dynamic"])
def test_scans_are_stacked(known: bool, axis: int, reverse: bool, kind: str) -> None:
    plan = Plan("N")
    t, x, k = plan.input("t", "i64", []), plan.input("x", "f32", ["N"]), plan.input("k", "f32", ["N"])
    shape = ["T", "N"] if axis == 0 else ["N", "T"]
    final = plan.output("y", "f32", ["N"])
    stack = plan.output("s", "f32", shape) if kind == "output" else plan._buffer("dynamic", "f32", shape)
    going = plan.const("true", "bool", np.array(True))
    plan.item(
        "loop",
        trip=t,
        cond=None if known else going,
        carried=[x],
        captures=[k],
        body=body(scan=True).program(),
        results=[final, stack],
        scans=[[stack, axis, reverse]],
        bind=[["T", 1, axis]],
    )
    if kind == "dynamic":
        plan.kernel("k_copy", [stack, plan.output("s", "f32", shape)], [["*", "N", "T"]])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    for n, count in ((3, 4), (2, 0), (3, 40), (0, 3), (5, 1)):
        x_value, k_value = np.ones(n, np.float32), np.arange(n, dtype=np.float32)
        result = session.run(np.int64(count), x_value, k_value)
        last, elements = expected(x_value, k_value, count)
        assert np.array_equal(result["y"], last)
        wanted = (
            np.stack(elements[::-1] if reverse else elements, axis)
            if elements
            else np.zeros((0, n) if axis == 0 else (n, 0))
        )
        assert result["s"].shape == wanted.shape
        assert np.array_equal(result["s"], wanted)


@pytest.mark.parametrize(("axis", "reverse"), [(0, False), (1, False), (0, True), (1, True)])
def test_scan_inputs_are_sliced(axis: int, reverse: bool) -> None:
    inner = Plan("M")
    inner.input("i", "i64", [])
    going = inner.input("c", "bool", [])
    total, part = inner.input("total", "f32", ["M"]), inner.input("part", "f32", ["M"])
    inner.item("copy", **{"from": going, "to": inner.output("going", "bool", [])})
    new = inner.output("new", "f32", ["M"])
    inner.kernel("k_add", [total, part, new], ["M"])
    inner.item("copy", **{"from": new, "to": inner.output("e", "f32", ["M"])})
    plan = Plan("T", "N")
    zero, x = plan.input("zero", "f32", ["N"]), plan.input("x", "f32", ["T", "N"] if axis == 0 else ["N", "T"])
    final, sums = plan.output("y", "f32", ["N"]), plan.output("s", "f32", ["T", "N"])
    plan.item(
        "loop", trip=None, cond=None, carried=[zero], captures=[], body=inner.program(), results=[final, sums],
        scans=[[sums, 0, False]], scan_inputs=[[x, axis, reverse]], bind=[],
    )  # fmt: skip
    session = dhc_runtime.load(plan.artifact(), threads=2)
    x_value = np.arange(20, dtype=np.float32).reshape(5, 4)
    parts = x_value[::-1] if reverse else x_value
    result = session.run(np.zeros(4, np.float32), x_value if axis == 0 else np.ascontiguousarray(x_value.T))
    assert np.array_equal(result["s"], np.cumsum(parts, 0))
    assert np.array_equal(result["y"], x_value.sum(0))


def test_carried_values_may_grow() -> None:
    """Each iteration appends the vector to itself: shapes of carried values change."""
    inner = Plan("M")
    inner.input("i", "i64", [1])
    going, x = inner.input("c", "bool", [1]), inner.input("x", "f32", ["M"])
    inner.item("copy", **{"from": going, "to": inner.output("going", "bool", [1])})
    y = inner.output("y", "f32", [["*", 2, "M"]])
    for part in (0, 1):
        inner.kernel("k_copy", [x, inner.alias("f32", ["M"], y, ["*", "M", 4 * part])], ["M"])
    plan = Plan("N")
    t, x = plan.input("t", "i64", []), plan.input("x", "f32", ["N"])
    result = plan.output("y", "f32", ["K"])
    plan.item(
        "loop",
        trip=t,
        cond=None,
        carried=[x],
        captures=[],
        body=inner.program(),
        results=[result],
        scans=[],
        bind=[["K", 0, 0]],
    )
    session = dhc_runtime.load(plan.artifact(), threads=1)
    x_value = np.arange(3, dtype=np.float32)
    for count in (0, 5, 2, 12):
        assert np.array_equal(session.run(np.int64(count), x_value)["y"], np.tile(x_value, 2**count))


def test_loops_inside_of_loops_and_branches() -> None:
    """3 outer iterations of 2 inner ones, inside of an if: x becomes 2**6 * x."""
    inner_body = Plan("M")
    inner_body.input("i", "i64", [])
    going, x = inner_body.input("c", "bool", []), inner_body.input("x", "f32", ["M"])
    inner_body.item("copy", **{"from": going, "to": inner_body.output("going", "bool", [])})
    inner_body.kernel("k_double", [x, inner_body.output("y", "f32", ["M"])], ["M"])
    program = inner_body.program()
    for count in (2, 3):
        outer = Plan("M")
        outer.input("i", "i64", [])
        going, x = outer.input("c", "bool", []), outer.input("x", "f32", ["M"])
        trip = outer.const(f"t{count}", "i64", np.array(count))
        outer.item("copy", **{"from": going, "to": outer.output("going", "bool", [])})
        y = outer.output("y", "f32", ["M"])
        outer.item("loop", trip=trip, cond=None, carried=[x], captures=[], body=program, results=[y], scans=[], bind=[])
        program = outer.program()
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    one, true = plan.const("one", "i64", np.array(1)), plan.const("true", "bool", np.array(True))
    for count in (2, 3):
        plan.weights[f"t{count}"] = np.array(count)
    then = Plan("M")
    tx, ty = then.input("x", "f32", ["M"]), then.output("y", "f32", ["M"])
    one_then = then.const("one", "i64", np.array(1))
    then.item(
        "loop", trip=one_then, cond=None, carried=[tx], captures=[], body=program, results=[ty], scans=[], bind=[]
    )
    y = plan.output("y", "f32", ["N"])
    plan.item(
        "if",
        **{"cond": true, "then": then.program(), "else": then.program()},
        args_then=[x],
        args_else=[x],
        results=[y],
        bind=[],
    )
    del one
    session = dhc_runtime.load(plan.artifact(), threads=2)
    for n in (3, 9000):
        x_value = np.arange(n, dtype=np.float32)
        for _ in range(2):
            assert np.array_equal(session.run(x_value)["y"], x_value * 64)


def test_a_loop_that_never_ends_is_refused_at_load() -> None:
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    y = plan.output("y", "f32", ["N"])
    inner = Plan("M")
    inner.input("i", "i64", [])
    going, bx = inner.input("c", "bool", []), inner.input("x", "f32", ["M"])
    inner.item("copy", **{"from": going, "to": inner.output("going", "bool", [])})
    inner.item("copy", **{"from": bx, "to": inner.output("y", "f32", ["M"])})
    plan.item(
        "loop", trip=None, cond=None, carried=[x], captures=[], body=inner.program(), results=[y], scans=[], bind=[]
    )
    with pytest.raises(ArtifactError, match="never end"):
        dhc_runtime.load(plan.artifact(), threads=1)


def test_stacked_results_may_be_named_in_scans_alone() -> None:
    plan = Plan("N")
    t, x, k = plan.input("t", "i64", []), plan.input("x", "f32", ["N"]), plan.input("k", "f32", ["N"])
    final, stack = plan.output("y", "f32", ["N"]), plan.output("s", "f32", ["T", "N"])
    plan.item(
        "loop", trip=t, cond=None, carried=[x], captures=[k], body=body(scan=True).program(), results=[final],
        scans=[[stack, 0, False]], bind=[["T", 1, 0]],
    )  # fmt: skip
    one = np.ones(2, np.float32)
    result = dhc_runtime.load(plan.artifact(), threads=1).run(np.int64(3), one, one)
    assert np.array_equal(result["s"], np.stack(expected(one, one, 3)[1]))


def stacking_loop(condition: bool) -> dhc.Graph:
    """A loop that stacks its carried value, ended by its count alone or also by a condition."""
    graph = dhc.Graph("stacks")
    body = dhc.Graph("body", parent=graph)
    body.input("i", "i64", [])
    going, value = body.input("going", "bool", []), body.input("value", "f32", [4096])
    again = dhc.ops.lt(dhc.ops.reduce_max(value), 1e9) if condition else going
    body.output(again, value + 1.0, value)
    trips = graph.input("trips", "i64", [])
    start = graph.input("start", "f32", [4096])
    results = dhc.ops.loop(
        trips, dhc.ops.constant(graph, True), start, carried=1, symbols=["T"], regions=[body]
    )  # fmt: skip
    graph.output(*results, names=["last", "all"])
    return graph


@pytest.mark.parametrize("condition", [False, True])
def test_what_a_loop_collects_counts_against_the_budget(condition: bool) -> None:
    session = dhc_runtime.load(dhc.compile(stacking_loop(condition)).to_bytes(), threads=1, max_memory=8 << 20)
    start = np.zeros(4096, np.float32)
    before = session.memory
    for _ in range(2):
        result = session.run(np.array(100), start)["all"]
        assert result[:, 0].tolist() == list(range(100))
        with pytest.raises(ResourceError):
            session.run(np.array(1000), start)
    session.release_memory()
    assert session.memory == before


def test_a_loop_ended_by_its_count_writes_results_where_they_belong() -> None:
    for condition in (False, True):
        (loop,) = [
            item for item in dhc.compile(stacking_loop(condition)).plan["program"]["items"] if item["do"] == "loop"
        ]
        assert (loop["cond"] is None) is not condition
