"""Branches, sizes that the data decides, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.errors import ArtifactError, ModelError, ShapeError

from tests.runtime.artifacts import Plan
from tests.runtime.bodies import body, branch


def nonzero_plan(**bind: Any) -> Plan:
    """Positions of non-zero values, doubled: an output whose size the data decides, and an arena buffer of that
    size."""
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    places, count = plan.arena("i64", ["N"]), plan.arena("i64", [1])
    plan.kernel("k_nonzero", [x, places, count], ["N"], node="nonzero", op="nonzero")
    plan.item("bind", symbol="u", buffer=count, index=0, max="N", node="nonzero", **bind)
    middle = plan.arena("i64", ["u"])
    plan.kernel("k_inc_i64", [places, middle], ["u"])
    plan.kernel("k_inc_i64", [middle, plan.output("y", "i64", ["u"])], ["u"])
    return plan


@pytest.mark.parametrize("threads", [1, 3])
def test_sizes_that_the_data_decides(threads: int) -> None:
    session = dhc_runtime.load(nonzero_plan().artifact(), threads=threads)
    assert session.outputs[0].shape == ("u",)
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 3000, 7, 20_000):
        x = (rng.random(n) < 0.4).astype(np.float32)
        assert np.array_equal(session.run(x)["y"], np.flatnonzero(x) + 2)
    given = np.zeros(2, np.int64)
    assert session.run(np.array([0, 1, 1], np.float32), outputs={"y": given})["y"].tolist() == [3, 4]
    with pytest.raises(ShapeError):
        session.run(np.array([1, 1, 1], np.float32), outputs={"y": given})


def test_an_output_with_an_upper_bound_gives_back_what_it_does_not_use() -> None:
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    count = plan.arena("i64", [1])
    y = plan.output("y", "i64", ["u"], bytes=["*", 8, "N"])
    plan.kernel("k_nonzero", [x, y, count], ["N"])
    plan.item("bind", symbol="u", buffer=count, index=0, max="N")
    session = dhc_runtime.load(plan.artifact(), threads=1)
    x_value = np.zeros(1_000_000, np.float32)
    x_value[[5, 70]] = 1
    result = session.run(x_value)["y"]
    assert result.tolist() == [5, 70]
    assert result.base is None or result.base.nbytes < 1000


def test_copy_from_an_upper_bound() -> None:
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    places, count = plan.arena("i64", ["N"]), plan.arena("i64", [1])
    plan.kernel("k_nonzero", [x, places, count], ["N"])
    plan.item("bind", symbol="u", buffer=count, index=0, max="N")
    plan.item("copy", **{"from": places, "to": plan.output("y", "i64", ["u"])})
    session = dhc_runtime.load(plan.artifact(), threads=1)
    assert session.run(np.array([0, 2, 0, 1], np.float32))["y"].tolist() == [1, 3]


@pytest.mark.parametrize(("value", "limit"), [(-1, None), (4, 3), (1 << 62, None)])
def test_a_size_out_of_range_is_an_error_of_the_model(value: int, limit: Any) -> None:
    plan = Plan()
    n = plan.input("n", "i64", [2])
    plan.item("bind", symbol="u", buffer=n, index=1, max=limit, node="range at 7")
    plan.output("y", "f32", ["u"])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    with pytest.raises(ModelError, match=f"size u became {value}.*range at 7"):
        session.run(np.array([0, value]))
    assert session.run(np.array([0, 3]))["y"].shape == (3,)


def if_plan(**more: Any) -> Plan:
    plan = Plan("N")
    c, x = plan.input("c", "bool", []), plan.input("x", "f32", ["N"])
    before = plan.arena("f32", ["N"])
    plan.kernel("k_double", [x, before], ["N"])
    result = plan.arena("f32", ["N"])
    plan.item(
        "if",
        **{"cond": c, "then": branch("k_double").program(), "else": branch("k_copy", 2).program()},
        args_then=[before],
        args_else=[before],
        results=[result],
        bind=[],
        node="if at 5",
        **more,
    )
    plan.kernel("k_add", [result, before, plan.output("y", "f32", ["N"])], ["N"])
    return plan


@pytest.mark.parametrize("threads", [1, 2])
def test_if_takes_one_branch(threads: int) -> None:
    session = dhc_runtime.load(if_plan().artifact(), threads=threads)
    for n in (3, 20_000, 0):
        x = np.arange(n, dtype=np.float32)
        assert np.array_equal(session.run(np.bool_(True), x)["y"], x * 6)
        assert np.array_equal(session.run(np.bool_(False), x)["y"], x * 4)


@pytest.mark.parametrize("kind", ["arena", "dynamic", "output"])
def test_branches_of_different_sizes(kind: str) -> None:
    plan = Plan("N")
    c, x = plan.input("c", "bool", []), plan.input("x", "f32", ["N"])
    longer = Plan("M")
    lx = longer.input("x", "f32", ["M"])
    ly = longer.output("y", "f32", [["*", "M", 2]])
    for part in (0, 1):
        longer.kernel("k_double", [lx, longer.alias("f32", ["M"], ly, ["*", "M", 4 * part])], ["M"])
    if kind == "output":
        result = plan.output("y", "f32", ["K"])
    else:
        result = plan._buffer(kind, "f32", ["K"])
    plan.item(
        "if",
        **{"cond": c, "then": longer.program(), "else": branch("k_copy").program()},
        args_then=[x],
        args_else=[x],
        results=[result],
        bind=[["K", 0, 0]],
    )
    if kind != "output":
        plan.kernel("k_double", [result, plan.output("y", "f32", ["K"])], ["K"])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    factor = 1 if kind == "output" else 2
    for n in (3, 4000, 2):
        x_value = np.arange(n, dtype=np.float32)
        assert np.array_equal(session.run(np.True_, x_value)["y"], np.tile(x_value, 2) * 2 * factor)
        assert np.array_equal(session.run(np.False_, x_value)["y"], x_value * factor)
    given = np.zeros(2, np.float32)
    session.run(np.False_, np.ones(2, np.float32), outputs={"y": given})
    assert given.tolist() == [factor, factor]


def test_a_branch_uses_sizes_of_the_program_around_it() -> None:
    plan = Plan("N")
    c, x = plan.input("c", "bool", []), plan.input("x", "f32", ["N"])
    inner = Plan()
    y = inner.output("y", "f32", ["N"])
    inner.kernel("k_double", [inner.input("x", "f32", ["N"]), y], ["N"])
    result = plan.output("y", "f32", ["N"])
    program = inner.program()
    plan.item(
        "if", **{"cond": c, "then": program, "else": program}, args_then=[x], args_else=[x], results=[result], bind=[]
    )
    session = dhc_runtime.load(plan.artifact(), threads=1)
    for n in (2, 5, 2):
        assert session.run(np.True_, np.ones(n, np.float32))["y"].tolist() == [2.0] * n


def test_a_body_with_sizes_that_the_data_decides() -> None:
    """The body of the loop counts the non-zero values and returns that many positions."""
    inner = Plan("M")
    inner.input("i", "i64", [])
    going, x = inner.input("c", "bool", []), inner.input("x", "f32", ["M"])
    inner.item("copy", **{"from": going, "to": inner.output("going", "bool", [])})
    places, count = inner.arena("i64", ["M"]), inner.arena("i64", [1])
    inner.kernel("k_nonzero", [x, places, count], ["M"])
    inner.item("bind", symbol="u", buffer=count, index=0, max="M")
    inner.kernel("k_inc_i64", [places, inner.output("e", "i64", ["u"])], ["u"])
    plan = Plan("N")
    t, x = plan.input("t", "i64", []), plan.input("x", "f32", ["N"])
    stack = plan.output("s", "i64", ["T", "K"])
    plan.item(
        "loop", trip=t, cond=None, carried=[], captures=[x], body=inner.program(), results=[stack],
        scans=[[stack, 0, False]], bind=[["T", 0, 0], ["K", 0, 1]],
    )  # fmt: skip
    session = dhc_runtime.load(plan.artifact(), threads=1)
    for values in ([0, 1, 0, 1], [0, 0, 3], [0.0]):
        x_value = np.array(values, np.float32)
        wanted = np.tile(np.flatnonzero(x_value) + 1, (3, 1))
        assert np.array_equal(session.run(np.int64(3), x_value)["s"], wanted)
    assert session.run(np.int64(0), x_value)["s"].shape == (0, 0)


def test_errors_inside_of_bodies_name_the_node() -> None:
    inner = branch("k_copy")
    inner.items[0]["node"] = "copy in the branch"
    inner.kernel("k_fail", [], [1], node="gather in the branch", op="gather")
    plan = Plan("N")
    c, x = plan.input("c", "bool", []), plan.input("x", "f32", ["N"])
    y = plan.output("y", "f32", ["N"])
    plan.item(
        "if", **{"cond": c, "then": inner.program(), "else": branch("k_double").program()},
        args_then=[x], args_else=[x], results=[y], bind=[],
    )  # fmt: skip
    session = dhc_runtime.load(plan.artifact(), threads=2)
    with pytest.raises(ModelError, match="gather in the branch"):
        session.run(np.True_, np.ones(3, np.float32))
    assert session.run(np.False_, np.ones(3, np.float32))["y"].tolist() == [2, 2, 2]


def test_bodies_appear_in_the_profile() -> None:
    session = dhc_runtime.load(if_plan().artifact(), threads=1)
    session.run(np.False_, np.ones(3, np.float32), profile=True)
    assert [step.symbol for step in session.profile()] == ["k_double", "k_copy", "k_copy", "k_add"]


def test_results_that_do_not_fit_are_refused() -> None:
    plan = Plan("N")
    c, x = plan.input("c", "bool", []), plan.input("x", "f32", ["N"])
    longer = Plan("M")
    lx = longer.input("x", "f32", ["M"])
    longer.kernel("k_double", [lx, longer.output("y", "f32", [["*", "M", 2]])], ["M"])
    y = plan.output("y", "f32", ["N"])
    plan.item(
        "if", **{"cond": c, "then": longer.program(), "else": branch("k_copy").program()},
        args_then=[x], args_else=[x], results=[y], bind=[], node="if at 9",
    )  # fmt: skip
    session = dhc_runtime.load(plan.artifact(), threads=1)
    with pytest.raises(ShapeError, match="result of control flow"):
        session.run(np.True_, np.ones(3, np.float32))
    assert session.run(np.False_, np.ones(3, np.float32))["y"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("which", ["bind", "if", "trip", "cond", "counter"])
def test_wrong_element_types_of_control_values_are_refused(which: str) -> None:
    plan = Plan("N")
    wrong, x = plan.input("wrong", "f32", []), plan.input("x", "f32", ["N"])
    if which == "bind":
        plan.item("bind", symbol="u", buffer=wrong, index=0)
    elif which == "if":
        y = plan.output("y", "f32", ["N"])
        program = branch("k_copy").program()
        plan.item("if", **{"cond": wrong, "then": program, "else": program}, args_then=[x], args_else=[x], results=[y])
    else:
        y, k = plan.output("y", "f32", ["N"]), plan.input("k", "f32", ["N"])
        good = {"trip": plan.const("t", "i64", np.array(1)), "cond": plan.const("c", "bool", np.array(True))}
        program = body().program()
        if which == "counter":
            program["inputs"][0]["dtype"] = "i32"
        else:
            good[which] = wrong
        plan.item("loop", **good, carried=[x], captures=[k], body=program, results=[y])
    with pytest.raises(ArtifactError, match=r"must be (i64|bool)|needs an i64 counter"):
        dhc_runtime.load(plan.artifact(), threads=1)
