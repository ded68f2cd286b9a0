"""Runs whose inputs are like the last ones take the short way: same answers, same errors, memory of their own."""

from __future__ import annotations

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.errors import ModelError, ResourceError, ShapeError, TypeMismatchError, UsageError

from tests.runtime.artifacts import Plan, chain


def ready(threads: int = 1, rows: int = 3) -> dhc_runtime.Session:
    """A session that has the short way for arrays of some rows."""
    session = dhc_runtime.load(chain(5).artifact(), threads=threads)
    for _ in range(2):
        session.run({"x": np.ones((rows, 4), np.float32)})
    assert session._direct is not None
    return session


@pytest.mark.parametrize("threads", [1, 2])
def test_each_run_reads_its_inputs_and_has_results_of_its_own(threads: int) -> None:
    with ready(threads, rows=5000) as session:
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal((5000, 4)).astype(np.float32) for _ in range(4)]
        results = [session.run({"x": x})["y"] for x in inputs]
        for x, y in zip(inputs, results):
            assert np.array_equal(y, x * 32)
            assert y.__array_interface__["data"][0] % 64 == 0 and y.flags.c_contiguous
        assert session._direct is not None


def test_inputs_that_differ_go_the_general_way() -> None:
    session = ready()
    wide = np.arange(24, dtype=np.float32).reshape(3, 8)
    assert np.array_equal(session.run({"x": wide[:, ::2]})["y"], wide[:, ::2] * 32)
    more = np.ones((7, 4), np.float32)
    assert np.array_equal(session.run({"x": more})["y"], more * 32)
    assert np.array_equal(session.run({"x": np.full((3, 4), 2, np.float32)})["y"], np.full((3, 4), 64))
    assert session.run({"x": np.ones((0, 4), np.float32)})["y"].shape == (0, 4)
    unaligned = np.frombuffer(b"\0" + np.ones((3, 4), np.float32).tobytes(), np.float32, offset=1).reshape(3, 4)
    assert np.array_equal(session.run({"x": unaligned})["y"], np.full((3, 4), 32))


def test_wrong_inputs_are_refused_as_ever() -> None:
    session = ready()
    x = np.ones((3, 4), np.float32)
    for given, error in (
        ({"x": x.astype(np.float64)}, TypeMismatchError),
        ({"x": x.astype(">f4")}, TypeMismatchError),
        ({"x": np.ones((3, 5), np.float32)}, ShapeError),
        ({"x": x, "z": x}, UsageError),
        ({"z": x}, UsageError),
        ({}, UsageError),
    ):
        with pytest.raises(error):
            session.run(given)
    assert np.array_equal(session.run({"x": x})["y"], x * 32)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": x})


def test_memory_that_was_released_is_taken_again() -> None:
    session = ready()
    x = np.ones((3, 4), np.float32)
    session.release_memory()
    assert session.memory == 0
    assert np.array_equal(session.run({"x": x})["y"], x * 32)


def test_the_limit_of_memory_holds() -> None:
    session = ready(rows=1000)
    session._budget.limit = session.memory + 1000
    with pytest.raises(ResourceError):
        session.run({"x": np.ones((1000, 4), np.float32)})


def test_errors_of_kernels_name_the_node() -> None:
    plan = Plan()
    i, x = plan.input("i", "i64", [1]), plan.input("x", "f32", [8])
    plan.kernel("k_check", [i], [1], node="the check", op="gather")
    plan.kernel("k_copy", [x, plan.output("y", "f32", [8])], [8])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    fine = {"i": np.array([0]), "x": np.arange(8, dtype=np.float32)}
    for _ in range(3):
        assert np.array_equal(session.run(fine)["y"], fine["x"])
    assert session._direct is not None
    with pytest.raises(ModelError, match="the check"):
        session.run({**fine, "i": np.array([1])})
    assert np.array_equal(session.run(fine)["y"], fine["x"])
