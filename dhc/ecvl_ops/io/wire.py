"""How a program and its decoding process talk: a line of JSON with a length before it, then the samples.

Nothing that arrives is trusted: lengths, shapes and names are checked before memory is taken for them.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhc_runtime import errors
from dhc_runtime.errors import DhcError, ModelError, ResourceError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits

_MOST_TEXT = 1 << 22
_CLASSES = (
    "ModelError",
    "UnsupportedError",
    "ResourceError",
    "MissingExtraError",
    "UsageError",
    "ShapeError",
    "DhcError",
)


def send(connection: socket.socket, message: Mapping[str, Any], payload: Any = b"") -> None:
    """Sends a message and the bytes that belong to it."""
    text = json.dumps(message).encode()
    connection.sendall(struct.pack("<IQ", len(text), memoryview(payload).nbytes) + text)
    if memoryview(payload).nbytes:
        connection.sendall(payload)


def receive(connection: socket.socket, most: int) -> tuple[dict[str, Any], int]:
    """A message and how many bytes follow.

    Raises:
        ConnectionError: the other side is gone, or sent something else.
    """
    text_size, payload = struct.unpack("<IQ", receive_into(connection, bytearray(12)))
    if text_size > _MOST_TEXT or payload > most:
        raise ConnectionError(f"a message of {text_size} and {payload} bytes")
    message = json.loads(bytes(receive_into(connection, bytearray(text_size))))
    if not isinstance(message, dict):
        raise ConnectionError("a message that is no object")
    return message, payload


def receive_into(connection: socket.socket, buffer: Any) -> Any:
    """Fills a buffer.

    Raises:
        ConnectionError: the other side is gone.
    """
    view = memoryview(buffer).cast("B")
    filled = 0
    while filled < len(view):
        got = connection.recv_into(view[filled:], min(len(view) - filled, 1 << 20))
        if not got:
            raise ConnectionError("the decoding process has ended")
        filled += got
    return buffer


# ---- what is said ----------------------------------------------------------------------------------------------------


def request_fields(request: Request, limits: Limits) -> dict[str, Any]:
    """A request as JSON."""
    return {
        "request": {**vars(request), "region": {k: list(v) for k, v in request.region.items()}},
        "limits": vars(limits),
    }


def parse_request(message: Mapping[str, Any]) -> tuple[Request, Limits]:
    """The request of a message."""
    fields = dict(message["request"])
    fields["region"] = {k: (int(v[0]), int(v[1])) for k, v in fields["region"].items()}
    return Request(**fields), Limits(**message["limits"])


def image_fields(image: Image) -> dict[str, Any]:
    """An image as JSON, its samples apart."""
    return {
        "dtype": image.values.dtype.name,
        "shape": list(image.values.shape),
        "layout": image.layout,
        "color": image.color,
        "spacing": list(image.spacing),
        "origin": list(image.origin),
        "orientation": list(image.orientation),
        "unit": image.unit,
        "metadata": dict(image.metadata),
    }


def receive_image(connection: socket.socket, fields: Mapping[str, Any], payload: int, limits: Limits) -> Image:
    """The image of a reply.

    Raises:
        ConnectionError: what it says of itself does not fit together.
    """
    dtype = np.dtype(str(fields["dtype"]))
    shape = tuple(int(n) for n in fields["shape"])
    if dtype.hasobject or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != payload:
        raise ConnectionError(f"samples of {shape} and {dtype} in {payload} bytes")
    values = np.empty(shape, dtype)
    if payload:
        receive_into(connection, values.reshape(-1).view(np.uint8))
    return Image(
        values,
        str(fields["layout"]),
        str(fields["color"]),
        tuple(map(float, fields["spacing"])),
        tuple(map(float, fields["origin"])),
        tuple(map(float, fields["orientation"])),
        str(fields["unit"]),
        dict(fields["metadata"]),
    )


def header_fields(header: Header) -> dict[str, Any]:
    """A header as JSON."""
    return {**vars(header), "metadata": dict(header.metadata)}


def parse_header(fields: Mapping[str, Any]) -> Header:
    """The header of a reply."""
    given = dict(fields)
    for name in ("shape", "spacing"):
        given[name] = tuple(given[name])
    given["levels"] = tuple((int(h), int(w)) for h, w in given["levels"])
    return Header(**given)


def error_fields(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    if isinstance(error, MemoryError):
        error = ResourceError("decoding needs more memory than the decoding process may take")
    if not isinstance(error, DhcError):
        error = ModelError(f"the file cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    fields = {"class": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
    if isinstance(error, errors.MissingExtraError):
        fields |= {"extra": error.extra, "what": error.what}
    return fields


def parse_error(fields: Mapping[str, Any]) -> DhcError:
    """The error of a reply."""
    name = str(fields.get("class"))
    message, where, hint = str(fields.get("message")), fields.get("where"), fields.get("hint")
    if name == "MissingExtraError":
        return errors.MissingExtraError(str(fields.get("extra")), str(fields.get("what")))
    if name == "UnsupportedError":
        return errors.UnsupportedError(message, where=where, hint=hint)
    if name == "ResourceError":
        return ResourceError(message, where=where, hint=hint)
    cls = getattr(errors, name) if name in _CLASSES else ModelError
    error: DhcError = cls(message, where, hint)
    return error
