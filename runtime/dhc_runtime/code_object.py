"""Turning object code into functions that this process can call: memory, allowed symbols, protection."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any, Dict, List, Optional, Union

from dhc_runtime.cpu_features import host_arch
from dhc_runtime.elf import ElfObject
from dhc_runtime.errors import ArtifactError, DeviceError, ResourceError

__all__ = ["ALLOWED_SYMBOLS", "CodeObject"]

_MATH = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2 expm1 fabs fdim "
    "floor fma fmax fmin fmod frexp hypot ldexp lgamma llrint llround log log10 log1p log2 logb lrint lround "
    "modf nearbyint nextafter pow remainder rint round roundeven scalbn sin sincos sinh sqrt tan tanh tgamma "
    "trunc "
).split()
_MEMORY = ["memcpy", "memmove", "memset", "memcmp", "bcmp", "clock_gettime", "nanosleep", "sched_yield"]
_THREADS = ["sem_init", "sem_post", "sem_wait"]
ALLOWED_SYMBOLS = frozenset(_MEMORY + _THREADS + _MATH + [name + "f" for name in _MATH])
"""Names of the only functions outside of an artifact that its code may call: memory moves, clocks, nanosleep,
sched_yield, semaphores, and C's mathematics."""

_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_PROTECTIONS = {"rx": _PROT_READ | _PROT_EXEC, "r": _PROT_READ, "rw": _PROT_READ | _PROT_WRITE}
_MAP_32BIT = 0x40
_LIBM_NAMES = ("libm.so.6", "libm.so", "libSystem.dylib")

_libraries: List[Any] = []
_resolved: Dict[str, int] = {}


def _open_libraries() -> List[Any]:
    if not _libraries:
        found = [ctypes.CDLL(None)]
        for name in _LIBM_NAMES:
            try:
                found.append(ctypes.CDLL(name))
                break
            except OSError:
                continue
        _libraries.extend(found)
    return _libraries


def _resolve(name: str, where: str) -> int:
    """The address of an allowed function of the C library."""
    if name in _resolved:
        return _resolved[name]
    if name not in ALLOWED_SYMBOLS:
        raise ArtifactError(
            "The code calls {!r}, which is not among the functions that code of an artifact may call".format(name),
            where,
            "Compile the model again with a matching version of dhc",
        )
    for library in _open_libraries():
        try:
            function = library[name]
        except AttributeError:
            continue
        address = ctypes.cast(function, ctypes.c_void_p).value
        if address:
            _resolved[name] = address
            return address
    raise ArtifactError(
        "The C library of this machine has no function {!r}".format(name), where, "Update the system's C library"
    )


class CodeObject:
    """Object code in memory, ready to be called; it stays there as long as this object lives.

    Writable and executable at the same time is never allowed: the code is linked into writable memory, which then
    becomes read-only and executable.

    Args:
        data: an ELF64 relocatable object for this machine.
        where: what to call it in messages.

    Raises:
        ArtifactError: the object is damaged, for another machine, or refers to something that is not allowed.
        DeviceError: this system does not let programs load code.
    """

    def __init__(self, data: Union[bytes, bytearray, memoryview], where: str = "object code") -> None:
        self._where = where
        elf = ElfObject(data, where, mmap.PAGESIZE)
        if elf.arch != host_arch():
            raise ArtifactError(
                "The code is for {} and this machine is {}".format(elf.arch, host_arch()),
                where,
                "Compile the model for this machine",
            )
        if sys.platform == "win32" or not hasattr(mmap, "PROT_READ"):
            raise DeviceError("Code of artifacts cannot be loaded on this system", where, "Run it on Linux or macOS")
        addresses = {name: _resolve(name, where) for name in elf.undefined}
        # A section may ask for more alignment than the system's page, which is all that mmap promises.
        size = max(elf.image_size, elf.page) + elf.page - mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if elf.needs_low_memory and sys.platform == "linux" and elf.arch == "x86_64":
            flags |= _MAP_32BIT
        try:
            self._map: Optional[mmap.mmap] = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as error:
            raise ResourceError("No memory for {} bytes of code".format(size), size, where) from error
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        offset = -start % elf.page
        self.base = start + offset
        view = memoryview(self._map)
        elf.link(view[offset : offset + elf.image_size], self.base, lambda name: addresses[name])
        view.release()
        self._protect(elf)
        self._symbols = {name: self.base + place for name, place in elf.symbols().items()}

    def _protect(self, elf: ElfObject) -> None:
        library = _open_libraries()[0]
        mprotect = library.mprotect
        mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        mprotect.restype = ctypes.c_int
        for segment in elf.segments:
            if mprotect(self.base + segment.start, segment.size, _PROTECTIONS[segment.protection]) != 0:
                raise DeviceError(
                    "The system refuses to make memory executable",
                    self._where,
                    "Allow it in the security policy (SELinux: execmem)",
                )
            if segment.protection == "rx" and elf.arch == "aarch64":
                self._flush_instructions(segment.start, segment.size)

    def _flush_instructions(self, start: int, size: int) -> None:
        """AArch64 keeps instruction and data caches apart: what was written as data must be made visible as code."""
        for name in ("__clear_cache", "sys_icache_invalidate"):
            for candidate in _open_libraries() + _compiler_runtimes():
                try:
                    function = candidate[name]
                except AttributeError:
                    continue
                function.restype = None
                second = self.base + start + size if name == "__clear_cache" else size
                function(ctypes.c_void_p(self.base + start), ctypes.c_void_p(second))
                return
        raise DeviceError("The system offers no way to flush the instruction cache", self._where, "Install libgcc_s")

    @property
    def symbols(self) -> Dict[str, int]:
        """Addresses of all functions and data that the object offers by name."""
        return dict(self._symbols)

    def address(self, symbol: str) -> int:
        """The address of a function.

        Raises:
            ArtifactError: the object offers no such symbol.
        """
        try:
            return self._symbols[symbol]
        except KeyError:
            raise ArtifactError(
                "The code has no function {!r}".format(symbol), self._where, "Compile the model again"
            ) from None


def _compiler_runtimes() -> List[Any]:
    """Libraries in which ``__clear_cache`` may live when the process itself does not export it."""
    found = []
    for name in ("libgcc_s.so.1", "libgcc_s.so", "libcompiler_rt.so"):
        try:
            found.append(ctypes.CDLL(name))
        except OSError:
            continue
    return found
