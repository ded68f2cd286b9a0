"""Threads that run one native step list together (SPMD): each enters native code once for each segment.

Idle threads block on a lock; nothing spins outside of native code. The calling thread is thread 0.
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
from typing import Any, Callable, Deque, List, Optional, Tuple

import numpy as np

from dhc_runtime.errors import ResourceError, UsageError

__all__ = ["MAX_THREADS", "ThreadPool", "default_threads"]

MAX_THREADS = 1024
_STACK_BYTES = 8 << 20
_SYNC_WORDS = 32
_STOP, _ERROR, _SPIN = 1, 2, 3
# About ten microseconds, the usual difference between threads at a barrier. Longer spinning gains nothing on an idle
# machine, and on a busy one it holds a CPU that the awaited thread may need.
_SPINS = 500
_ENTRY = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)
_invoke = operator.methodcaller("__call__")


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


class _Worker:
    """What one thread and its pool share. It refers to no pool, so that an abandoned pool can be collected."""

    __slots__ = ("done", "finished", "job", "start", "thread")

    def __init__(self) -> None:
        self.start = threading.Lock()
        self.done = threading.Lock()
        self.start.acquire()
        self.done.acquire()
        self.job: Optional[Tuple[int, int, int]] = None
        self.finished = 0
        self.thread: Optional[threading.Thread] = None


def _serve(worker: _Worker, call: Callable[..., int], tid: int, threads: int, sync: int) -> None:
    while True:
        worker.start.acquire()
        job = worker.job
        if job is None:
            return
        call(job[0], job[1], tid, threads, sync)
        worker.done.release()
        worker.finished = job[2]


def _stop(workers: List[_Worker], pid: int, keepalive: Any) -> None:
    """Ends the threads. ``keepalive`` (the code that they run) lives until they are gone."""
    if os.getpid() != pid:
        return  # the threads stayed in the parent process
    for worker in workers:
        worker.job = None
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

    Raises:
        UsageError: ``threads`` is no number from 1 to 1024.
    """

    def __init__(self, entry: int, threads: Optional[int], keepalive: Any) -> None:
        if threads is None:
            threads = min(default_threads(), MAX_THREADS)
        self.threads = _checked_count(threads)
        self._call = _ENTRY(entry)
        self._keepalive = keepalive
        # 128-byte aligned, so that the parts that the code spreads over cache lines stay apart.
        raw = np.zeros(_SYNC_WORDS + 16, dtype=np.int64)
        skip = (-int(raw.__array_interface__["data"][0]) % 128) // 8
        self._sync = raw[skip : skip + _SYNC_WORDS]
        self._sync_address = int(self._sync.__array_interface__["data"][0])
        # With more threads than CPUs a spinning thread only keeps the one it waits for from running.
        self._sync[_SPIN] = _SPINS if self.threads <= default_threads() else 0
        self._workers: List[_Worker] = []
        self._pid = os.getpid()
        self._generation = 0
        self._log: Deque[int] = deque()
        self._finalizer: Optional["weakref.finalize[..., ThreadPool]"] = None

    def _start(self) -> None:
        """Starts the threads, at the first run and after a fork (threads do not survive it)."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._pid = os.getpid()
        self._sync[:_SPIN] = 0
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
            worker = _Worker()
            worker.thread = threading.Thread(
                target=_serve,
                args=(worker, self._call, tid, self.threads, self._sync_address),
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
        self._generation += 1
        launches: List[Callable[[], Any]] = []
        for worker in self._workers:
            worker.job = (steps, count, self._generation)
            launches.append(worker.start.release)
        launches.append(functools.partial(self._call, steps, count, 0, self.threads, self._sync_address))
        self._log.clear()
        try:
            # Once a thread has started, this one must take part or the others wait at a barrier for ever. A signal
            # handler may raise (KeyboardInterrupt) between any two byte codes, so all launches happen inside one call
            # of compiled code.
            self._log.extend(map(_invoke, launches))
            for worker in self._workers:
                worker.done.acquire()
        except BaseException:
            self._settle()
            raise
        return int(self._sync[_ERROR])

    def _settle(self) -> None:
        """After an interrupt: waits until the threads are idle and puts the locks back, whatever else arrives."""
        settled = not self._log
        while not settled:
            try:
                while any(worker.finished != self._generation for worker in self._workers):
                    time.sleep(0.0002)
                for worker in self._workers:
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
