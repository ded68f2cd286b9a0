"""Mutants of ONNX models and worker processes that survive whatever they do.

Mutant ``i`` depends on ``i`` alone. Half of the mutants have damaged bytes, half are well-formed protobuf with
edited fields, which come further into the importer.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

MEMORY_BUDGET = 200 * 2**20
"""How far one mutant may raise the high-water mark of its process."""
ADDRESS_SPACE = 2 * 2**30
"""What a worker may map beyond what it had at its start; larger requests fail as on a full machine."""
CPU_SECONDS = 1.0
STUCK_SECONDS = 60.0
"""A worker that is stuck in compiled code, where no signal handler runs, is killed after this much CPU time (or ten
times as long without any, which is a deadlock)."""
LARGEST_ORIGINAL = 6000
EVALUATE_EVERY = 4
COMPILE_EVERY = 400
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, -(2**31), 2**31 - 1, 2**31, 2**40, -(2**63), 2**63 - 1)


@lru_cache(maxsize=1)
def originals() -> tuple[bytes, ...]:
    """Small models: the node cases of the onnx package and networks with functions, branches and shape arithmetic."""
    from tests.frontend.onnx.hostile_models import branch_network, shape_network, small_network
    from tests.frontend.onnx.node_cases import node_cases

    found = [case.model.SerializeToString() for _, case in sorted(node_cases().items())]
    found = [data for data in found if len(data) <= LARGEST_ORIGINAL]
    own = [m.SerializeToString() for m in (small_network(), shape_network(), branch_network())]
    return tuple(found + own * 40)


def mutant(index: int) -> bytes:
    """The mutant of a number."""
    rng = random.Random(index)
    models = originals()
    data = rng.choice(models)
    if rng.random() < 0.5:
        return _damaged(bytearray(data), rng, models)
    try:
        return _edited(data, rng)
    except (ValueError, TypeError, OverflowError):  # protobuf refuses some values; the bytes serve then
        return _damaged(bytearray(data), rng, models)


def _damaged(data: bytearray, rng: random.Random, models: Sequence[bytes]) -> bytes:
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        length = rng.randint(1, 16)
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            other = rng.choice(models)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif kind == 5:
            data[at : at + 1] = _varint(rng.choice(NUMBERS) & (2**64 - 1))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append((value & 127) | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _edited(data: bytes, rng: random.Random) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.randint(1, 3)):
        _edit_message(model, rng)
    return model.SerializeToString()


def _edit_message(message: Any, rng: random.Random) -> None:
    """Walks down to a random field and changes it."""
    while True:
        present = message.ListFields()
        if not present:
            return
        descriptor, value = rng.choice(present)
        name = descriptor.name
        if descriptor.message_type is not None:
            repeated = hasattr(value, "__len__")
            if repeated and rng.random() < 0.25:
                _edit_list(value, rng)
                return
            message = value[rng.randrange(len(value))] if repeated else value
            if rng.random() < 0.05:
                message.Clear()
                return
            continue
        if hasattr(value, "append"):
            _edit_scalars(value, descriptor, rng)
        elif rng.random() < 0.15:
            message.ClearField(name)
        else:
            setattr(message, name, _scalar(value, rng))
        return


def _edit_list(values: Any, rng: random.Random) -> None:
    i, j = rng.randrange(len(values)), rng.randrange(len(values))
    kind = rng.randrange(3)
    if kind == 0:
        del values[i]
    elif kind == 1:
        values.add().CopyFrom(values[i])
    else:
        kept = values[i].SerializeToString()
        values[i].CopyFrom(values[j])
        values[j].ParseFromString(kept)


def _edit_scalars(values: Any, descriptor: Any, rng: random.Random) -> None:
    i = rng.randrange(len(values))
    kind = rng.randrange(4)
    if kind == 0:
        del values[i]
    elif kind == 1:
        values.append(values[rng.randrange(len(values))])
    elif kind == 2:
        values[i] = values[rng.randrange(len(values))]
    else:
        values[i] = _scalar(values[i], rng)


def _scalar(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int):
        return rng.choice((*NUMBERS, value + 1, value - 1, -value, value * 2))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38, value / 2, 3e-45))
    if isinstance(value, bytes):
        return rng.choice((b"", value[: len(value) // 2], value * 2, value[::-1]))
    return rng.choice(("", value + "x", "x", "y", value[:1], "Loop", "Reshape", "Conv", "a\0b", "é", value * 50))


class CpuTimeError(BaseException):
    """A mutant took too much CPU time; not an Exception, so that nothing on the way swallows it."""


@dataclass
class Report:
    """What became of many mutants.

    Attributes:
        outcomes: counts by ``result`` or the class of the error.
        findings: (number of the mutant, what is wrong with it).
        seconds: taken by all.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


