"""What a file may ask for. Declared sizes are checked against these before memory is taken for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, ResourceError

_DEFLATE_RATIO = 1032
"""No stream of zlib unpacks to more than this many times its size."""


@dataclass(frozen=True)
class Limits:
    """Bounds of reading one file.

    Attributes:
        values: bytes of decoded samples.
        plane: pixels of one image or slice.
        file: bytes of the file.
        memory: bytes that the decoding process may take on top of what it starts with.
        seconds: for one file, of the processor and by the clock.
        axes: number of axes.
    """

    values: int = 4 << 30
    plane: int = 1 << 27
    file: int = 16 << 30
    memory: int = 10 << 30
    seconds: float = 120.0
    axes: int = 8


DEFAULT = Limits()


def check_file(size: int, limits: Limits, where: str) -> None:
    """Refuses files that are empty or too long.

    Raises:
        ModelError: it is empty.
        ResourceError: it is longer than allowed.
    """
    if size <= 0:
        raise ModelError("the file is empty", where)
    if size > limits.file:
        raise ResourceError(f"the file has {size} bytes, more than the {limits.file} allowed", limits.file, where)


def check_declared(shape: Sequence[int], dtype: Any, limits: Limits, where: str) -> int:
    """Refuses sizes that no image has or that are beyond the limits; returns the bytes they need.

    Raises:
        ModelError: a size is not positive, or there are too many axes.
        ResourceError: there are too many samples.
    """
    sizes = [int(n) for n in shape]
    text = " x ".join(map(str, sizes))
    if len(sizes) > limits.axes or any(n <= 0 for n in sizes):
        raise ModelError(f"the file declares an image of {text or 'no'} samples", where)
    plane = math.prod(sorted(sizes)[-2:])
    if plane > limits.plane:
        raise ResourceError(
            f"the file declares {text} samples, {plane} of them in a plane, more than the {limits.plane} allowed",
            limits.plane,
            where,
            "read a region or a smaller level of it, or raise `limits` if you trust the file",
        )
    total: int = math.prod(sizes) * np.dtype(dtype).itemsize
    if total > limits.values:
        raise ResourceError(
            f"the file declares {text} samples, {total} bytes, more than the {limits.values} allowed",
            limits.values,
            where,
            "read a region of it, or raise `limits` if you trust the file",
        )
    return total


def check_stored(declared: int, stored: int, where: str, compressed: bool = False) -> None:
    """Refuses files that are too short for what they declare.

    Args:
        declared: bytes of samples that the header declares.
        stored: bytes that the file has for them.
        where: the file's name.
        compressed: they are deflated.

    Raises:
        ModelError: the file is too short.
    """
    most = stored * _DEFLATE_RATIO if compressed else stored
    if declared > most:
        raise ModelError(
            f"the file declares {declared} bytes of samples and holds {stored}{' deflated' if compressed else ''}",
            where,
            "it is truncated or damaged",
        )
