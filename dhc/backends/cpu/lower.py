"""How single nodes and fused groups become kernel steps on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from dhc_runtime.errors import CompileError

from dhc.backends.cpu.attention import plan_attention
from dhc.backends.cpu.contract.filtering import Filtering
from dhc.backends.cpu.contract.spec import KernelCode
from dhc.backends.cpu.contraction import PlannedContraction, plan_contraction
from dhc.backends.cpu.integers import become_integers
from dhc.backends.cpu.methods import Methods
from dhc.backends.cpu.numba.opaque import LoweredOpaque
from dhc.backends.cpu.pooling import plan_pool
from dhc.backends.cpu.recurrent import plan_recurrent
from dhc.backends.cpu.rounding import may_round
from dhc.backends.cpu.sampling.planned import plan_pad, plan_resize
from dhc.backends.cpu.space_norm import NORMS, plan_norm
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.loop.ir import Kernel
from dhc.backends.loop.lower import LoweredKernel, lower_group
from dhc.backends.plan import PlanBuilder
from dhc.ir import dtypes
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Contract, Elementwise, Opaque
from dhc.ir.op import Call
from dhc.ir.symbols import sym
from dhc.passes.fuse import is_turned

THREADS = sym("threads__")
"""Symbol that the runtime binds to the number of threads of the session: sizes of scratch memory per thread."""


class KernelSink(Protocol):
    """Collects kernels; each distinct one is compiled once."""

    def loop(self, kernel: Kernel) -> str:
        """Adds a loop-level kernel and returns its symbol."""

    def contract(self, code: KernelCode) -> str:
        """Adds a generated contraction and returns its symbol."""

    def opaque(self, node: Node) -> tuple[str, LoweredOpaque]:
        """Adds an opaque kernel; returns its symbol and how to call it."""


@dataclass(frozen=True)
class StoredWeights:
    """Weights that are stored in 16 bits.

    Attributes:
        node: whose they are.
        saved: bytes that they take less.
        rounding: the largest change of a weight, as a share of the largest weight.
        multiplied: whether the layer multiplies in bf16, its input rounded too; else weights are widened.
    """

    node: str
    saved: int
    rounding: float
    multiplied: bool


@dataclass(frozen=True)
class FilteredLayer(Filtering):
    """A convolution by Winograd's method or a relative of it.

    Attributes:
        node: which one.
    """

    node: str


class CpuLowering:
    """Lowers nodes into a plan (called by `PlanBuilder` for every node that needs a kernel).

    Attributes:
        target: the CPU.
        sink: where kernels go.
        exact: only kernels whose results differ from those of plain sums by the order of summation alone.
        storage: how weights are stored where kernels can read them so: "" for f32, ``bf16`` or ``f16``.
        methods: what chooses the methods of contractions.
        stored: what came to be stored in 16 bits.
        filtered: convolutions that are no plain sums.
    """

    def __init__(
        self,
        target: CpuTarget,
        sink: KernelSink,
        exact: bool = False,
        storage: str = "",
        methods: Methods | None = None,
    ) -> None:
        self.target = target
        self.sink = sink
        self.exact = exact
        self.storage = storage
        self.methods = methods or Methods()
        self.stored: list[StoredWeights] = []
        self.filtered: list[FilteredLayer] = []

    def __call__(self, node: Node, plan: PlanBuilder) -> None:
        """Appends the steps of one node.

        Raises:
            CompileError: the node is of a kind that the CPU does not lower (`supports` says so before).
        """
        kind = node.op.kind
        if node.op.name == "fused":
            self._fused(node, plan)
        elif isinstance(kind, Opaque):
            self._opaque(node, plan)
        elif _has_epilogue(node):
            self._contraction(node, [], {}, [(node.result, node.result)], plan, node)
        elif (pool := plan_pool(node, self.target)) is not None:
            code, params = pool
            scratch = plan.scratch(dtypes.u8, (THREADS * code.scratch_per_thread,))
            buffers = [plan.buffer(node.operands[0]), plan.buffer(node.result), scratch]
            plan.kernel(self.sink.contract(code), buffers, params, node)
        elif node.op.name == "pad" and (pad := plan_pad(node, self.target)) is not None:
            code, params = pad
            buffers = [*(plan.buffer(v) for v in node.operands), plan.buffer(node.result)]
            plan.kernel(self.sink.contract(code), buffers, params, node)
        else:
            results = [(v, v) for v in node.results]
            self._group([node], list(dict.fromkeys(node.operands)), results, {}, plan, node)

    # ---- groups --------------------------------------------------------------------------------------------------

    def _fused(self, node: Node, plan: PlanBuilder) -> None:
        body = node.regions[0]
        outside = dict(zip(body.inputs, node.operands))
        results = list(zip(body.outputs, node.results))  # a group may return one value twice
        nodes = body.nodes
        contractions = [n for n in nodes if _has_epilogue(n)]
        if len(contractions) == 2 and self._attention(node, outside, plan):
            return
        behind = [n for n in nodes if len(contractions) != 1 or not _feeds(n, contractions[0])]
        if len(contractions) != 1 or len(results) != 1 or not _is_epilogue(contractions[0], behind, results[0][0]):
            self._group(nodes, list(body.inputs), results, outside, plan, node)
            return
        contraction = contractions[0]
        tail = [n for n in behind if n is not contraction]
        self._contraction(contraction, tail, outside, results, plan, node)

    def _attention(self, node: Node, outside: dict[Value, Value], plan: PlanBuilder) -> bool:
        planned = plan_attention(node.regions[0], self.target)
        if planned is None:
            return False
        operands = [self._operand(v, outside, plan) for v in planned.operands]
        out = plan.buffer(node.result)
        scratch = plan.scratch(dtypes.u8, (THREADS * planned.scratch,))
        plan.kernel(self.sink.contract(planned.code), [*operands, out, scratch], planned.params, node)
        return True

    def _group(
        self,
        nodes: Sequence[Node],
        inputs: list[Value],
        results: Sequence[tuple[Value, Value]],
        outside: dict[Value, Value],
        plan: PlanBuilder,
        node: Node,
        given: dict[Value, int] | None = None,
    ) -> None:
        """One kernel.

        `results` pairs values of the group with those of the graph that they become; `outside` maps the group's inputs
        to values of the graph, `given` to buffers.
        """
        buffers = given or {}
        lowered = lower_group(nodes, inputs, [v for v, _ in results], node.op.name if len(nodes) == 1 else "fused")
        symbol = self.sink.loop(lowered.kernel)
        operands = [buffers[v] if v in buffers else plan.buffer(outside.get(v, v)) for v in inputs]
        self._take_over(lowered, inputs, [outer for _, outer in results], outside, plan, buffers)
        plan.kernel(symbol, [*operands, *(plan.buffer(outer) for _, outer in results)], lowered.params, node)

    def _take_over(
        self,
        lowered: LoweredKernel,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        outside: dict[Value, Value],
        plan: PlanBuilder,
        buffers: dict[Value, int],
    ) -> None:
        taken: set[int] = set()
        for source, target in lowered.inplace:
            operand = inputs[source]
            if source in taken or operand in buffers:
                continue
            if plan.reuse(outputs[target], outside.get(operand, operand)):
                taken.add(source)

    # ---- contractions --------------------------------------------------------------------------------------------

    def _contraction(
        self,
        contraction: Node,
        tail: Sequence[Node],
        outside: dict[Value, Value],
        results: Sequence[tuple[Value, Value]],
        plan: PlanBuilder,
        node: Node,
    ) -> None:
        planned: PlannedContraction | None
        if contraction.op.name == "resize":
            planned = plan_resize(contraction, tail, self.target)
        elif contraction.op.name in NORMS:
            planned = plan_norm(contraction, tail, self.target)
        else:
            computed = [outer for _, outer in results]
            integers = become_integers(tail, computed)
            storage = "" if integers or not may_round(contraction, computed) else self.storage
            planned = plan_contraction(
                contraction, tail, self.target, outside, exact=self.exact or integers, storage=storage,
                methods=self.methods,
            )  # fmt: skip
            if planned is not None and planned.rounding is not None:
                saved = int(contraction.operands[1].type.nbytes) // 2
                self.stored.append(StoredWeights(str(node.location), saved, planned.rounding, planned.multiplied))
            if planned is not None and planned.filtering is not None:
                self.filtered.append(FilteredLayer(**asdict(planned.filtering), node=str(node.location)))
        if planned is None:
            inputs = list(outside) if outside else list(dict.fromkeys(contraction.operands))
            nodes = list(node.regions[0]) if node.regions else [contraction]
            self._group(nodes, inputs, results, outside, plan, node)
            return
        written = planned.epilogue.result
        rest = planned.epilogue.rest
        finished = written is results[0][0]
        operands = [self._operand(v, outside, plan) for v in planned.operands]
        if planned.before is not None:
            code, size = planned.before
            between = plan.scratch(dtypes.f32, (size,))
            plan.kernel(self.sink.contract(code), [operands[0], between], planned.params, node)
            operands.append(between)
            x = contraction.operands[0]
            if finished:
                plan.reuse(results[0][1], outside.get(x, x))
        if finished:
            out = plan.buffer(results[0][1])
        else:
            out = plan.scratch(written.dtype, written.shape)
        self._emit_contraction(planned, operands, out, plan, node)
        if finished:
            return
        constants = [n for n in tail if n.op.name == "constant" and n not in rest]
        used = {v for n in rest for v in n.operands}
        inputs = [written, *(v for v in outside if v in used)]
        nodes = [*constants, *rest]
        self._group(nodes, inputs, results, outside, plan, node, given={written: out})

    def _operand(self, operand: Value | np.ndarray, outside: dict[Value, Value], plan: PlanBuilder) -> int:
        if isinstance(operand, np.ndarray):
            return plan.constant(operand)
        if operand.producer is not None and operand.producer.op.name == "constant":
            return plan.constant(operand.producer.attrs["value"], operand.dtype)  # a literal of a fused group
        return plan.buffer(outside.get(operand, operand))

    def _emit_contraction(
        self, planned: PlannedContraction, operands: list[int], out: int, plan: PlanBuilder, node: Node
    ) -> None:
        symbol = self.sink.contract(planned.code)
        buffers = [*operands, out]
        if planned.code.scratch_per_thread:
            buffers.append(plan.scratch(dtypes.u8, (THREADS * planned.code.scratch_per_thread,)))
        if len(buffers) != len(planned.code.buffers):
            raise CompileError(
                f"kernel {planned.code.name} takes {len(planned.code.buffers)} buffers, got {len(buffers)}",
                where=str(node.location),
            )
        plan.kernel(symbol, buffers, (*planned.params, *planned.code.constants), node)

    # ---- opaque --------------------------------------------------------------------------------------------------

    def _opaque(self, node: Node, plan: PlanBuilder) -> None:
        kind = node.op.kind
        assert isinstance(kind, Opaque)
        if kind.role == "scan" and self._recurrent(node, plan):
            return
        symbol, lowered = self.sink.opaque(node)
        buffers = [plan.buffer(v) for v in node.operands]
        if kind.bounds is None:
            buffers += [plan.buffer(v) for v in node.results]
        else:
            bounds = kind.bounds(Call.of(node))
            buffers += [plan.bounded(v, shape) for v, shape in zip(node.results, bounds, strict=True)]
        count = plan.scratch(dtypes.i64, (1,)) if kind.count else None
        if count is not None:
            buffers.append(count)
        buffers += [plan.scratch(dtype, shape) for dtype, shape in lowered.scratch]
        plan.kernel(symbol, buffers, lowered.params, node)
        if count is not None:
            new = next(node.attrs[a.name] for a in node.op.attrs if a.kind == "symbol")
            plan.bind(new, count, 0)

    def _recurrent(self, node: Node, plan: PlanBuilder) -> bool:
        planned = plan_recurrent(node, self.target)
        if planned is None:
            return False
        weights = [plan.constant(array) for array in planned.weights]
        projected = plan.scratch(dtypes.f32, planned.projected)
        plan.kernel(
            self.sink.contract(planned.project),
            [plan.buffer(node.operands[0]), *weights, projected],
            planned.project_params,
            node,
        )
        operands = [self._operand(v, {}, plan) for v in planned.operands]
        results = [plan.buffer(v) for v in node.results]
        plan.kernel(self.sink.contract(planned.steps), [projected, *operands, *results], planned.params, node)
        return True


def _has_epilogue(node: Node) -> bool:
    """Whether the node may have a kernel that also computes element-wise nodes behind it."""
    return isinstance(node.op.kind, Contract) or node.op.name in ("resize", *NORMS)


def _feeds(node: Node, contraction: Node) -> bool:
    """Whether a node is a transpose that the kernel of a matrix product takes in."""
    joined = contraction.op.name == "matmul" and node.op.name == "transpose" and node.result in contraction.operands
    return joined and is_turned(node.result)


def _is_epilogue(contraction: Node, nodes: Sequence[Node], result: Value) -> bool:
    """True for a contraction and element-wise nodes of its shape behind it, the last of which gives the result."""
    if any(v.producer in nodes and v.producer.op.name != "constant" for v in contraction.operands if v.producer):
        return False
    for node in nodes:
        if node is contraction or node.op.name == "constant":
            continue
        if not isinstance(node.op.kind, Elementwise) or len(node.results) != 1:
            return False
        if node.result.shape != contraction.result.shape:
            return False
    last = [n for n in nodes if n.op.name != "constant"][-1]
    return last.result is result