def attempt(data: bytes, index: int) -> str:
    """Imports a mutant, evaluates some of them and compiles a few; ``result`` or the name of dhc's error.

    Raises:
        Exception: anything but a DhcError is a finding.
    """
    from dhc.errors import DhcError
    from dhc.frontend.onnx import load_onnx
    from dhc.ir.symbols import free_symbols, substitute
    from dhc.ir.types import TensorType

    try:
        graph = load_onnx(data)
        if index % EVALUATE_EVERY:
            return "result"
        if not all(isinstance(v.type, TensorType) and v.dtype.kind in "fiub" for v in graph.inputs):
            return "result"
        sizes = {s: 2 for v in graph.inputs for d in v.shape for s in free_symbols(d)}
        shapes = [tuple(int(substitute(d, sizes)) for d in v.shape) for v in graph.inputs]
        if sum(math.prod(s) for s in shapes) > 10_000:
            return "result"
        feed = {v.name: np.ones(s, v.dtype.numpy) for v, s in zip(graph.inputs, shapes)}
        with np.errstate(all="ignore"):
            if index % COMPILE_EVERY == 0:
                _compile_and_run(graph, feed)
                return "compiled result"
            graph.evaluate(**feed)
        return "evaluated result"
    except DhcError as error:
        if not str(error):
            raise AssertionError("an error without a message") from error
        return type(error).__name__


def _compile_and_run(graph: Any, feed: dict[str, Any]) -> None:
    import dhc

    signal.setitimer(signal.ITIMER_PROF, 30)  # LLVM takes its time; the second is for reading and running
    session = dhc.compile(graph, cache=False).session()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    session.run(feed)


def _over_time(signum: int, frame: Any) -> None:
    raise CpuTimeError


def _mapped() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_time(pid: int | None) -> float:
    """Seconds of CPU time that a process has used; a busy machine does not count."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(
    make: Callable[[int], bytes],
    trial: Callable[[bytes, int], str] | None,
    start: int,
    stop: int,
    place: Any,
    channel: Any,
) -> None:
    """A worker: numbers from start to stop; the shared place says where it is."""
    limit = _mapped() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _over_time)
    outcomes: Counter[str] = Counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(start, stop):
        place.value = index
        finding = ""
        data = make(index)
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                outcomes[(trial or attempt)(data, index)] += 1
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except CpuTimeError:
            finding = "more than a second: " + "".join(traceback.format_exc(limit=-4))
        except Exception:  # everything but a DhcError is what this looks for
            finding = "".join(traceback.format_exc(limit=-4))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        # The first compilation loads LLVM and Numba, which belongs to no mutant.
        if grown * 1024 > MEMORY_BUDGET and (trial is not None or index % COMPILE_EVERY):
            finding = finding or f"memory grew by {grown // 1024} MiB"
        peak += grown
        if finding:
            channel.send((index, finding))
        if index % 256 == 255:
            channel.send(outcomes)
            outcomes = Counter()
    channel.send(outcomes)
    channel.send(None)
    os._exit(0)


def run_mutants(
    count: int,
    first: int = 0,
    workers: int = 1,
    make: Callable[[int], bytes] = mutant,
    trial: Callable[[bytes, int], str] | None = None,
) -> Report:
    """Tries mutants ``first`` to ``first + count`` in worker processes; dead and stuck ones are findings, too.

    Args:
        count: how many.
        first: number of the first.
        workers: processes.
        make: the mutant of a number.
        trial: what is tried with it, see `attempt`, which imports models.
    """
    if trial is None:
        import dhc.frontend.onnx.importer  # noqa: F401  (before the fork: every worker has it)
        from dhc.frontend.onnx.handlers import load_families

        originals()
        load_families()
    report = Report()
    began = time.monotonic()
    share = -(-count // workers)
    running = [
        _Worker(make, trial, first + k * share, min(first + (k + 1) * share, first + count), report)
        for k in range(workers)
    ]
    while any(not w.done for w in running):
        for worker in running:
            worker.look()
    report.findings.sort()
    report.seconds = time.monotonic() - began
    return report


class _Worker:
    """The parent's side: collects reports, starts a new process behind a mutant that killed one."""

    def __init__(
        self,
        make: Callable[[int], bytes],
        trial: Callable[[bytes, int], str] | None,
        start: int,
        stop: int,
        report: Report,
    ) -> None:
        self._make, self._trial, self._stop, self._report = make, trial, stop, report
        self.done = start >= stop
        if not self.done:
            self._begin(start)

    def _begin(self, start: int) -> None:
        context = multiprocessing.get_context("fork")
        self._place = context.Value(ctypes.c_int64, start, lock=False)
        self._channel, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(self._make, self._trial, start, self._stop, self._place, theirs)
        )
        self._process.start()
        theirs.close()
        self._seen, self._since, self._used = start, time.monotonic(), 0.0

    def look(self) -> None:
        if self.done:
            return
        try:
            while self._channel.poll(0.02):
                message = self._channel.recv()
                if message is None:
                    self._process.join()
                    self.done = True
                    return
                if isinstance(message, Counter):
                    self._report.outcomes.update(message)
                else:
                    self._report.findings.append(message)
        except EOFError:
            self._process.join()
            self._lost(f"the process died with {self._process.exitcode}")
            return
        if self._place.value != self._seen:
            self._seen, self._since, self._used = self._place.value, time.monotonic(), _cpu_time(self._process.pid)
        elif time.monotonic() - self._since > STUCK_SECONDS:
            used = _cpu_time(self._process.pid) - self._used
            if used > STUCK_SECONDS or time.monotonic() - self._since > 10 * STUCK_SECONDS:
                self._process.kill()
                self._process.join()
                self._lost(f"stuck: {used:.0f} s of CPU time")

    def _lost(self, why: str) -> None:
        index = self._place.value
        self._report.findings.append((index, why))
        self._channel.close()
        if index + 1 < self._stop:
            self._begin(index + 1)
        else:
            self.done = True
