"""Threads that run one native step list together (SPMD): each enters native code once for each segment.

Idle threads block on a lock; nothing spins outside of native code. The calling thread is thread 0. A thread that has
not woken up when the others are done is not waited for: they have done its share.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import threading
import time
import weakref
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Sequence, Set, Tuple

import numpy as np

from dhc_runtime.errors import ResourceError, UsageError

__all__ = ["MAX_THREADS", "ThreadPool", "default_threads", "pinned_cpus", "shares_per_thread"]

MAX_THREADS = 1024
_STACK_BYTES = 8 << 20
# The layout of `Sync`, in words (see the code generator of the executor).
_MODES, _ERROR, _SPIN, _WORKERS, _DONE, _SHARES, _SHARE_WORDS = 0, 2, 3, 4, 8, 16, 8
# About ten microseconds, the usual difference between threads at a barrier. Longer spinning gains nothing on an idle
# machine, and on a busy one it holds a CPU that the awaited thread may need.
_SPINS = 500
_HYBRID_SHARES = 4
_ENTRY = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)
_invoke = operator.methodcaller("__call__")
_pop = operator.methodcaller("pop")
_Job = Tuple[int, int, int]
"""Address and length of a step list, and the number of the run."""


def default_threads() -> int:
    """The number of CPUs that this process may use."""
    try:
        return max(len(os.sched_getaffinity(0)), 1)
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _checked_count(threads: Any) -> int:
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or not 1 <= threads <= MAX_THREADS:
        raise UsageError("threads must be a number from 1 to {}, not {!r}".format(MAX_THREADS, threads))
    return int(threads)


def _capacities(cpus: Sequence[int]) -> List[int]:
    """What the system says of the speed of CPUs; empty where it says nothing."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        found = []
        for cpu in cpus:
            try:
                with open("/sys/devices/system/cpu/cpu{}/{}".format(cpu, name), encoding="ascii") as stream:
                    found.append(int(stream.read(32)))
            except (OSError, ValueError):
                break
        if found and len(found) == len(cpus):
            return found
    return []


