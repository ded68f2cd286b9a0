"""What the host CPU can do, in the names of Linux's ``/proc/cpuinfo``, and whether that is enough for an artifact."""

from __future__ import annotations

import os
import platform
import sys
from typing import FrozenSet, Iterable, Optional

from dhc_runtime.errors import ArtifactError

__all__ = ["check", "host_arch", "host_features"]

_ARCH_NAMES = {"amd64": "x86_64", "x86_64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}
_BASELINE = {
    "x86_64": frozenset(("fpu", "cx8", "cmov", "mmx", "fxsr", "sse", "sse2", "lm")),
    "aarch64": frozenset(("fp", "asimd")),
}
# Names of other systems and of LLVM for what /proc/cpuinfo calls otherwise.
_SYNONYMS = {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "avx1.0": "avx",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "lzcnt": "abm",
    "neon": "asimd",
    "fp-armv8": "fp",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "lse": "atomics",
    "crc": "crc32",
}
_cache: Optional[FrozenSet[str]] = None


def host_arch() -> str:
    """``x86_64``, ``aarch64``, or the machine's own name."""
    machine = os.uname().machine if hasattr(os, "uname") else platform.machine()
    return _ARCH_NAMES.get(machine.lower(), machine.lower())


def _normal(name: str) -> str:
    return _SYNONYMS.get(name.lower(), name.lower())


def _parse_cpuinfo(text: str) -> FrozenSet[str]:
    """The features that every processor of a ``/proc/cpuinfo`` has (big and little cores may differ)."""
    found: Optional[FrozenSet[str]] = None
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator and key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            found = flags if found is None else found & flags
    return frozenset() if found is None else found


def _mac_features() -> FrozenSet[str]:
    import ctypes

    library = ctypes.CDLL(None)
    query = library.sysctlbyname

    def text(name: str) -> str:
        size = ctypes.c_size_t(0)
        if query(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0 or not 0 < size.value < 65536:
            return ""
        buffer = ctypes.create_string_buffer(size.value)
        if query(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
            return ""
        return buffer.value.decode("ascii", "replace")

    def flag(name: str) -> bool:
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
        return (
            query(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0
            and value.value != 0
        )

    if host_arch() == "x86_64":
        names = " ".join(text("machdep.cpu." + part) for part in ("features", "leaf7_features", "extfeatures")).split()
        return frozenset(_normal(name) for name in names)
    optional = {
        "asimddp": "hw.optional.arm.FEAT_DotProd",
        "asimdhp": "hw.optional.arm.FEAT_FP16",
        "i8mm": "hw.optional.arm.FEAT_I8MM",
        "bf16": "hw.optional.arm.FEAT_BF16",
        "atomics": "hw.optional.arm.FEAT_LSE",
        "crc32": "hw.optional.armv8_crc32",
    }
    return frozenset(["fp", "asimd"] + [name for name, key in sorted(optional.items()) if flag(key)])


def host_features() -> FrozenSet[str]:
    """The features of this CPU. Where the system does not tell, those that every CPU of its architecture has."""
    global _cache
    if _cache is None:
        found: FrozenSet[str] = frozenset()
        if sys.platform == "darwin":
            found = _mac_features()
        else:
            try:
                with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
                    found = _parse_cpuinfo(
                        stream.read()
                    )  # all of it: half a line would be a CPU with half its features
            except OSError:
                found = frozenset()
        extra = frozenset(_normal(name) for name in found)
        _cache = found | extra | _BASELINE.get(host_arch(), frozenset())
    return _cache


def check(features: Iterable[str], arch: str, where: Optional[str] = None) -> None:
    """Refuses code that this CPU cannot run.

    Args:
        features: the features that the code needs.
        arch: the architecture for which it was made.
        where: name of the artifact, for the message.

    Raises:
        ArtifactError: another architecture, or missing features (all are named).
    """
    host = host_arch()
    if _ARCH_NAMES.get(arch.lower(), arch.lower()) != host:
        raise ArtifactError(
            "The code was compiled for {} and this machine is {}".format(arch, host),
            where,
            "Compile the model on this machine (dhc compile MODEL --target cpu --cpu host), or name its CPU",
        )
    available = host_features()
    missing = sorted(name for name in features if _normal(name) not in available)
    if missing:
        raise ArtifactError(
            "The code needs CPU features that this machine lacks: {}".format(", ".join(missing)),
            where,
            "Compile it again with --cpu host on this machine, or with --cpu {} for any such CPU".format(
                "x86-64" if host == "x86_64" else host
            ),
        )
