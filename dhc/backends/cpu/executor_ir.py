"""The native executor: ``dhc_run``, the loop every worker thread enters once per inference.

A compiled segment is a list of :c:struct:`Step`; a step with a barrier ends a *group*, whose results the next group
reads. A kernel divides its work into ``nthreads`` shares, and a share of a group (all its steps, in order) is what a
thread claims and runs. Each thread claims its own share first. When a group is not finished a short while later, it
also claims shares that nobody has begun: a thread that the system keeps from running, or that has not woken up yet,
holds nobody up. When all are being run, it polls for a while and then sleeps. Who runs a share does not change its
result.

Layout (64-bit little-endian, see also ``dhc_runtime.thread_pool``)::

    struct Step { void *fn; uint8_t **buffers; const int64_t *params; int64_t flags; };  // flags bit 0: barrier
    struct Sync {                      // 64-byte aligned
        int64_t modes;                 //   0  set by the caller: bit 0: denormals are read and written as zero
        int64_t pad;
        int64_t error;                 //  16  0, or (step index + 1) << 8 | status of the first failing kernel
        int64_t spin;                  //  24  set by the caller: polls before a waiting thread looks for other shares
        int64_t workers;               //  32  set by the caller: number of threads; 0: as many as shares
        const Step *steps;             //  40  the list of the run, for helpers (see ``team_ir``)
        int64_t nsteps;                //  48  its length
        int64_t waited;                //  56  nanoseconds for which thread 0 has slept since the caller last cleared it
        int64_t done;                  //  64  shares finished since the start, alone in its cache line
        struct { int64_t next; int64_t pad[7]; } shares[nthreads];   // 128  the group that is claimed next
    };

The caller zeroes ``error``, ``done`` and ``shares`` before every list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dhc.backends.cpu.target import CpuTarget

SYMBOL = "dhc_run"
STEP_BYTES = 32
SYNC_MODES, SYNC_ERROR, SYNC_SPIN, SYNC_WORKERS, SYNC_WAITED, SYNC_DONE, SYNC_SHARES = 0, 16, 24, 32, 56, 64, 128
SHARE_BYTES = 64
FLAG_BARRIER = 1
# How often `spin` polls a thread waits for shares that others run before it sleeps, and for how many nanoseconds (the
# system adds its timer's slack of about 50 us). Yielding instead keeps the core: a thread that the system has taken off
# a busy core then does not get it, and two threads on busy cores were twice as slow as with sleeping.
_PATIENCE = 8
_NAP = 20_000


def sync_bytes(nthreads: int) -> int:
    """Size of ``Sync`` for a number of shares."""
    return SYNC_SHARES + SHARE_BYTES * nthreads


# A share of a group: %chunk of the steps from %begin up to %end. The status of a kernel that fails is kept, the first
# one wins; the other steps of the share run all the same, as those of other shares do.
_SHARE = """
define internal void @share(ptr %steps, i64 %begin, i64 %end, i64 %chunk, i64 %nthreads, ptr %sync) nounwind {
entry:
  br label %loop
loop:
  %index = phi i64 [ %begin, %entry ], [ %next, %after ]
  %more = icmp slt i64 %index, %end
  br i1 %more, label %step, label %done
step:
  %at = getelementptr [32 x i8], ptr %steps, i64 %index
  %fn = load ptr, ptr %at
  %buffers.at = getelementptr i8, ptr %at, i64 8
  %buffers = load ptr, ptr %buffers.at
  %params.at = getelementptr i8, ptr %at, i64 16
  %params = load ptr, ptr %params.at
  %status = call i32 %fn(ptr %buffers, ptr %params, i64 %chunk, i64 %nthreads)
  %next = add i64 %index, 1
  %good = icmp eq i32 %status, 0
  br i1 %good, label %after, label %failed
failed:
  %place = shl i64 %next, 8
  %wide = zext i32 %status to i64
  %word = or i64 %place, %wide
  %error = getelementptr i8, ptr %sync, i64 16
  %kept = cmpxchg ptr %error, i64 0, i64 %word acq_rel acquire
  br label %after
after:
  br label %loop
done:
  ret void
}
"""

# Sleeps for a moment, and adds up how long thread 0 has slept.
_NAPS = """
define internal void @nap(i64 %tid, ptr %sync) nounwind {
entry:
  %length = alloca [2 x i64], align 8
  %before = alloca [2 x i64], align 8
  %after = alloca [2 x i64], align 8
  store i64 0, ptr %length
  %nanoseconds = getelementptr i64, ptr %length, i64 1
  store i64 NAP, ptr %nanoseconds
  %first = icmp eq i64 %tid, 0
  br i1 %first, label %measured, label %plain
plain:
  %ignored = call i32 @nanosleep(ptr %length, ptr null)
  ret void
measured:
  %began = call i32 @clock_gettime(i32 1, ptr %before) ; CLOCK_MONOTONIC
  %slept = call i32 @nanosleep(ptr %length, ptr null)
  %ended = call i32 @clock_gettime(i32 1, ptr %after)
  %s0 = load i64, ptr %before
  %s1 = load i64, ptr %after
  %n0.at = getelementptr i64, ptr %before, i64 1
  %n1.at = getelementptr i64, ptr %after, i64 1
  %n0 = load i64, ptr %n0.at
  %n1 = load i64, ptr %n1.at
  %s = sub i64 %s1, %s0
  %n = sub i64 %n1, %n0
  %whole = mul i64 %s, 1000000000
  %took = add i64 %whole, %n
  %waited.at = getelementptr i8, ptr %sync, i64 56
  %waited = load i64, ptr %waited.at
  %sum = add i64 %waited, %took
  store i64 %sum, ptr %waited.at
  ret void
}
"""

# Claims and runs the shares of one group from %low up to %high; tells whether there was one.
_CLAIM = """
define internal i1 @claim(ptr %steps, i64 %begin, i64 %end, i64 %group, i64 %low, i64 %high, i64 %nthreads, ptr %sync)
    nounwind {
entry:
  %following = add i64 %group, 1
  br label %loop
loop:
  %chunk = phi i64 [ %low, %entry ], [ %next, %skip ]
  %any = phi i1 [ false, %entry ], [ %found, %skip ]
  %more = icmp slt i64 %chunk, %high
  br i1 %more, label %look, label %done
look:
  %skipped = getelementptr [64 x i8], ptr %sync, i64 %chunk
  %at = getelementptr i8, ptr %skipped, i64 128
  %seen = load atomic i64, ptr %at monotonic, align 8
  %open = icmp eq i64 %seen, %group
  br i1 %open, label %try, label %skip
try:
  %pair = cmpxchg ptr %at, i64 %group, i64 %following acq_rel monotonic
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %run, label %skip
run:
  call void @share(ptr %steps, i64 %begin, i64 %end, i64 %chunk, i64 %nthreads, ptr %sync)
  %done.at = getelementptr i8, ptr %sync, i64 64
  %before = atomicrmw add ptr %done.at, i64 1 acq_rel
  br label %skip
skip:
  %found = phi i1 [ %any, %look ], [ %any, %try ], [ true, %run ]
  %next = add i64 %chunk, 1
  br label %loop
done:
  ret i1 %any
}
"""

# The processor's rules for floats are the thread's: they are put back as they were found.
_ENTER = """
define i32 @dhc_run(ptr %steps, i64 %nsteps, i64 %tid, i64 %nthreads, ptr %sync) nounwind {
entry:
  %modes = load i64, ptr %sync
  %mode = and i64 %modes, 1
  %flush = icmp ne i64 %mode, 0
  br i1 %flush, label %flushed, label %kept
flushed:
  FLUSH
  %word = call i32 @run(ptr %steps, i64 %nsteps, i64 %tid, i64 %nthreads, ptr %sync)
  RESTORE
  ret i32 %word
kept:
  %same = call i32 @run(ptr %steps, i64 %nsteps, i64 %tid, i64 %nthreads, ptr %sync)
  ret i32 %same
}
"""

_RUN = """
define internal i32 @run(ptr %steps, i64 %nsteps, i64 %tid, i64 %nthreads, ptr %sync) nounwind {
entry:
  %error.at = getelementptr i8, ptr %sync, i64 16
  %spin.at = getelementptr i8, ptr %sync, i64 24
  %spin = load i64, ptr %spin.at
  %longest = mul i64 %spin, PATIENCE
  %workers.at = getelementptr i8, ptr %sync, i64 32
  %given = load i64, ptr %workers.at
  %unset = icmp eq i64 %given, 0
  %workers = select i1 %unset, i64 %nthreads, i64 %given
  %done.at = getelementptr i8, ptr %sync, i64 64
  %alone = icmp sle i64 %nthreads, 1
  %low.product = mul i64 %tid, %nthreads
  %low = sdiv i64 %low.product, %workers
  %high.factor = add i64 %tid, 1
  %high.product = mul i64 %high.factor, %nthreads
  %high = sdiv i64 %high.product, %workers
  br label %group
group:                                    ; steps up to the next barrier
  %begin = phi i64 [ 0, %entry ], [ %end, %check ]
  %number = phi i64 [ 0, %entry ], [ %following, %check ]
  %left = icmp slt i64 %begin, %nsteps
  br i1 %left, label %seek, label %leave
seek:
  %index = phi i64 [ %begin, %group ], [ %end, %seek.on ]
  %end = add i64 %index, 1
  %step = getelementptr [32 x i8], ptr %steps, i64 %index
  %flags.at = getelementptr i8, ptr %step, i64 24
  %flags = load i64, ptr %flags.at
  %flag = and i64 %flags, 1
  %barrier = icmp ne i64 %flag, 0
  br i1 %barrier, label %begin.group, label %seek.on
seek.on:
  %inside = icmp slt i64 %end, %nsteps
  br i1 %inside, label %seek, label %begin.group
begin.group:
  %following = add i64 %number, 1
  %needed = mul i64 %following, %nthreads
  br i1 %alone, label %single, label %several
single:
  call void @share(ptr %steps, i64 %begin, i64 %end, i64 0, i64 %nthreads, ptr %sync)
  br label %check
several:
  %own = call i1 @claim(ptr %steps, i64 %begin, i64 %end, i64 %number, i64 %low, i64 %high, i64 %nthreads, ptr %sync)
  br label %poll
poll:
  %polls = phi i64 [ 0, %several ], [ %spun, %pause ], [ %polls, %steal ], [ %polls, %sleep ]
  %finished = load atomic i64, ptr %done.at acquire, align 8
  %complete = icmp sge i64 %finished, %needed
  br i1 %complete, label %check, label %waiting
waiting:
  %patient = icmp slt i64 %polls, %spin
  br i1 %patient, label %pause, label %steal
pause:
  PAUSE
  %spun = add i64 %polls, 1
  br label %poll
steal:
  %stolen = call i1 @claim(ptr %steps, i64 %begin, i64 %end, i64 %number, i64 0, i64 %nthreads, i64 %nthreads,
      ptr %sync)
  br i1 %stolen, label %poll, label %late
late:                                     ; all shares are being run
  %short = icmp slt i64 %polls, %longest
  br i1 %short, label %pause, label %sleep
sleep:                                    ; by threads that the system may not be running: they may need this core
  call void @nap(i64 %tid, ptr %sync)
  br label %poll
check:
  ; A share's error was stored before the share was counted, so that every thread sees it here.
  %error = load atomic i64, ptr %error.at acquire, align 8
  %fine = icmp eq i64 %error, 0
  br i1 %fine, label %group, label %leave
leave:
  %word = load atomic i64, ptr %error.at acquire, align 8
  %result = trunc i64 %word to i32
  ret i32 %result
}
"""


_OUTSIDE = """declare i32 @nanosleep(ptr, ptr)
declare i32 @clock_gettime(i32, ptr)
"""
_X86 = {
    "DECLARE": """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
