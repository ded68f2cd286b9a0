"""Decoding in a process of its own: what a hostile file breaks is not the program that reads it."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from dhc_runtime.errors import DeviceError, DhcError, ModelError, ResourceError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io import wire
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits
from dhc.ecvl_ops.io.source import Source

_START_SECONDS = 60.0
_GRACE_SECONDS = 2.0


class Decoder:
    """A decoding process; it is started on first use and again after a file has brought it down. One file at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._fresh = True

    def probe(self, source: Source, limits: Limits) -> Header:
        """The header of a file."""
        fields, _ = self._ask("probe", source, limits, Request())
        return wire.parse_header(fields["header"])

    def read(self, source: Source, limits: Limits, request: Request) -> Image:
        """The image of a file.

        Raises:
            ResourceError: it took longer, or more memory, than allowed.
            ModelError: the file is damaged.
        """
        _, image = self._ask("read", source, limits, request)
        assert image is not None
        return image

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _ask(self, task: str, source: Source, limits: Limits, request: Request) -> tuple[dict[str, Any], Image | None]:
        message = {
            "task": task,
            "name": source.name,
            "path": None if source.path is None else str(source.path.resolve()),
        }
        message |= wire.request_fields(request, limits)
        with self._lock:
            connection = self._started()
            # The first file of a process also pays for importing the libraries.
            connection.settimeout(limits.seconds + (_START_SECONDS if self._fresh else _GRACE_SECONDS))
            begun = time.monotonic()
            try:
                wire.send(connection, message, source.content or b"")
                fields, payload = wire.receive(connection, limits.values)
                image = wire.receive_image(connection, fields["image"], payload, limits) if "image" in fields else None
            except TimeoutError:
                self._end()
                raise ResourceError(
                    f"decoding took longer than {limits.seconds:g} s", int(limits.seconds), source.name,
                    "the file is damaged or hostile; raise `limits` if you trust it",
                ) from None  # fmt: skip
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise self._failure(error, source, limits, time.monotonic() - begun) from None
            except BaseException:
                self._end()  # an interrupt amid an answer: its rest must not be taken for the next one
                raise
            self._fresh = False
        if "error" in fields:
            reason = wire.parse_error(fields["error"])
            reason.where = reason.where or source.name
            raise reason
        return fields, image

    def _failure(self, error: Exception, source: Source, limits: Limits, seconds: float) -> DhcError:
        status = self._end()
        if status == -signal.SIGXCPU:
            return ResourceError(f"decoding took longer than {limits.seconds:g} s", int(limits.seconds), source.name)
        if status == -signal.SIGKILL:
            return ResourceError("decoding took too much memory: the system ended it", limits.memory, source.name)
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            return ModelError(f"decoding the file ended with {name}", source.name, "it is damaged or hostile")
        return ModelError(
            f"decoding the file failed after {seconds:.1f} s: {error}", source.name, "it is damaged or hostile"
        )

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is None and self._connection is not None:
            return self._connection
        self._end()
        here, there = socket.socketpair()
        # -c and not -m: the modules of the package are imported once, by their own names.
        command = [
            sys.executable,
            "-B",
            "-c",
            f"from dhc.ecvl_ops.io.worker import main; main({str(there.fileno())!r})",
        ]
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this Python, a fixed program
                command, pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            here.close()
            raise DeviceError(f"the decoding process cannot be started: {error.strerror}") from None
        finally:
            there.close()
        self._connection, self._fresh = here, True
        return here

    def _end(self) -> int | None:
        """Ends the process; its status if it had ended by itself."""
        status = None
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(0.2)
            if status is None:
                self._process.kill()
                self._process.wait()
        self._process = self._connection = None
        return status


_DECODERS: list[Decoder] = []
_POOL = threading.Lock()


@contextlib.contextmanager
def decoder() -> Any:
    """A decoder nobody else uses; afterwards it waits for the next file. Each thread that reads gets its own."""
    with _POOL:
        mine = _DECODERS.pop() if _DECODERS else Decoder()
    try:
        yield mine
    finally:
        with _POOL:
            _DECODERS.append(mine)


@atexit.register
def close() -> None:
    """Ends all decoding processes; the next file starts a new one."""
    with _POOL:
        for mine in _DECODERS:
            mine.close()
        _DECODERS.clear()


def _forget() -> None:
    """A forked process leaves its parent's decoders to the parent."""
    _DECODERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
