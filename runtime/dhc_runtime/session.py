"""Loading an artifact and running it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from dhc_runtime import cpu_features, safetensors
from dhc_runtime.code_archive import CodeArchive
from dhc_runtime.code_object import CodeObject
from dhc_runtime.container import ArtifactReader, Source, load_json
from dhc_runtime.dims import format_expression
from dhc_runtime.direct_run import DirectRun
from dhc_runtime.dtypes import itemsize, numpy_dtype
from dhc_runtime.errors import ArtifactError, DeviceError, DhcError, ShapeError, UsageError
from dhc_runtime.executor import Context, Executor, Memory, byte_count
from dhc_runtime.feed import Feed, prepare_output, raise_problems
from dhc_runtime.memory import Block, Budget, FixedTarget
from dhc_runtime.native_segment import Recorder
from dhc_runtime.program import Port, parse_program
from dhc_runtime.thread_pool import MAX_THREADS, ThreadPool
from dhc_runtime.tiling import Tiles, parse_tiles
from dhc_runtime.trace import StepTime, chrome_trace

__all__ = ["Session", "TensorInfo", "load"]

_PLAN_FORMAT = 1
THREADS = "threads__"
"""Symbol of every plan: into how many shares steps are cut, as a rule the number of threads. Kernels size the memory of
each share by it."""
_TRIM_BYTES = 1 << 20
_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


class TensorInfo(NamedTuple):
    """An input or output: name, element type (such as ``f32``), and shape, where a text such as ``N`` is any size."""

    name: str
    dtype: str
    shape: Tuple[Union[int, str], ...]


def _infos(ports: Sequence[Port]) -> Tuple[TensorInfo, ...]:
    return tuple(
        [
            TensorInfo(
                port.name,
                port.dtype,
                tuple([dim if isinstance(dim, int) else format_expression(dim) for dim in port.shape]),
            )
            for port in ports
        ]
    )


def _check_limit(limit: Any) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit <= 0):
        raise UsageError("max_memory must be a positive number of bytes, not {!r}".format(limit))


def load(
    path: Source,
    device: Optional[str] = None,
    threads: Optional[int] = None,
    *,
    profile: bool = False,
    max_memory: Optional[int] = None,
    pin: "Union[bool, Sequence[int]]" = False,
    denormals: str = "keep",
) -> "Session":
    """Loads an artifact. Nothing is compiled: the code is in it.

    Args:
        path: path, bytes, or binary file object of an artifact.
        device: which of the artifact's devices to use; None for ``cpu``.
        threads: number of threads; None for the number that the artifact names, or else all CPUs that the process may
            use. Results do not depend on it.
        profile: measure every step of every run (`Session.profile`); runs take a little longer.
        max_memory: bytes that the session may hold for intermediate and output values; None for 80 % of the machine's
            memory.
        pin: keep each thread on a CPU of its own: True for the CPUs of the process in order, or a list of CPUs, one for
            each thread. The calling thread is moved there for the time of a run.
        denormals: "keep" computes with numbers below 1.2e-38 as IEEE 754 says; "flush" reads and writes them as zero,
            for networks in which many activations fade away and processors that are slow with such numbers.

    Raises:
        ArtifactError: the artifact is damaged or made for another machine.
        DeviceError: the artifact holds no code for the device.
        UsageError: the file cannot be read, or an argument is wrong.
    """
    return Session(
        path, device=device, threads=threads, profile=profile, max_memory=max_memory, pin=pin, denormals=denormals
    )


class Session:
    """A loaded artifact, ready to run. Made by `load`; a context manager.

    Runs from several threads are allowed and happen one after the other: a run uses all threads of the session. After
    ``os.fork`` the child may use the session too (its threads are started again there), unless the fork happened during
    a run.

    Attributes:
        name: name of the model.
        inputs: what a run takes.
        outputs: what a run gives.
        device: the device in use.
        threads: number of threads.
        manifest: what the artifact says of itself.
    """

    def __init__(
        self,
        path: Source,
        device: Optional[str] = None,
        threads: Optional[int] = None,
        profile: bool = False,
        max_memory: Optional[int] = None,
        pin: "Union[bool, Sequence[int]]" = False,
        denormals: str = "keep",
    ) -> None:
        _check_limit(max_memory)
        if denormals not in ("keep", "flush"):
            raise UsageError("denormals must be 'keep' or 'flush', not {!r}".format(denormals))
        self._reader = ArtifactReader(path)
        try:
            self.manifest: Mapping[str, Any] = self._reader.manifest
            self._where = self._reader.name
            self.name = str(self.manifest.get("name") or os.path.basename(self._where))
            self.device = "cpu" if device is None else device
            plan = load_json(self._reader.member("plan.json"), "plan of " + self._where)
            if plan.get("format") != _PLAN_FORMAT:
                raise ArtifactError(
                    "The plan has format {!r} and this runtime reads {}".format(plan.get("format"), _PLAN_FORMAT),
                    self._where,
                )
            self._program = parse_program(plan.get("program"), "plan of " + self._where)
            self._tiles: Optional[Tiles] = None
            self._taken, self._returned = self._program.inputs, self._program.outputs
            if "tiles" in plan:
                tiles = self._tiles = parse_tiles(plan["tiles"], self._program, "plan of " + self._where)
                self._taken = tiles.ports(self._program.inputs, tiles.inputs)
                self._returned = tiles.ports(self._program.outputs, tiles.outputs)
            self._code = self._load_code()
            entry, count = self._code.address("dhc_team"), self._thread_count(threads)
            pool = ThreadPool(entry, count, self._code, pin, denormals == "flush")
            self.threads = pool.threads
            self._budget = Budget(max_memory, self.name)
            self._constants: "List[np.ndarray[Any, Any]]" = []
            self._context = Context(pool, self._code.address, self._map_constants(), self._budget)
            self._given = {THREADS: pool.shares}
            self._executor = Executor(self._program, self._context, frozenset(self._given), "plan of " + self._where)
        except BaseException:
            self._reader.close()
            raise
        self._feed = Feed(self._taken, self.name, self._budget)
        self.inputs = _infos(self._taken)
        self.outputs = _infos(self._returned)
        self._profiling = bool(profile)
        self._direct: Optional[DirectRun] = None
        self._last_shapes: List[Tuple[int, ...]] = []
        self._steps: List[StepTime] = []
        self._closed = False
        self._lock = threading.Lock()
        _sessions.add(self)

    def _thread_count(self, threads: Optional[int]) -> Optional[int]:
        """What the caller asked for, else what the artifact was compiled for, else None."""
        preferred = self.manifest.get("threads")
        if threads is None and type(preferred) is int and 1 <= preferred <= MAX_THREADS:
            return preferred
        return threads

    def _load_code(self) -> Union[CodeArchive, CodeObject]:
        devices = self.manifest.get("devices")
        if not isinstance(devices, dict) or self.device not in devices:
            offered = ", ".join(sorted(devices)) if isinstance(devices, dict) and devices else "none"
            raise DeviceError(
                "The artifact holds no code for the device {!r}; it has: {}".format(self.device, offered),
                self._where,
                "Choose one of these, or compile the model again with --target {}".format(self.device),
            )
        if self.device != "cpu":
            raise DeviceError(
                "This runtime has no executor for the device {!r}".format(self.device), self._where, "Use device='cpu'"
            )
        record = devices[self.device]
        if not isinstance(record, dict):
            raise ArtifactError("The manifest describes the device wrongly", self._where)
        arch, features, member = record.get("arch"), record.get("features", []), record.get("object")
        lists = isinstance(features, list) and all(isinstance(feature, str) for feature in features)
        if not isinstance(arch, str) or not isinstance(member, str) or not lists:
            raise ArtifactError("The manifest describes the device wrongly", self._where)
        cpu_features.check(features, arch, self._where)
        place = "{} of {}".format(member, self._where)
        if member.endswith(".a"):
            return CodeArchive(self._reader.member(member), place)
        return CodeObject(self._reader.member(member), place)

    def _map_constants(self) -> Dict[str, Tuple[int, int]]:
        if "weights.safetensors" not in self._reader.members:
            return {}
        data = self._reader.member("weights.safetensors")
        found: Dict[str, Tuple[int, int]] = {}
        whole = np.frombuffer(data, dtype=np.uint8)
        self._constants.append(whole)
        base = int(whole.__array_interface__["data"][0])
        for name, spec in safetensors.parse(data).items():
            found[name] = (base + spec.start, spec.stop - spec.start)
        return found

    # ------------------------------------------------------------------------------------------------ running

    def run(
        self,
        *inputs: Any,
        outputs: "Optional[Mapping[str, np.ndarray[Any, Any]]]" = None,
        profile: Optional[bool] = None,
    ) -> "Dict[str, np.ndarray[Any, Any]]":
        """Runs the model.

        Input arrays that are contiguous and aligned are read in place. bf16 (and 8-bit floats) are arrays of
        ``ml_dtypes`` if that package is installed, otherwise the bits as unsigned integers; i4 and u4 are int8 and
        uint8.

        Args:
            *inputs: a dict of arrays by input name, or one array for each input in order.
            outputs: arrays, by output name, into which results shall be written; others are allocated.
            profile: measure the steps of this run; None for what `load` was told.

        Returns:
            The output arrays by name, in the order of `outputs`.

        Raises:
            UsageError: inputs are missing or unknown, or the session is closed.
            TypeMismatchError: a dtype is wrong.
            ShapeError: a shape is wrong.
            ModelError: a value is not allowed, such as an index out of bounds.
            ResourceError: more memory would be needed than allowed.
        """
        if self._direct is not None and outputs is None and not profile and len(inputs) == 1:
            answers = self._run_directly(inputs[0])
            if answers is not None:
                return answers
        arrays = self._feed.collect(inputs)
        offered = self._offered(outputs, arrays)
        with self._lock:
            if self._closed:
                raise UsageError("The session is closed", self.name, "Load the artifact again")
            profile = self._profiling if profile is None else profile
            return (self._run if self._tiles is None else self._run_patches)(arrays, offered, profile)

    def _run_directly(self, given: Any) -> "Optional[Dict[str, np.ndarray[Any, Any]]]":
        """The answers of a run that is like the last one; None if it is not."""
        with self._lock:
            if self._closed or self._direct is None or self._profiling or type(given) is not dict:
                return None
            try:
                return self._direct.run(given)
            except DhcError as error:
                if error.where is None:
                    error.where = self.name
                raise

    def __call__(self, *inputs: Any) -> Any:
        """Runs the model and returns its output, or a tuple of them if there are several."""
        results = tuple(self.run(*inputs).values())
        return results[0] if len(results) == 1 else results

    def _offered(
        self, outputs: "Optional[Mapping[str, np.ndarray[Any, Any]]]", arrays: "List[np.ndarray[Any, Any]]"
    ) -> "Dict[int, Tuple[np.ndarray[Any, Any], bool]]":
        offered: "Dict[int, Tuple[np.ndarray[Any, Any], bool]]" = {}
        if not outputs:
            return offered
        numbers = {port.name: number for number, port in enumerate(self._returned)}
        unknown = ["output {!r} is unknown".format(name) for name in outputs if name not in numbers]
        raise_problems(UsageError, unknown, self.name, "Session.outputs lists what the model gives")
        others = list(arrays)
        for name, array in outputs.items():
            port = self._returned[numbers[name]]
            offered[numbers[name]] = (array, prepare_output(name, array, port, others, self.name))
            others.append(array)
        return offered

    def _run(
        self,
        arrays: "List[np.ndarray[Any, Any]]",
        offered: "Dict[int, Tuple[np.ndarray[Any, Any], bool]]",
        profile: bool,
    ) -> "Dict[str, np.ndarray[Any, Any]]":
        memories = [Memory(int(array.__array_interface__["data"][0]), array.shape) for array in arrays]
        targets: List[Any] = []
        for number, port in enumerate(self._program.outputs):
            array, direct = offered.get(number, (None, False))
            if array is not None and direct:
                address = int(array.__array_interface__["data"][0])
                targets.append(FixedTarget(address, array.nbytes, "output {!r}".format(port.name)))
            else:
                targets.append(Block(self._budget))
        recorder = Recorder([], time.perf_counter()) if profile else None
        self._context.recorder = recorder
        try:
            results = self._executor.execute(self._given, memories, targets)
        except DhcError as error:
            if error.where is None:
                error.where = self.name
            raise
        finally:
            self._context.recorder = None
            blocks = [(target, target.data) for target in targets if isinstance(target, Block)]
            for target, _ in blocks:
                target.release()
        if recorder is not None:
            self._steps = recorder.steps
        data = {id(target): block for target, block in blocks}
        answers: "Dict[str, np.ndarray[Any, Any]]" = {}
        for number, (port, target, value) in enumerate(zip(self._program.outputs, targets, results)):
            found = self._array(port, data[id(target)], value) if isinstance(target, Block) else None
            if number in offered:
                self._fill(port, offered[number][0], found, value)
                found = offered[number][0]
            if found is None:
                raise ArtifactError("The output {!r} was not made".format(port.name), self._where)
            answers[port.name] = found
        shapes = [array.shape for array in arrays]
        # Where sizes change from run to run the short way would not be taken.
        again, self._last_shapes = shapes == self._last_shapes, shapes
        if self._tiles is None:
            self._direct = self._executor.direct(arrays, list(answers.values())) if again and not offered else None
        return answers

    def _run_patches(
        self,
        arrays: "List[np.ndarray[Any, Any]]",
        offered: "Dict[int, Tuple[np.ndarray[Any, Any], bool]]",
        profile: bool,
    ) -> "Dict[str, np.ndarray[Any, Any]]":
        assert self._tiles is not None
        steps: List[StepTime] = []
        blocks = [Block(self._budget) for _ in self._returned]
        results: "List[np.ndarray[Any, Any]]" = []

        def compute(parts: "List[np.ndarray[Any, Any]]") -> "List[np.ndarray[Any, Any]]":
            found = list(self._run(parts, {}, profile).values())
            steps.extend(self._steps if profile else ())
            return found

        try:
            for number, (port, side, block) in enumerate(zip(self._returned, self._tiles.outputs, blocks)):
                given, direct = offered.get(number, (None, False))
                if given is not None and direct:
                    results.append(given)
                    continue
                size = byte_count(side.shape, port.dtype)
                block.ensure(size)
                results.append(self._array(port, block.data, Memory(block.address, side.shape)))
            self._tiles.run(arrays, results, compute)
        finally:
            for block in blocks:
                block.release()
        if profile:
            self._steps = steps
        answers: "Dict[str, np.ndarray[Any, Any]]" = {}
        for number, (port, found) in enumerate(zip(self._returned, results)):
            given, direct = offered.get(number, (None, False))
            if given is not None and not direct:
                self._fill(port, given, found, Memory(0, found.shape))
            answers[port.name] = found if given is None else given
        return answers

    def _array(self, port: Port, data: "Optional[np.ndarray[Any, Any]]", value: Memory) -> "np.ndarray[Any, Any]":
        size = byte_count(value.shape, port.dtype)
        if data is None or size > data.size:
            raise ArtifactError("The output {!r} is larger than its buffer".format(port.name), self._where)
        array = data[:size].view(numpy_dtype(port.dtype)).reshape(value.shape)
        # A result much smaller than its upper bound must not hold the memory of the bound.
        return array.copy() if data.size - size > max(_TRIM_BYTES, size) else array

    def _fill(
        self, port: Port, given: "np.ndarray[Any, Any]", found: "Optional[np.ndarray[Any, Any]]", value: Memory
    ) -> None:
        if given.shape != value.shape:
            raise ShapeError(
                "output {!r} has the shape {} and the array given for it {}".format(
                    port.name, list(value.shape), list(given.shape)
                ),
                self.name,
                "Give an array of that shape, or none",
            )
        if found is not None:
            storage = found.view(given.dtype) if found.dtype.itemsize == itemsize(port.dtype) else found
            np.copyto(given, storage)

    # ------------------------------------------------------------------------------------------------ looking and
    # ending

    def profile(self) -> List[StepTime]:
        """The steps of the last profiled run, in order, with their times."""
        return list(self._steps)

    def trace(self) -> Dict[str, Any]:
        """The last profiled run as a trace: write it as JSON and open it in https://ui.perfetto.dev."""
        return chrome_trace(self._steps, self.threads)

    @property
    def memory(self) -> int:
        """Bytes that the session holds for intermediate values now."""
        return self._budget.held

    def release_memory(self) -> None:
        """Frees the memory for intermediate values; the next run takes it again."""
        with self._lock:
            self._executor.release()

    def close(self) -> None:
        """Ends the threads and frees the memory. Output arrays stay valid."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._context.pool.close()
            self._executor.release()
            self._reader.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        def show(infos: Sequence[TensorInfo]) -> str:
            return ", ".join("{}: {}[{}]".format(i.name, i.dtype, ", ".join(map(str, i.shape))) for i in infos)

        return "<Session {} on {} ({} threads): {} -> {}>".format(
            self.name, self.device, self.threads, show(self.inputs), show(self.outputs)
        )


def _after_fork_in_child() -> None:
    # Another thread of the parent may have held a lock at the moment of the fork; it does not exist here to free it.
    for session in list(_sessions):
        session._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
