"""The instruction sets that kernels are written for, and those of them that this machine runs."""

from __future__ import annotations

from dhc.backends.cpu import target as targets

ALL_TARGETS = ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"]
RUNNABLE = [
    name
    for name in ALL_TARGETS
    if targets.target(name).arch == targets.host_target().arch
    and set(targets.target(name).features) <= set(targets.host_target().features)
]
