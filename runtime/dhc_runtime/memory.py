"""Aligned memory for arenas and results, under one budget for each session."""

from __future__ import annotations

import mmap
import os
from typing import Any, Optional

import numpy as np

from dhc_runtime.errors import ResourceError, ShapeError

__all__ = ["Block", "Budget", "FixedTarget", "aligned_bytes", "default_limit"]

ALIGNMENT = 64
_SHARE = 0.8
_LARGE = 64 << 20
_HUGE_PAGE = 2 << 20
# A huge page is in memory as a whole when one byte of it is used: small arenas, of which much is scratch memory that
# may stay unused, would take more than they need.
_HUGE_LEAST = 16 << 20
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _read_number(path: str) -> Optional[int]:
    try:
        with open(path, encoding="ascii") as stream:
            return int(stream.read(64))
    except (OSError, ValueError):
        return None


def _physical_memory() -> int:
    try:
        physical = int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 1 << 62
    return physical if physical > 0 else 1 << 62


def default_limit() -> int:
    """80 % of the memory of the machine, or of the container if that is less; bytes."""
    limits = [_physical_memory()] + [limit for limit in map(_read_number, _CGROUP_LIMITS) if limit is not None]
    return int(min(limits) * _SHARE)


def _available_memory() -> Optional[int]:
    """Bytes that the system can give without swapping, if it tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _readable(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return "{:.1f} {}".format(size / (1 << power), unit)
    return "{} bytes".format(size)


class Budget:
    """How many bytes a session may hold.

    Args:
        limit: bytes; None for `default_limit`.
        name: what to call the session in messages.
    """

    def __init__(self, limit: Optional[int], name: str) -> None:
        self.limit = default_limit() if limit is None else limit
        self.explicit = limit is not None
        self.held = 0
        self._name = name

    def require(self, size: int) -> None:
        """Refuses if ``size`` more bytes would exceed the limit or what the system has left; takes nothing.

        Raises:
            ResourceError: too much.
        """
        hint = "Use smaller inputs (a smaller batch or image), or raise the limit with max_memory="
        if self.held + size > self.limit:
            raise ResourceError(
                "A run with these input sizes needs {} of memory and the limit is {}".format(
                    _readable(self.held + size), _readable(self.limit)
                ),
                self.limit,
                self._name,
                hint,
            )
        if size >= _LARGE and not self.explicit:
            available = _available_memory()
            if available is not None and size > available:
                raise ResourceError(
                    "A run with these input sizes needs {} more memory and the system has {} left".format(
                        _readable(size), _readable(available)
                    ),
                    available,
                    self._name,
                    hint,
                )

    def take(self, size: int) -> None:
        """Counts ``size`` bytes as held.

        Raises:
            ResourceError: that would exceed the limit.
        """
        self.require(size)
        self.held += size

    def give(self, size: int) -> None:
        """Counts ``size`` bytes as free again."""
        self.held -= size


def aligned_bytes(size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Uninitialised bytes that start at a multiple of 64.

    Raises:
        ResourceError: the system has no such memory.
    """
    try:
        raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    except (MemoryError, ValueError, OverflowError) as error:
        raise ResourceError(
            "The system cannot give {} of memory".format(_readable(size)),
            size,
            hint="Use smaller inputs or free memory",
        ) from error
    offset = -int(raw.__array_interface__["data"][0]) % ALIGNMENT
    return raw[offset : offset + size]


def huge_page_bytes(size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Zero bytes for long use: whole huge pages where the system offers them, and the rest in small ones.

    Nothing is touched here: a page belongs to the memory of the CPU whose thread first writes to it.

    Raises:
        ResourceError: the system has no such memory.
    """
    if size < _HUGE_LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_bytes(size)
    try:
        area = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError):
        return aligned_bytes(size)  # which reports it
    raw = np.frombuffer(area, dtype=np.uint8)
    offset = -int(raw.__array_interface__["data"][0]) % _HUGE_PAGE
    try:
        area.madvise(mmap.MADV_HUGEPAGE, offset, size - size % _HUGE_PAGE)
    except OSError:
        return raw[offset : offset + size]  # a kernel without huge pages
    return raw[offset : offset + size]


class Block:
    """Memory that grows to what is asked for; growing forgets the content.

    Args:
        budget: what its size counts against.
        lasting: whether it serves many runs, so that huge pages are worth asking for.

    Attributes:
        data: the bytes.
        address: where they start.
    """

    __slots__ = ("_budget", "_lasting", "address", "data")

    def __init__(self, budget: Budget, lasting: bool = False) -> None:
        self._budget = budget
        self._lasting = lasting
        self.data: Optional["np.ndarray[Any, np.dtype[np.uint8]]"] = None
        self.address = 0

    @property
    def capacity(self) -> int:
        """Bytes that it holds now."""
        return 0 if self.data is None else int(self.data.size)

    def ensure(self, size: int) -> int:
        """Makes room for ``size`` bytes and returns the address.

        Raises:
            ResourceError: the budget or the system does not allow it.
        """
        if self.data is None or size > self.data.size:
            self.release()
            self._budget.take(size)
            try:
                self.data = huge_page_bytes(size) if self._lasting else aligned_bytes(size)
            except BaseException:
                self._budget.give(size)
                raise
            self.address = int(self.data.__array_interface__["data"][0])
        return self.address

    def release(self) -> None:
        """Frees the memory; arrays that were handed out keep it alive."""
        if self.data is not None:
            size = int(self.data.size)
            self.data = None
            self.address = 0
            self._budget.give(size)


class FixedTarget:
    """Memory of somebody else into which a result goes.

    Args:
        address: where it starts.
        capacity: its bytes.
        what: what to call the result in messages.
    """

    __slots__ = ("address", "capacity", "what")

    def __init__(self, address: int, capacity: int, what: str) -> None:
        self.address = address
        self.capacity = capacity
        self.what = what

    def ensure(self, size: int) -> int:
        """The address, if ``size`` bytes fit.

        Raises:
            ShapeError: they do not.
        """
        if size > self.capacity:
            raise ShapeError("{} takes {} bytes and there is room for {}".format(self.what, size, self.capacity))
        return self.address
