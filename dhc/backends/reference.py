"""The interpreter as a target: runs a graph in NumPy, slowly and obviously. The judge of all other targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dhc_runtime.errors import UsageError

from dhc.backends.protocol import Blob, CompileOptions
from dhc.ir.graph import Graph, Node
from dhc.ir.interpreter import interpret
from dhc.ir.op import Limitation


class ReferenceBackend:
    """Takes every node; makes no code."""

    name = "reference"

    def available(self) -> Limitation | None:
        """Always."""
        return None

    def supports(self, node: Node) -> Limitation | None:
        """Every op has a reference."""
        return None

    def cost(self, node: Node) -> float:
        """Seconds at a rough 0.1 Gop/s."""
        from dhc.backends.cost import operations

        return operations(node) / 1e8

    def compile(self, graph: Graph, options: CompileOptions) -> Blob:
        """The interpreter needs the graph itself, so there is nothing to put into an artifact.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "the reference interpreter makes no artifact",
            hint="run the graph directly: graph.evaluate(...), or `dhc compare --backend reference`",
        )


class ReferenceSession:
    """A graph behind the interface of `dhc_runtime.Session`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the interpreter; inputs and outputs by name."""
        return dict(zip(self.graph.output_names, interpret(self.graph, inputs)))

    def __call__(self, *arrays: Any) -> Sequence[Any]:
        """Runs on positional inputs."""
        return self.graph.evaluate(*arrays)
