"""The team: ``dhc_team``, by which one thread calls others to a step list and these others wait for it.

The other threads, the helpers, enter native code once and stay there: between runs they poll for a short while, since a
program often runs the next input at once, and then block on a semaphore. So a run takes no lock of Python's, wakes
nobody who is awake, and ends when the last share is done. A helper that is not there in time takes no part in the run.

Behind the shares of :mod:`dhc.backends.cpu.executor_ir`, ``Sync`` has a cache line for the gate and one for each
helper::

    int64_t gate;                      // run number << 32 | helpers inside << 2 | open << 1 | dismissed
    struct { int64_t asleep; int64_t pad; sem_t semaphore; } helpers[...];   // of thread i at gate + 64 * i

A helper goes in only while the gate is open, and nothing of a run is changed before all are out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dhc.backends.cpu.executor_ir import SHARE_BYTES, SYNC_SHARES, executor_ir, waiting_words

if TYPE_CHECKING:
    from dhc.backends.cpu.target import CpuTarget

SYMBOL = "dhc_team"
RUN, ALONE, PREPARE, DISMISS = 0, -1, -2, -3
"""Roles besides those of helpers, which are their numbers from 1 on."""
# For how many times `spin` polls a helper waits for the next run before it sleeps: about 200 us. Waking a thread takes
# a fourth of that.
_LINGER = 20


def sync_bytes(shares: int, threads: int) -> int:
    """Size of ``Sync`` for a team."""
    return SYNC_SHARES + SHARE_BYTES * (shares + max(threads, 1))


_TEAM = """
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_post(ptr)
declare i32 @sem_wait(ptr)

define internal ptr @gate(i64 %shares, ptr %sync) alwaysinline nounwind {
  %bytes = mul i64 %shares, 64
  %behind = add i64 %bytes, 128
  %gate = getelementptr i8, ptr %sync, i64 %behind
  ret ptr %gate
}

; Wakes the helpers that sleep.
define internal void @wake(ptr %gate, ptr %sync) nounwind {
entry:
  %workers.at = getelementptr i8, ptr %sync, i64 32
  %workers = load i64, ptr %workers.at
  br label %loop
loop:
  %tid = phi i64 [ 1, %entry ], [ %next, %on ]
  %more = icmp slt i64 %tid, %workers
  br i1 %more, label %look, label %done
look:
  %record = getelementptr [64 x i8], ptr %gate, i64 %tid
  %asleep = atomicrmw xchg ptr %record, i64 0 seq_cst
  %sleeps = icmp ne i64 %asleep, 0
  br i1 %sleeps, label %post, label %on
post:
  %semaphore = getelementptr i8, ptr %record, i64 16
  %ignored = call i32 @sem_post(ptr %semaphore)
  br label %on
on:
  %next = add i64 %tid, 1
  br label %loop
done:
  ret void
}

; Before the first helper: nothing is left of threads that a fork did not take along.
define internal i32 @prepare(i64 %shares, ptr %sync) nounwind {
entry:
  %gate = call ptr @gate(i64 %shares, ptr %sync)
  store atomic i64 0, ptr %gate seq_cst, align 8
  %workers.at = getelementptr i8, ptr %sync, i64 32
  %workers = load i64, ptr %workers.at
  br label %loop
loop:
  %tid = phi i64 [ 1, %entry ], [ %next, %on ]
  %more = icmp slt i64 %tid, %workers
  br i1 %more, label %on, label %done
on:
  %record = getelementptr [64 x i8], ptr %gate, i64 %tid
  store i64 0, ptr %record
  %semaphore = getelementptr i8, ptr %record, i64 16
  %failed = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  %next = add i64 %tid, 1
  %fine = icmp eq i32 %failed, 0
  br i1 %fine, label %loop, label %bad
bad:
  ret i32 1
done:
  ret i32 0
}

define internal i32 @dismiss(i64 %shares, ptr %sync) nounwind {
  %gate = call ptr @gate(i64 %shares, ptr %sync)
  %before = atomicrmw or ptr %gate, i64 1 seq_cst
  call void @wake(ptr %gate, ptr %sync)
  ret i32 0
}

define internal i32 @lead(ptr %steps, i64 %nsteps, i64 %shares, ptr %sync) nounwind {
entry:
  %gate = call ptr @gate(i64 %shares, ptr %sync)
  %error.at = getelementptr i8, ptr %sync, i64 16
  store i64 0, ptr %error.at
  %steps.at = getelementptr i8, ptr %sync, i64 40
  store ptr %steps, ptr %steps.at
  %nsteps.at = getelementptr i8, ptr %sync, i64 48
  store i64 %nsteps, ptr %nsteps.at
  %waited.at = getelementptr i8, ptr %sync, i64 56
  store i64 0, ptr %waited.at
  %done.at = getelementptr i8, ptr %sync, i64 64
  store i64 0, ptr %done.at
  br label %clear
clear:
  %share = phi i64 [ 0, %entry ], [ %following, %clear.one ]
  %uncleared = icmp slt i64 %share, %shares
  br i1 %uncleared, label %clear.one, label %open
clear.one:
  %skipped = getelementptr [64 x i8], ptr %sync, i64 %share
  %at = getelementptr i8, ptr %skipped, i64 128
  store i64 0, ptr %at
  %following = add i64 %share, 1
  br label %clear
open:
  %old = load atomic i64, ptr %gate monotonic, align 8
  %numbered = add i64 %old, 4294967298 ; the next run, open
  store atomic i64 %numbered, ptr %gate seq_cst, align 8
  call void @wake(ptr %gate, ptr %sync)
  %word = call i32 @dhc_run(ptr %steps, i64 %nsteps, i64 0, i64 %shares, ptr %sync)
  %closed = atomicrmw and ptr %gate, i64 -3 seq_cst
  %spin.at = getelementptr i8, ptr %sync, i64 24
  %spin = load i64, ptr %spin.at
  %longest = mul i64 %spin, PATIENCE
  br label %leaving
leaving:                                  ; helpers that have seen the end and are on their way out
  %polls = phi i64 [ 0, %open ], [ %spun, %poll ], [ %polls, %sleep ]
  %now = load atomic i64, ptr %gate acquire, align 8
  %inside = and i64 %now, 4294967292
  %out = icmp eq i64 %inside, 0
  br i1 %out, label %end, label %waiting
waiting:
  %short = icmp slt i64 %polls, %longest
  br i1 %short, label %poll, label %sleep
poll:
  PAUSE
  %spun = add i64 %polls, 1
  br label %leaving
sleep:
  call void @nap(i64 0, ptr %sync)
  br label %leaving
end:
  ret i32 %word
}

