"""The backend protocol: what a device family must answer. Adding a device means one folder that implements this.

A backend lowers *kinds* of ops (`dhc.ir.kinds`). It answers before compiling whether a node fits (`supports`), what
it costs (`cost`), and turns a placed graph into a `Blob`: steps for the plan plus the device's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dhc.ir.graph import Graph, Node
from dhc.ir.op import Limitation


@dataclass(frozen=True)
class CompileOptions:
    """What the user asked of a compilation.

    Attributes:
        cpu: name of the CPU target (`dhc.backends.cpu.target`), ``host`` for this machine; None for the
            default (``DHC_CPU`` in the environment, else ``host``).
        threads: default number of threads written into the artifact, None: decided when it is loaded.
        cache: use the kernel cache on disk.
        precision: how weights are stored where kernels can read them so, ``fp32``, ``bf16`` or ``fp16``; with ``bf16``
            factors are multiplied so where the device does that.
        exact: only kernels whose results differ from those of plain sums by the order of summation alone.
        tune: seconds for measuring methods of contractions on this machine; None: cost models choose.
        tune_threads: how many threads run a kernel that is measured.
        emit: folder that receives the readable sources of the kernels, None for none.
        progress: called with (stage, done, total) during long work.
    """

    cpu: str | None = None
    threads: int | None = None
    cache: bool = True
    exact: bool = False
    precision: str = "fp32"
    tune: float | None = None
    tune_threads: int = 1
    emit: str | None = None
    progress: Callable[[str, int, int], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Blob:
    """What a backend makes of a graph.

    Attributes:
        program: the plan (see docs/artifact.md), plain JSON data.
        members: files of the artifact, e.g. ``cpu/code.a``.
        constants: arrays of ``weights.safetensors`` by name.
        device: the manifest's entry about the device.
        executor: name of the runtime's executor for this code, None: the name of the target. A backend that makes
            another one's code (a CPU with less, a tuned variant) names that one's.
        report: figures about the compilation (kernels, cache hits, seconds by stage).
    """

    program: dict[str, Any]
    members: Mapping[str, bytes]
    constants: Mapping[str, Any]
    device: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    executor: str | None = None


class Backend(Protocol):
    """A device family."""

    name: str

    def available(self) -> Limitation | None:
        """None when this machine can run what the backend makes, else the reason (driver, device)."""

    def supports(self, node: Node) -> Limitation | None:
        """None when the node can be compiled, else the reason."""

    def cost(self, node: Node) -> float:
        """Estimated seconds of the node for sizes of 1 in symbolic dims."""

    def compile(self, graph: Graph, options: CompileOptions) -> Blob:
        """Compiles a graph of which it supports every node.

        Raises:
            CompileError: generating or compiling code failed.
        """
