"""Control flow in programs: branches and loop bodies are nested programs that the runtime drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dhc_runtime.errors import CompileError

from dhc.ir.copying import inline
from dhc.ir.dtypes import boolean, i64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.symbols import sym
from dhc.ir.types import TensorType

if TYPE_CHECKING:
    from dhc.backends.plan import Lower, PlanBuilder


def lower_control(plan: PlanBuilder, node: Node, lower: Lower) -> None:
    """Appends the item of an `if`, `loop` or `scan` node.

    Raises:
        CompileError: the node is another kind of control flow.
    """
    if node.op.name == "if":
        _lower_if(plan, node, lower)
    elif node.op.name == "loop":
        _lower_loop(plan, node, lower)
    elif node.op.name == "scan":
        _lower_scan(plan, node, lower)
    else:
        raise CompileError(f"no program form for control flow {node.op.name!r}", where=str(node.location))


def _program(plan: PlanBuilder, graph: Graph, lower: Lower) -> dict[str, Any]:
    from dhc.backends.plan import PlanBuilder

    return PlanBuilder(graph, lower, plan.constants).build()


def _results(plan: PlanBuilder, node: Node) -> tuple[list[int], list[list[Any]]]:
    """Buffers of the results, and the symbols that their sizes define: [symbol, result, axis]."""
    defined = set(node.attrs.get("symbols", ()))
    binds: list[list[Any]] = []
    for number, value in enumerate(node.results):
        for axis, dim in enumerate(value.shape):
            for name in sorted(defined):
                if dim == sym(name):
                    binds.append([name, number, axis])
                    defined.discard(name)
    plan.note_symbols([b[0] for b in binds])
    return [plan.dynamic(v) for v in node.results], binds


def _lower_if(plan: PlanBuilder, node: Node, lower: Lower) -> None:
    condition, *captures = (plan.shaped(v) for v in node.operands)
    then, otherwise = (_program(plan, region, lower) for region in node.regions)
    results, binds = _results(plan, node)
    plan.item(
        {
            "do": "if",
            "cond": condition,
            "then": then,
            "else": otherwise,
            "args_then": captures,
            "args_else": captures,
            "results": results,
            "bind": binds,
            "node": str(node.location),
        },
        reads=[condition, *captures],
    )


def _lower_loop(plan: PlanBuilder, node: Node, lower: Lower) -> None:
    carried = node.attrs["carried"]
    trip, condition, *rest = (plan.shaped(v) for v in node.operands)
    body = _program(plan, node.regions[0], lower)
    results, binds = _results(plan, node)
    _append_loop(
        plan,
        node,
        trip=trip,
        cond=None if _goes_on(node) else condition,  # the count alone: the runtime then knows where results go
        carried=rest[:carried],
        captures=rest[carried:],
        body=body,
        results=results[:carried],
        scans=[[b, 0, False] for b in results[carried:]],
        scan_inputs=[],
        bind=binds,
    )


def _goes_on(loop: Node) -> bool:
    """Whether the condition of a loop always holds, so that its count decides alone."""
    again = loop.regions[0].outputs[0]
    return _is_true(loop.operands[1]) and (again is loop.regions[0].inputs[1] or _is_true(again))


def _is_true(value: Value) -> bool:
    producer = value.producer
    return producer is not None and producer.op.name == "constant" and bool(np.all(producer.attrs["value"]))


def _lower_scan(plan: PlanBuilder, node: Node, lower: Lower) -> None:
    carried, scanned = node.attrs["carried"], node.attrs["scanned"]
    buffers = [plan.shaped(v) for v in node.operands]
    body = _program(plan, _as_loop_body(node.regions[0]), lower)
    results, binds = _results(plan, node)
    in_axes = _defaulted(node.attrs["in_axes"], scanned)
    in_reverse = _defaulted(node.attrs["in_reverse"], scanned)
    count = len(node.results) - carried
    out_axes = _defaulted(node.attrs["out_axes"], count)
    out_reverse = _defaulted(node.attrs["out_reverse"], count)
    ranks = [v.type.rank for v in node.operands[carried : carried + scanned]]
    out_ranks = [v.type.rank for v in node.results[carried:]]
    _append_loop(
        plan,
        node,
        trip=None,
        cond=None,
        carried=buffers[:carried],
        captures=buffers[carried + scanned :],
        body=body,
        results=results[:carried],
        scans=[[b, a % r, bool(v)] for b, a, r, v in zip(results[carried:], out_axes, out_ranks, out_reverse)],
        scan_inputs=[
            [b, a % r, bool(v)] for b, a, r, v in zip(buffers[carried : carried + scanned], in_axes, ranks, in_reverse)
        ],
        bind=binds,
    )


def _append_loop(plan: PlanBuilder, node: Node, **fields: Any) -> None:
    reads = [b for b in (fields["trip"], fields["cond"]) if b is not None]
    reads += [*fields["carried"], *fields["captures"], *(s[0] for s in fields["scan_inputs"])]
    plan.item({"do": "loop", **fields, "node": str(node.location)}, reads=reads)


def _defaulted(values: Sequence[int], count: int) -> list[int]:
    return list(values) if values else [0] * count


def _as_loop_body(region: Graph) -> Graph:
    """A scan body with the signature of a loop body: iteration and condition first, condition returned first."""
    body = Graph(region.name, parent=region.parent)
    body.add_input("", TensorType(i64, ()))
    condition = body.add_input("", TensorType(boolean, ()))
    operands = [body.add_input(v.name, v.type) for v in region.inputs]
    body.output(condition, *inline(region, body, operands))
    return body