define internal i32 @help(i64 %tid, i64 %shares, ptr %sync) nounwind {
entry:
  %gate = call ptr @gate(i64 %shares, ptr %sync)
  %record = getelementptr [64 x i8], ptr %gate, i64 %tid
  %semaphore = getelementptr i8, ptr %record, i64 16
  %spin.at = getelementptr i8, ptr %sync, i64 24
  %spin = load i64, ptr %spin.at
  %longest = mul i64 %spin, LINGER
  %steps.at = getelementptr i8, ptr %sync, i64 40
  %nsteps.at = getelementptr i8, ptr %sync, i64 48
  br label %look
look:
  %last = phi i64 [ 0, %entry ], [ %last, %pause ], [ %last, %woken ], [ %last, %try ], [ %run, %go ]
  %polls = phi i64 [ 0, %entry ], [ %spun, %pause ], [ 0, %woken ], [ %polls, %try ], [ 0, %go ]
  %state = load atomic i64, ptr %gate acquire, align 8
  %over.bit = and i64 %state, 1
  %over = icmp ne i64 %over.bit, 0
  br i1 %over, label %end, label %asked
asked:
  %run = lshr i64 %state, 32
  %open.bit = and i64 %state, 2
  %open = icmp ne i64 %open.bit, 0
  %fresh = icmp ne i64 %run, %last
  %wanted = and i1 %open, %fresh
  br i1 %wanted, label %try, label %idle
try:
  %entered = add i64 %state, 4
  %pair = cmpxchg ptr %gate, i64 %state, i64 %entered seq_cst acquire
  %in = extractvalue { i64, i1 } %pair, 1
  br i1 %in, label %go, label %look
go:
  %steps = load ptr, ptr %steps.at
  %nsteps = load i64, ptr %nsteps.at
  %word = call i32 @dhc_run(ptr %steps, i64 %nsteps, i64 %tid, i64 %shares, ptr %sync)
  %left = atomicrmw sub ptr %gate, i64 4 seq_cst
  br label %look
idle:
  %short = icmp slt i64 %polls, %longest
  br i1 %short, label %pause, label %lie.down
pause:
  PAUSE
  %spun = add i64 %polls, 1
  br label %look
lie.down:                                 ; whoever opens the gate after this store sees it and posts
  store atomic i64 1, ptr %record seq_cst, align 8
  %again = load atomic i64, ptr %gate seq_cst, align 8
  %same = icmp eq i64 %again, %state
  br i1 %same, label %sleep, label %get.up
get.up:
  %mine = atomicrmw xchg ptr %record, i64 0 seq_cst
  %unposted = icmp ne i64 %mine, 0
  br i1 %unposted, label %woken, label %sleep
sleep:                                    ; a signal may wake it too early: it then looks and lies down again
  %ignored = call i32 @sem_wait(ptr %semaphore)
  br label %woken
woken:
  br label %look
end:
  ret i32 0
}

define i32 @dhc_team(ptr %steps, i64 %nsteps, i64 %role, i64 %shares, ptr %sync) nounwind {
  switch i64 %role, label %helper [
    i64 0, label %leader
    i64 -1, label %alone
    i64 -2, label %first
    i64 -3, label %last
  ]
leader:
  %led = call i32 @lead(ptr %steps, i64 %nsteps, i64 %shares, ptr %sync)
  ret i32 %led
alone:
  %error.at = getelementptr i8, ptr %sync, i64 16
  store i64 0, ptr %error.at
  %word = call i32 @dhc_run(ptr %steps, i64 %nsteps, i64 0, i64 1, ptr %sync)
  ret i32 %word
helper:
  %helped = call i32 @help(i64 %role, i64 %shares, ptr %sync)
  ret i32 %helped
first:
  %prepared = call i32 @prepare(i64 %shares, ptr %sync)
  ret i32 %prepared
last:
  %dismissed = call i32 @dismiss(i64 %shares, ptr %sync)
  ret i32 %dismissed
}
"""


def team_ir(target: CpuTarget) -> str:
    """The executor and ``int32_t dhc_team(const Step*, int64_t nsteps, int64_t role, int64_t shares, Sync*)``.

    Roles: `RUN` runs the list together with the helpers and gives the error word; `ALONE` runs it on the calling thread
    (``workers`` is then 0 or the list's one share is its own); a number from 1 on is that helper, and returns when the
    team is dismissed; `PREPARE` comes before the first helper, its result is 0 if the system has semaphores; `DISMISS`
    ends the helpers.

    Args:
        target: decides the instructions that wait.
    """
    text = _TEAM
    for name, word in {**waiting_words(target), "LINGER": str(_LINGER)}.items():
        text = text.replace(name, word)
    return executor_ir(target) + text
