"""The null target: plans without data. It shows steps, memory and liveness, and runs nowhere."""

from __future__ import annotations

from dhc.backends.constants import ConstantPool
from dhc.backends.cost import operations
from dhc.backends.plan import PlanBuilder
from dhc.backends.protocol import Blob, CompileOptions
from dhc.backends.values import interpreter_only
from dhc.ir.graph import Graph, Node
from dhc.ir.op import Limitation
from dhc.ir.symbols import Dim


def _lower(node: Node, plan: PlanBuilder) -> None:
    """One step a node, without code."""
    operands = [plan.buffer(v) for v in node.operands]
    results = [plan.buffer(v) for v in node.results]
    params: list[Dim] = []
    plan.kernel(f"null_{node.op.name}", [*operands, *results], params, node)


class NullBackend:
    """Takes every node and makes a plan whose kernels do not exist."""

    name = "null"

    def available(self) -> Limitation | None:
        """Always."""
        return None

    def supports(self, node: Node) -> Limitation | None:
        """Every node on tensors of numbers can be scheduled."""
        return interpreter_only(node)

    def cost(self, node: Node) -> float:
        """Seconds at 1 Gop/s."""
        return operations(node) / 1e9

    def compile(self, graph: Graph, options: CompileOptions) -> Blob:
        """A plan; loading it says that there is no code."""
        constants = ConstantPool()
        program = PlanBuilder(graph, _lower, constants).build()
        return Blob(program, {}, constants.arrays, {"kind": "null"})
