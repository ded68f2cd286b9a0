"""Threads: same bits for any number of them, interrupts, forks, exits, and no leaks."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime import native_segment, thread_pool
from dhc_runtime.errors import ModelError, ResourceError, UsageError

from tests.runtime.artifacts import Plan, chain


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return chain(5).artifact()


@pytest.fixture
def all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wakes all threads for segments of any size."""
    monkeypatch.setattr(native_segment, "SERIAL_NANOSECONDS", 0)


def sine() -> bytes:
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    middle = plan.arena("f32", ["N"])
    plan.kernel("k_sin", [x, middle], ["N"])
    plan.kernel("k_sum", [middle, plan.output("s", "f32", [1])], ["N"])
    plan.kernel("k_sin", [middle, plan.output("y", "f32", ["N"])], ["N"])
    return plan.artifact()


def runtime_threads() -> int:
    return sum(thread.name.startswith("dhc-") for thread in threading.enumerate())


def test_any_number_of_threads_gives_the_same_bits(all_threads: None) -> None:
    data = sine()
    x = np.random.default_rng(1).standard_normal(10_007).astype(np.float32)
    results = []
    for threads in (1, 2, 7):
        with dhc_runtime.load(data, threads=threads) as session:
            for _ in range(20):
                result = session.run(x)
                results.append((result["y"].tobytes(), result["s"].tobytes()))
    assert len(set(results)) == 1


def test_threads_start_at_the_first_run_and_end_with_the_session(artifact: bytes, all_threads: None) -> None:
    before = runtime_threads()
    session = dhc_runtime.load(artifact, threads=4)
    assert runtime_threads() == before
    session.run(np.zeros((2, 4), np.float32))
    assert runtime_threads() == before + 3
    session.close()
    assert runtime_threads() == before
    session = dhc_runtime.load(artifact, threads=3)
    session.run(np.zeros((2, 4), np.float32))
    del session
    gc.collect()
    assert runtime_threads() == before


def test_the_default_is_the_cpus_of_the_process(artifact: bytes) -> None:
    assert dhc_runtime.load(artifact).threads == len(os.sched_getaffinity(0))


def test_idle_threads_take_no_time(artifact: bytes, all_threads: None) -> None:
    session = dhc_runtime.load(artifact, threads=4)
    session.run(np.zeros((2, 4), np.float32))
    names = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("dhc-")}

    def ticks() -> int:
        total = 0
        for native in names:
            with open(f"/proc/self/task/{native}/stat") as stream:
                fields = stream.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total

    time.sleep(0.05)
    before = ticks()
    time.sleep(0.3)
    assert ticks() - before <= 2, "three threads that spin would use about 30 ticks each"


def test_runs_from_several_threads_are_right(artifact: bytes, all_threads: None) -> None:
    session = dhc_runtime.load(artifact, threads=3)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                x = rng.standard_normal((int(rng.integers(0, 50)), 4)).astype(np.float32)
                if not np.array_equal(session.run(x)["y"], x * 32):
                    wrong.append(x)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors_in_the_midst_of_steps_leave_no_thread_behind(all_threads: None) -> None:
    """A step fails right after a barrier: every thread must see it, or the others wait for ever."""
    plan = Plan()
    i, x = plan.input("i", "i64", [1]), plan.input("x", "f32", [64])
    current = x
    for step in range(6):
        following = plan.arena("f32", [64])
        plan.kernel("k_double", [current, following], [64])
        plan.kernel("k_check", [i], [step], node=f"check {step}", op="gather")
        current = following
    plan.kernel("k_copy", [current, plan.output("y", "f32", [64])], [64])
    session = dhc_runtime.load(plan.artifact(), threads=3)
    for repeat in range(200):
        first_bad = repeat % 6
        with pytest.raises(ModelError, match="check 0"):
            session.run(np.array([first_bad]), np.ones(64, np.float32))


INTERRUPT = """
import signal, sys, threading, time
import numpy as np
import dhc_runtime
from dhc_runtime import native_segment, thread_pool
native_segment.SERIAL_NANOSECONDS = 0
session = dhc_runtime.load(sys.argv[1], threads=int(sys.argv[2]))
x = np.ones((20000, 4), np.float32)
session.run(x)
def alarm(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, alarm)
interrupts = 0
for round in range(400):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + (round % 40) * 2e-5)
            for _ in range(1000000):
                session.run(x)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
    y = session.run(x[: 100 + round])["y"]
    assert y.shape == (100 + round, 4) and (y == 32).all()
print("interrupts", interrupts, "threads", sum(t.name.startswith("dhc-") for t in threading.enumerate()))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_interrupted_runs_leave_a_session_that_works(artifact: bytes, tmp_path: Path, threads: int) -> None:
    path = tmp_path / "m.dhc"
    path.write_bytes(artifact)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, str(path), str(threads)], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["interrupts", "400", "threads", str(threads - 1)]


def test_a_child_process_may_go_on_with_the_session(artifact: bytes, all_threads: None) -> None:
    session = dhc_runtime.load(artifact, threads=3)
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    session.run(x)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            if np.array_equal(session.run(x)["y"], x * 32) and runtime_threads() == 2:
                session.close()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(session.run(x)["y"], x * 32)


EXIT = """
import sys
import numpy as np
import dhc_runtime
from dhc_runtime import native_segment, thread_pool
native_segment.SERIAL_NANOSECONDS = 0
sessions = [dhc_runtime.load(sys.argv[1], threads=4) for _ in range(3)]
for session in sessions:
    session.run(np.ones((5, 4), np.float32))