def shares_per_thread() -> int:
    """Into how many shares the work of a thread is cut: more than one where the CPUs of the process differ in speed.

    Fast CPUs then take shares of the slow ones.
    """
    try:
        capacities = _capacities(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return 1
    return _HYBRID_SHARES if capacities and max(capacities) > 1.25 * min(capacities) else 1


def pinned_cpus(pin: Any, threads: int) -> Optional[Tuple[int, ...]]:
    """The CPU of each thread for the argument ``pin`` of `load`; None for threads that may move.

    Raises:
        UsageError: it is neither a bool nor a list of CPUs that the process may use, one for each thread.
    """
    if pin is False or pin is None:
        return None
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("This system does not let threads be pinned to CPUs", hint="Leave pin= out")
    usable = sorted(os.sched_getaffinity(0))
    if pin is True:
        return tuple([usable[i % len(usable)] for i in range(threads)])
    try:
        chosen = tuple([operator.index(cpu) for cpu in pin])
    except TypeError:
        raise UsageError("pin must be True, False or a list of CPU numbers, not {!r}".format(pin)) from None
    outside = sorted(set(chosen) - set(usable))
    if outside or len(chosen) != threads:
        raise UsageError(
            "pin names {} CPUs for {} threads".format(len(chosen), threads)
            if not outside
            else "pin names CPU {}, which this process may not use".format(", ".join(map(str, outside))),
            hint="Name one CPU for each thread, of: {}".format(", ".join(map(str, usable))),
        )
    return chosen


class _Worker:
    """What one thread and its pool share. It refers to no pool, so that an abandoned pool can be collected."""

    __slots__ = ("cancelled", "cpu", "done", "finished", "jobs", "start", "stopping", "thread")

    def __init__(self, cpu: Optional[int]) -> None:
        self.start = threading.Lock()
        self.done = threading.Lock()
        self.start.acquire()
        self.done.acquire()
        # Whoever takes the job out decides: the thread runs it, or the pool cancels it.
        self.jobs: Deque[_Job] = deque()
        self.cancelled: Deque[_Job] = deque(maxlen=1)
        self.finished = 0
        self.stopping = False
        self.cpu = cpu
        self.thread: Optional[threading.Thread] = None

    def cancel(self) -> bool:
        """Takes the job back if the thread has not taken it; nothing can interrupt that."""
        try:
            self.cancelled.extend(map(_pop, (self.jobs,)))
        except IndexError:
            return False
        return True

    def is_over(self, run: int) -> bool:
        """Whether the thread is done with a run, or never took part."""
        return self.finished == run or (len(self.cancelled) > 0 and self.cancelled[0][2] == run)


def _serve(worker: _Worker, call: Callable[..., int], tid: int, shares: int, sync: int) -> None:
    if worker.cpu is not None:
        _move_to({worker.cpu})
    while True:
        worker.start.acquire()
        if worker.stopping:
            return
        try:
            job = worker.jobs.pop()
        except IndexError:  # the run ended without this thread
            continue
        call(job[0], job[1], tid, shares, sync)
        worker.done.release()
        worker.finished = job[2]


def _move_to(cpus: Set[int]) -> None:
    """Puts the calling thread on CPUs; where the system does not allow that any more, it stays where it is."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return


def _stop(workers: List[_Worker], pid: int, keepalive: Any) -> None:
    """Ends the threads. ``keepalive`` (the code that they run) lives until they are gone."""
    if os.getpid() != pid:
        return  # the threads stayed in the parent process
    for worker in workers:
        worker.stopping = True
        if worker.start.locked():
            worker.start.release()
    for worker in workers:
        # One that was never started has nothing to join, and a thread cannot wait for itself.
        if worker.thread is not None and worker.thread.is_alive() and worker.thread is not threading.current_thread():
            worker.thread.join(10.0)
    del workers[:]


class ThreadPool:
    """Runs native step lists on a fixed number of threads.

    Args:
        entry: address of ``dhc_run``.
        threads: how many threads take part, including the caller; None for all CPUs that the process may use.
        keepalive: the object that owns the code.
        pin: see `pinned_cpus`.
        flush: whether denormals are read and written as zero.

    Attributes:
        threads: how many threads take part.
        shares: into how many shares a step's work is cut: a multiple of that.

    Raises:
        UsageError: ``threads`` is no number from 1 to 1024, or ``pin`` is wrong.
    """

    def __init__(
        self, entry: int, threads: Optional[int], keepalive: Any, pin: Any = False, flush: bool = False
    ) -> None:
        if threads is None:
            threads = min(default_threads(), MAX_THREADS)
        self.threads = _checked_count(threads)
        self._call = _ENTRY(entry)
        self._keepalive = keepalive
        self.shares = self.threads * (shares_per_thread() if self.threads > 1 else 1)
        self._cpus = pinned_cpus(pin, self.threads)
        # 128-byte aligned, so that the parts that the code spreads over cache lines stay apart.
        words = _SHARES + _SHARE_WORDS * self.shares
        raw = np.zeros(words + 16, dtype=np.int64)
        skip = (-int(raw.__array_interface__["data"][0]) % 128) // 8
        self._sync = raw[skip : skip + words]
        self._sync_address = int(self._sync.__array_interface__["data"][0])
        # With more threads than CPUs a spinning thread only keeps the one it waits for from running.
        self._sync[_SPIN] = _SPINS if self.threads <= default_threads() else 0
        self._sync[_WORKERS] = self.threads
        self._sync[_MODES] = int(flush)
        self._workers: List[_Worker] = []
        self._pid = os.getpid()
        self._generation = 0
        self._log: Deque[None] = deque()
        self._finalizer: Optional["weakref.finalize[..., ThreadPool]"] = None

    def _start(self) -> None:
        """Starts the threads, at the first run and after a fork (threads do not survive it)."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._pid = os.getpid()
        workers: List[_Worker] = []
        # Some systems give threads less stack than the main one has, and kernels keep tiles there.
        default_stack = threading.stack_size(_STACK_BYTES)
        try:
            self._start_workers(workers)
        except BaseException:
            self.close()
            raise
        finally:
            threading.stack_size(default_stack)
        self._workers = workers

    def _start_workers(self, workers: List[_Worker]) -> None:
        self._finalizer = weakref.finalize(self, _stop, workers, self._pid, (self._keepalive, self._sync))
        for tid in range(1, self.threads):
            worker = _Worker(None if self._cpus is None else self._cpus[tid])
            worker.thread = threading.Thread(
                target=_serve,
                args=(worker, self._call, tid, self.shares, self._sync_address),
                name="dhc-{}".format(tid),
                daemon=True,
            )
            workers.append(worker)
            try:
                worker.thread.start()
            except RuntimeError as error:
                raise ResourceError(
                    "The system gives no more than {} threads".format(tid), tid, hint="Ask for fewer with threads="
                ) from error

    def run(self, steps: int, count: int, serial: bool = False) -> int:
        """Runs a step list on all threads and waits for them.

        Args:
            steps: address of the list.
            count: its length.
            serial: run it on the calling thread alone (for work too small to be worth waking threads).

        Returns:
            0, or ``(index of the failed step + 1) << 8 | status``.
        """
        self._sync[_ERROR] = 0
        if serial or self.threads == 1:
            self._call(steps, count, 0, 1, self._sync_address)
            return int(self._sync[_ERROR])
        if not self._workers or self._pid != os.getpid():
            self._start()
        self._sync[_DONE:] = 0
        if self._cpus is None:
            self._run(steps, count)
        else:
            before = os.sched_getaffinity(0)
            try:
                _move_to({self._cpus[0]})
                self._run(steps, count)
            finally:
                _move_to(before)
        return int(self._sync[_ERROR])

    def _run(self, steps: int, count: int) -> None:
        self._generation += 1
        job = (steps, count, self._generation)
        try:
            self._log.clear()
            # A signal handler may raise (KeyboardInterrupt) between any two byte codes: what is handed out and the
            # record of it happen inside one call of compiled code.
            self._log.extend(map(_invoke, [functools.partial(worker.jobs.append, job) for worker in self._workers]))
            for worker in self._workers:
                # It is open when the thread woke up too late for the last run and has not come back yet.
                if worker.start.locked():
                    worker.start.release()
            self._call(steps, count, 0, self.shares, self._sync_address)
            for worker in self._workers:
                if not worker.cancel():
                    worker.done.acquire()
        except BaseException:
            self._settle()
            raise

    def _settle(self) -> None:
        """After an interrupt: waits until the threads are idle and puts the locks back, whatever else arrives.

        Threads that have taken the job finish it, also without the calling one.
        """
        settled = False
        while not settled:
            try:
                given = self._workers[: len(self._log)]
                for worker in given:
                    worker.cancel()
                while not all(worker.is_over(self._generation) for worker in given):
                    time.sleep(0.0002)
                for worker in given:
                    worker.done.acquire(False)
                settled = True
            except BaseException as error:
                # The interrupt that brought us here is raised again by the caller; further ones add nothing.
                del error

    def close(self) -> None:
        """Ends the threads. A later run starts new ones."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._workers = []
