"""Threads that run one native step list together (SPMD), called and awaited in native code.

The calling thread is thread 0. The others, the helpers, stay in native code from the first run on: between runs they
poll for a moment, then they block. A thread that has not woken up when the others are done is not waited for: they have
done its share.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import threading
import weakref
from typing import Any, Callable, FrozenSet, List, Optional, Sequence, Set, Tuple

import numpy as np

from dhc_runtime.errors import ResourceError, UsageError

__all__ = ["MAX_THREADS", "ThreadPool", "default_threads", "pinned_cpus", "shares_per_thread"]

MAX_THREADS = 1024
_STACK_BYTES = 8 << 20
# The layout of `Sync`, in words (see the code generator of the executor).
_MODES, _SPIN, _WORKERS, _WAITED, _SHARES, _SHARE_WORDS = 0, 3, 4, 7, 16, 8
_RUN, _ALONE, _PREPARE, _DISMISS = 0, -1, -2, -3
# About ten microseconds, the usual difference between threads at a barrier. Longer spinning gains nothing on an idle
# machine, and on a busy one it holds a CPU that the awaited thread may need.
_SPINS = 500
_HYBRID_SHARES = 4
_ENTRY = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


def default_threads() -> int:
    """The number of CPUs that this process may use."""
    try:
        return max(len(os.sched_getaffinity(0)), 1)
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _usable_cpus() -> FrozenSet[int]:
    """The CPUs of the process; empty where the system has no such notion."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return frozenset()


def _cpu_teller() -> Callable[[], int]:
    """The C library's function that names the CPU of the calling thread; a constant where there is none."""
    try:
        return ctypes.PyDLL(None).sched_getcpu  # it is too quick for the GIL to be given up
    except (AttributeError, OSError):
        return lambda: -1


_current_cpu = _cpu_teller()


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


def _serve(call: Callable[..., int], tid: int, shares: int, sync: int, cpu: Optional[int]) -> None:
    """The life of a helper: it is in native code until the team is dismissed."""
    if cpu is not None:
        _move_to({cpu})
    call(None, 0, tid, shares, sync)


def _move_to(cpus: Set[int]) -> None:
    """Puts the calling thread on CPUs; where the system does not allow that any more, it stays where it is."""
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return


def _stop(threads: List[threading.Thread], dismiss: Callable[[], int], pid: int, keepalive: Any) -> None:
    """Ends the helpers. ``keepalive`` (the code that they run) lives until they are gone."""
    if os.getpid() != pid:
        return  # the threads stayed in the parent process
    dismiss()
    for thread in threads:
        # One that was never started has nothing to join, and a thread cannot wait for itself.
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(10.0)
    del threads[:]


class ThreadPool:
    """Runs native step lists on a fixed number of threads.

    Args:
        entry: address of ``dhc_team``.
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
        self._call: Callable[..., int] = _ENTRY(entry)
        self._keepalive = keepalive
        self.shares = self.threads * (shares_per_thread() if self.threads > 1 else 1)
        self._cpus = pinned_cpus(pin, self.threads)
        self._usable = _usable_cpus()
        self._caller_cpu = -1
        # 128-byte aligned, so that the parts that the code spreads over cache lines stay apart.
        words = _SHARES + _SHARE_WORDS * (self.shares + self.threads)
        raw = np.zeros(words + 16, dtype=np.int64)
        skip = (-int(raw.__array_interface__["data"][0]) % 128) // 8
        self._sync = raw[skip : skip + words]
        self._sync_address = int(self._sync.__array_interface__["data"][0])
        # With more threads than CPUs a spinning thread only keeps the one it waits for from running.
        self._sync[_SPIN] = _SPINS if self.threads <= default_threads() else 0
        self._sync[_WORKERS] = self.threads
        self._sync[_MODES] = int(flush)
        self._threads: List[threading.Thread] = []
        self._pid = os.getpid()
        self._finalizer: Optional["weakref.finalize[..., ThreadPool]"] = None

    def _start(self) -> None:
        """Starts the threads, at the first run and after a fork (threads do not survive it)."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._pid = os.getpid()
        if self._call(None, 0, _PREPARE, self.shares, self._sync_address):
            raise ResourceError("The system has no semaphores for threads", hint="Load the artifact with threads=1")
        threads: List[threading.Thread] = []
        # Some systems give threads less stack than the main one has, and kernels keep tiles there.
        default_stack = threading.stack_size(_STACK_BYTES)
        try:
            self._start_threads(threads)
        except BaseException:
            self.close()
            raise
        finally:
            threading.stack_size(default_stack)
        self._threads = threads
        self._caller_cpu = -1

    def _start_threads(self, threads: List[threading.Thread]) -> None:
        dismiss = functools.partial(self._call, None, 0, _DISMISS, self.shares, self._sync_address)
        self._finalizer = weakref.finalize(self, _stop, threads, dismiss, self._pid, (self._keepalive, self._sync))
        for tid in range(1, self.threads):
            thread = threading.Thread(
                target=_serve,
                args=(
                    self._call,
                    tid,
                    self.shares,
                    self._sync_address,
                    None if self._cpus is None else self._cpus[tid],
                ),
                name="dhc-{}".format(tid),
                daemon=True,
            )
            threads.append(thread)
            try:
                thread.start()
            except RuntimeError as error:
                raise ResourceError(
                    "The system gives no more than {} threads".format(tid), tid, hint="Ask for fewer with threads="
                ) from error

    def _keep_apart(self) -> None:
        """Helpers stay off the calling thread's CPU: woken on a busy machine, they would be put right there."""
        here = _current_cpu()
        if here == self._caller_cpu or len(self._usable) < self.threads or here not in self._usable:
            return
        self._caller_cpu = here
        for thread in self._threads:
            try:
                os.sched_setaffinity(thread.native_id or 0, self._usable - {here})
            except OSError:
                return  # the system decides where its threads run

    def run(self, steps: int, count: int, serial: bool = False) -> int:
        """Runs a step list on all threads and waits for them.

        Args:
            steps: address of the list.
            count: its length.
            serial: run it on the calling thread alone (for work too small to be worth waking threads).

        Returns:
            0, or ``(index of the failed step + 1) << 8 | status``.
        """
        # A signal handler may raise (KeyboardInterrupt) between any two byte codes: a run is one call of native code,
        # before and after which nobody is at work.
        if serial or self.threads == 1:
            return self._call(steps, count, _ALONE, 1, self._sync_address)
        if not self._threads or self._pid != os.getpid():
            self._start()
        if self._cpus is None:
            self._keep_apart()
            return self._call(steps, count, _RUN, self.shares, self._sync_address)
        before = os.sched_getaffinity(0)
        try:
            _move_to({self._cpus[0]})
            return self._call(steps, count, _RUN, self.shares, self._sync_address)
        finally:
            _move_to(before)

    @property
    def waited(self) -> float:
        """For how many seconds of the last run on all threads the calling thread slept, waiting for others."""
        return float(self._sync[_WAITED]) * 1e-9

    def close(self) -> None:
        """Ends the threads. A later run starts new ones."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._threads = []