sessions[0].close()
cycle = [sessions[1]]
cycle.append(cycle)
print("end")
"""


def test_a_process_ends_cleanly_with_sessions_open(artifact: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dhc"
    path.write_bytes(artifact)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", EXIT, str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def resident() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_runs_leak_nothing(artifact: bytes, all_threads: None) -> None:
    session = dhc_runtime.load(artifact, threads=2)
    x = np.ones((1000, 4), np.float32)
    for run in range(1000):  # until the heap has taken its shape
        session.run(x[: 10 * (run % 100)])
    samples = []
    for run in range(1000):
        session.run(x[: 10 * (run % 100)])
        if run % 10 == 9:
            samples.append(resident())
    # The median of all slopes between two samples: the heap may grow once, by a megabyte at some time.
    low, high = np.triu_indices(len(samples), 1)
    slope = np.median((np.asarray(samples)[high] - np.asarray(samples)[low]) / (10 * (high - low)))
    assert slope < 256, f"{slope:.0f} bytes a run"


def test_loading_and_closing_leaks_nothing(artifact: bytes, all_threads: None) -> None:
    def once() -> None:
        with dhc_runtime.load(artifact, threads=2) as session:
            session.run(np.ones((10, 4), np.float32))

    for _ in range(20):
        once()
    files = len(os.listdir("/proc/self/fd"))
    before = resident()
    for _ in range(200):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert resident() - before < 4 << 20, "each session holds more than 200 KiB when alive"


def test_too_many_threads_for_the_system_are_an_error(
    artifact: bytes, all_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = dhc_runtime.load(artifact, threads=6)
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "dhc-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    before = runtime_threads()
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ResourceError, match="no more than 3 threads"):
        session.run(np.ones((2, 4), np.float32))
    assert runtime_threads() == before
    monkeypatch.undo()
    assert np.array_equal(session.run(np.ones((2, 4), np.float32))["y"], np.full((2, 4), 32))


def test_pinned_threads_stay_on_their_cpus_and_the_caller_is_put_back(artifact: bytes, all_threads: None) -> None:
    usable = sorted(os.sched_getaffinity(0))
    x = np.ones((100, 4), np.float32)
    for pin, threads in ((True, 3), ([usable[-1]] * 2, 2)):
        others = set(threading.enumerate())  # of sessions that other tests have left open
        with dhc_runtime.load(artifact, threads=threads, pin=pin) as session:
            for _ in range(3):
                assert np.array_equal(session.run(x)["y"], x * 32)
            chosen = [usable[i % len(usable)] for i in range(threads)] if pin is True else list(pin)
            made = (t for t in threading.enumerate() if t.name.startswith("dhc-") and t not in others)
            workers = sorted(made, key=lambda t: t.name)
            assert [os.sched_getaffinity(t.native_id or 0) for t in workers] == [{cpu} for cpu in chosen[1:]]
            assert sorted(os.sched_getaffinity(0)) == usable


def test_helpers_keep_off_the_callers_cpu_where_there_are_enough(artifact: bytes, all_threads: None) -> None:
    usable = os.sched_getaffinity(0)
    for threads in (2, len(usable) + 1):
        others = set(threading.enumerate())
        with dhc_runtime.load(artifact, threads=threads) as session:
            session.run(np.ones((100, 4), np.float32))
            made = [t for t in threading.enumerate() if t.name.startswith("dhc-") and t not in others]
            masks = [os.sched_getaffinity(t.native_id or 0) for t in made]
            left_out = [usable - mask for mask in masks]
            assert len(made) == threads - 1
            assert [len(cpus) for cpus in left_out] == [int(threads <= len(usable))] * len(made)
            assert os.sched_getaffinity(0) == usable


@pytest.mark.parametrize("pin", [[0], [0, 100_000], "two", [0.5, 1]])
def test_wrong_pins_are_refused(artifact: bytes, pin: object) -> None:
    with pytest.raises(UsageError, match="pin"):
        dhc_runtime.load(artifact, threads=2, pin=pin)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacities", [[1024, 400], [2, 1, 1, 1]])
def test_cpus_of_different_speed_take_smaller_shares(
    artifact: bytes, all_threads: None, monkeypatch: pytest.MonkeyPatch, capacities: list[int]
) -> None:
    monkeypatch.setattr(thread_pool, "_capacities", lambda cpus: capacities)
    x = np.random.default_rng(2).standard_normal((997, 4)).astype(np.float32)
    with dhc_runtime.load(artifact, threads=3) as session:
        assert session._context.pool.shares == 12
        for _ in range(20):
            assert np.array_equal(session.run(x)["y"], x * 32)


def test_cpus_of_one_speed_take_one_share_each(artifact: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for capacities in ([], [1000, 1000], [1000, 900]):
        monkeypatch.setattr(thread_pool, "_capacities", lambda cpus, found=capacities: found)
        with dhc_runtime.load(artifact, threads=3) as session:
            assert session._context.pool.shares == 3


def test_threads_that_wake_up_late_are_not_waited_for(
    artifact: bytes, all_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that the system does not let run at all: the others do its share, and it joins in later."""
    gate, serve = threading.Event(), thread_pool._serve

    def late(call: object, tid: int, *rest: int) -> None:
        if tid == 1:
            gate.wait()
        serve(call, tid, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(thread_pool, "_serve", late)
    x = np.ones((64, 4), np.float32)
    with dhc_runtime.load(artifact, threads=3) as session:
        try:
            for _ in range(20):
                assert np.array_equal(session.run(x)["y"], x * 32)
        finally:
            gate.set()
        for _ in range(20):
            assert np.array_equal(session.run(x)["y"], x * 32)
