"""Target descriptions, object emission and the native executor (`dhc_run`)."""

from __future__ import annotations

import ctypes
import threading

import pytest

from dhc_runtime.errors import CompileError, UsageError

from dhc.backends.cpu import executor_ir
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.llvm.loader import LoadedObject

ALL = ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "host"]
KERNELS = """
define i32 @count(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
  %out = load ptr, ptr %buffers
  %slot = getelementptr i64, ptr %out, i64 %tid
  %old = load i64, ptr %slot
  %new = add i64 %old, 1
  store i64 %new, ptr %slot
  ret i32 0
}
define i32 @agree(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
entry:
  %out = load ptr, ptr %buffers
  %mine.slot = getelementptr i64, ptr %out, i64 %tid
  %mine = load i64, ptr %mine.slot
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %bad = phi i32 [ 0, %entry ], [ %worse, %loop ]
  %slot = getelementptr i64, ptr %out, i64 %i
  %other = load i64, ptr %slot
  %differs = icmp ne i64 %other, %mine
  %worse = select i1 %differs, i32 3, i32 %bad
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %nthreads
  br i1 %more, label %loop, label %end
end:
  ret i32 %worse
}
define i32 @fail(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
  %last = sub i64 %nthreads, 1
  %it = icmp eq i64 %tid, %last
  %status = select i1 %it, i32 2, i32 0
  ret i32 %status
}
"""


class Step(ctypes.Structure):
    _fields_ = [
        ("fn", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("flags", ctypes.c_int64),
    ]


@pytest.mark.parametrize("name", ALL)
def test_each_target_emits_an_elf_object_with_equal_bytes(name):
    described = targets.target(name)
    text = [KERNELS, executor_ir.executor_ir(described)]
    first = targets.compile_ir(text, described)
    assert first[:4] == b"\x7fELF"
    assert first[18:20] == (b"\x3e\x00" if described.arch == "x86_64" else b"\xb7\x00")
    assert first == targets.compile_ir(text, described)


def test_unknown_target_names_the_nearest():
    with pytest.raises(UsageError, match="x86-64-v3"):
        targets.target("x86_64-v3")


def test_required_features_are_cpuinfo_names():
    assert {"avx2", "fma", "abm", "pni"} <= set(targets.required_features(targets.target("x86-64-v3")))
    assert targets.required_features(targets.target("aarch64")) == ["asimd", "fp"]


def test_rejected_ir_is_a_compile_error():
    with pytest.raises(CompileError, match="LLVM"):
        targets.compile_ir("define i32 @f() { ret i64 0 }", targets.target("x86-64"))


def test_targets_differ_in_text():
    assert len({targets.target(name).text() for name in ALL[:5]}) == 5


def run_steps(jit, names, flags, nthreads, shares=None, spin=200, absent=()):
    """Runs a step list of the kernels above; returns the counters of the shares and each thread's results."""
    shares = shares or nthreads
    counters = (ctypes.c_int64 * shares)()
    buffers = (ctypes.c_void_p * 1)(ctypes.addressof(counters))
    params = (ctypes.c_int64 * 1)()
    steps = (Step * len(names))(
        *[Step(jit.address(n), ctypes.addressof(buffers), ctypes.addressof(params), f) for n, f in zip(names, flags)]
    )
    sync = (ctypes.c_int64 * (executor_ir.sync_bytes(shares) // 8))()
    sync[executor_ir.SYNC_SPIN // 8], sync[executor_ir.SYNC_WORKERS // 8] = spin, nthreads
    run = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )(jit.address("dhc_run"))
    results = [[] for _ in range(nthreads)]

    def work(tid):
        results[tid].append(run(ctypes.addressof(steps), len(names), tid, shares, ctypes.addressof(sync)))

    threads = [threading.Thread(target=work, args=(tid,)) for tid in range(nthreads) if tid not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(counters), results


@pytest.fixture(scope="module")
def jit():
    described = targets.host_target()
    return LoadedObject(targets.compile_ir([KERNELS, executor_ir.executor_ir(described)], described))


@pytest.mark.parametrize("nthreads", [1, 2, 7])
def test_executor_keeps_threads_in_step(jit, nthreads):
    # `agree` fails when a thread passes a barrier before another has counted, so a broken barrier shows.
    for _ in range(3):
        counters, results = run_steps(jit, ["count", "agree"] * 50, [1] * 100, nthreads)
        assert counters == [50] * nthreads
        assert results == [[0]] * nthreads


@pytest.mark.parametrize("absent", [(0,), (1, 2), (0, 2, 3)])
@pytest.mark.parametrize("shares", [4, 13])
def test_threads_that_never_come_hold_nobody_up(jit, absent, shares):
    counters, results = run_steps(jit, ["count", "agree"] * 50, [1] * 100, 4, shares, absent=absent)
    assert counters == [50] * shares
    assert results == [[] if tid in absent else [0] for tid in range(4)]


def test_a_share_runs_the_steps_up_to_a_barrier_in_order(jit):
    """`count` and what reads it are in one group: a share's own counter is right when the next step starts."""
    counters, results = run_steps(jit, ["count", "count", "count", "agree"], [0, 0, 1, 1], 3, 8)
    assert counters == [3] * 8
    assert results == [[0]] * 3


@pytest.mark.parametrize("nthreads", [1, 3])
def test_executor_stops_all_threads_at_the_barrier_after_an_error(jit, nthreads):
    counters, results = run_steps(jit, ["count", "fail", "count", "count"], [0, 1, 1, 1], nthreads)
    assert counters == [1] * nthreads
    assert results == [[(2 << 8) | 2]] * nthreads


def test_executor_runs_an_empty_list(jit):
    assert run_steps(jit, [], [], 2) == ([0, 0], [[0], [0]])


def test_the_environment_names_the_default(monkeypatch):
    monkeypatch.setenv("DHC_CPU", "x86-64-v2")
    assert targets.target() == targets.target("x86-64-v2")
    assert targets.target("host") == targets.host_target()
    monkeypatch.setenv("DHC_CPU", "x86-64-v9")
    with pytest.raises(UsageError, match="x86-64-v9"):
        targets.target()
    monkeypatch.setenv("DHC_CPU", "")
    assert targets.target() == targets.host_target()
