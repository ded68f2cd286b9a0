"""The decoding process: reads one file after the other for the program that has started it.

It may not write files, open more than a few, or take more memory or time than each request allows. A file that
brings it down costs one file: the program starts another process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dhc.ecvl_ops.io import wire
from dhc.ecvl_ops.io.limits import Limits
from dhc.ecvl_ops.io.reading import probe_here, read_here
from dhc.ecvl_ops.io.source import Source

_FILES = 64


def main(descriptor: str) -> None:
    """Serves requests on a connected socket until it is closed."""
    connection = socket.socket(fileno=int(descriptor))
    _confine()
    while True:
        try:
            message, payload = wire.receive(connection, 1 << 40)
        except (ConnectionError, OSError):
            return
        content = bytes(wire.receive_into(connection, bytearray(payload))) if payload else None
        try:
            fields, values = _answer(message, content)
        except Exception as error:  # every library raises what it likes; the program gets one clear error
            fields, values = {"error": wire.error_fields(error)}, b""
        with contextlib.suppress(ConnectionError, OSError):
            wire.send(connection, fields, values)
            continue
        return


def _answer(message: dict[str, Any], content: bytes | None) -> tuple[dict[str, Any], Any]:
    request, limits = wire.parse_request(message)
    _bound(limits)
    name = str(message["name"])
    source = Source(name, content=content) if content is not None else Source(name, path=Path(str(message["path"])))
    if message["task"] == "probe":
        return {"header": wire.header_fields(probe_here(source, limits))}, b""
    image = read_here(source, limits, request)
    values = np.ascontiguousarray(image.values)
    return {"image": wire.image_fields(image)}, values.reshape(-1).view(np.uint8).data


def _confine() -> None:
    """What no file needs is taken away for good."""
    for what, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _FILES)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def _bound(limits: Limits) -> None:
    """Memory and processor time of the next file, on top of what is used already."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + limits.seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    taken = _address_space()
    if taken:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (taken + limits.memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _address_space() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    main(sys.argv[1])
