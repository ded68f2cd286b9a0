"""Every op has, on every backend, a lowering or a `Limitation`; what `supports` answers is what compiling then does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import dhc
from dhc.backends.registry import backend_names, get_backend
from dhc.errors import DhcError, UnsupportedError, UsageError
from dhc.ir import Graph, NotDifferentiable, all_ops, registry
from dhc.ir.kinds import Composite, Structural
from dhc.ir.op import Limitation, OpDef
from dhc.ir.types import TensorType
from dhc.passes.decompose import Decompose
from tests.ir.op_examples import REGION_OPS, examples_for
from tests.support.random_graphs import random_graphs  # noqa: F401 (its rules are checked below)
from tests.support.random_ops import RULES

REPOSITORY = Path(__file__).resolve().parents[2]

SUPPORTED = "compiles"


def one_for_each_signature(op: OpDef) -> dict[str, Graph]:
    """A graph for every combination of element types among the examples."""
    graphs: dict[str, Graph] = {}
    for example in examples_for(op):
        key = ", ".join(dict.fromkeys(d.name for d in example.dtypes)) or "-"
        if key not in graphs:
            graphs[key] = example.graph()
    return graphs


def answers(name: str, graph: Graph) -> list[Limitation | None]:
    """What a backend says of the nodes of a graph as it would get them."""
    working = graph.clone()
    Decompose().run(working)
    return [get_backend(name).supports(node) for node in working]


@pytest.mark.parametrize("name", backend_names())
@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.name)
def test_every_op_has_a_lowering_or_a_limitation(op: OpDef, name: str) -> None:
    graphs = one_for_each_signature(op)
    if op.name in REGION_OPS:
        assert any(rule.op == op.name for rule in RULES), f"{op.name} has no examples and is in no random graph"
    for graph in graphs.values():
        for answer in answers(name, graph):
            assert answer is None or (isinstance(answer, Limitation) and answer.reason), f"{name} says {answer!r}"


@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.name)
def test_every_op_says_whether_it_is_differentiable(op: OpDef) -> None:
    if isinstance(op.grad, NotDifferentiable):
        assert op.grad.reason
    else:
        assert op.grad is not None or isinstance(op.kind, Composite), f"{op.name} has no gradient and gives no reason"


def outcome(name: str, graph: Graph) -> str:
    """`compiles`, or what was refused."""
    try:
        dhc.compile(graph, [name])
    except UnsupportedError as error:
        return f"refused: {error}"
    return SUPPORTED


@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.name)
def test_the_null_target_compiles_what_it_says(op: OpDef) -> None:
    for key, graph in one_for_each_signature(op).items():
        said = all(a is None for a in answers("null", graph))
        assert (outcome("null", graph) == SUPPORTED) == said, f"{op.name} of {key}"


@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.name)
def test_the_cpu_refuses_what_it_says(op: OpDef) -> None:
    """What it takes is compiled and run in `cpu/differential/test_every_op.py`; here what it does not take."""
    for key, graph in one_for_each_signature(op).items():
        limits = [a for a in answers("cpu", graph) if a is not None]
        if limits:
            found = outcome("cpu", graph)
            assert limits[0].reason in found, f"{op.name} of {key}: said {limits[0]}, then {found}"


def test_cpu_takes_every_op_on_numbers() -> None:
    """The CPU is complete: only what Python alone can hold, and ops that are Python by nature, are refused."""
    refused: dict[str, Any] = {}
    for op in all_ops():
        if isinstance(op.kind, Structural) and op.kind.name == "host":
            continue
        for key, graph in one_for_each_signature(op).items():
            values = [value for node in graph for value in (*node.operands, *node.results)]
            if any(not isinstance(v.type, TensorType) or v.dtype.kind == "s" for v in values):
                continue
            limits = [a for a in answers("cpu", graph) if a is not None]
            if limits:
                refused[f"{op.name} of {key}"] = limits[0].reason
    assert not refused, refused


def test_the_reference_makes_no_artifact() -> None:
    graph = one_for_each_signature(registry.get("add"))["f32"]
    with pytest.raises(UsageError, match="no artifact"):
        dhc.compile(graph, ["reference"])


def test_unknown_targets_are_named() -> None:
    with pytest.raises(DhcError, match="cpu"):
        get_backend("gpu9")


def test_the_support_matrix_lists_every_op_and_every_limitation() -> None:
    """The page is printed from the registry: it holds a row for each op, and a reason for each refusal."""
    spec = importlib.util.spec_from_file_location("docs_generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    rows, _, limits = generate.support().partition("## Limitations")
    for op in all_ops():
        (row,) = [line for line in rows.splitlines() if line.startswith(f"| `{op.name}` |")]
        gradient = isinstance(op.grad, NotDifferentiable)
        assert gradient == ("none: " in row), row
        for graph in one_for_each_signature(op).values():
            for limit in answers("cpu", graph):
                assert limit is None or f"| `{op.name}` | cpu" in limits