""",
    "PAUSE": "call void @llvm.x86.sse2.pause()",
    "FLUSH": """
  %found = alloca i32, align 4
  %wanted = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %found)
  %rules = load i32, ptr %found
  %flushing = or i32 %rules, 32832 ; FTZ and DAZ
  store i32 %flushing, ptr %wanted
  call void @llvm.x86.sse.ldmxcsr(ptr %wanted)
""",
    "RESTORE": "call void @llvm.x86.sse.ldmxcsr(ptr %found)",
}
_AARCH64 = {
    "DECLARE": """
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
""",
    "PAUSE": "call void @llvm.aarch64.hint(i32 1)",  # 1 = yield
    "FLUSH": """
  %rules = call i64 @llvm.aarch64.get.fpcr()
  %flushing = or i64 %rules, 16777216 ; FZ
  call void @llvm.aarch64.set.fpcr(i64 %flushing)
""",
    "RESTORE": "call void @llvm.aarch64.set.fpcr(i64 %rules)",
}


def executor_ir(target: CpuTarget) -> str:
    """LLVM IR of ``int32_t dhc_run(const Step*, int64_t nsteps, int64_t tid, int64_t nthreads, Sync*)``.

    A nonzero status is stored (first one wins) in ``sync->error`` as ``(step index + 1) << 8 | status``; at the end of
    its group all threads return. With one share there is no waiting. The result is the error word, 0 if all went well.

    Args:
        target: decides the instructions that wait and that set the rules for floats.
    """
    # Intrinsics, not inline assembly: LLVM's assembly parsers are not set up for other targets than the host.
    words = _X86 if target.arch == "x86_64" else _AARCH64
    header = f'target triple = "{target.triple}"\n{words["DECLARE"]}\n{_OUTSIDE}'
    run = _NAPS + _RUN + _ENTER
    for name, text in {**words, **waiting_words(target)}.items():
        run = run.replace(name, text.strip())
    return header + _SHARE + _CLAIM + run


def waiting_words(target: CpuTarget) -> dict[str, str]:
    """What stands for the words of the templates that have to do with waiting."""
    words = _X86 if target.arch == "x86_64" else _AARCH64
    return {"PAUSE": words["PAUSE"], "PATIENCE": str(_PATIENCE), "NAP": str(_NAP)}
