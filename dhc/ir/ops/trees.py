"""Ensembles of decision trees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError

from dhc.ir.dtypes import f32, f64, i64
from dhc.ir.inference import require_equal, require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType

AGGREGATES = ("sum", "average", "min", "max")
_REAL = frozenset({f32, f64})
_COMPARE = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)


def tree_kernel(  # type: ignore[no-untyped-def]
    x, splits, nodes, roots, weights, owners, out, features, count, trees, leaves, targets, code, first, end
):
    """Work item: one row. A branch is a node, or a leaf written as -1 - leaf; too long a path is a cycle."""
    for row in range(first, end):
        start = 0.0
        if code == 2:
            start = math.inf
        elif code == 3:
            start = -math.inf
        for t in range(targets):
            out[row * targets + t] = start
        for tree in range(trees):
            at = roots[tree]
            steps = 0
            while at >= 0:
                if at >= count or steps > count:
                    return 3
                steps = steps + 1
                feature = nodes[at * 5]
                mode = nodes[at * 5 + 1]
                if feature < 0 or feature >= features:
                    return 1
                value = x[row * features + feature]
                split = splits[at]
                if value != value and nodes[at * 5 + 4] != 0:
                    yes = True
                elif mode == 0:
                    yes = value <= split
                elif mode == 1:
                    yes = value < split
                elif mode == 2:
                    yes = value >= split
                elif mode == 3:
                    yes = value > split
                elif mode == 4:
                    yes = value == split
                else:
                    yes = value != split
                at = nodes[at * 5 + 2] if yes else nodes[at * 5 + 3]
            leaf = -1 - at
            if leaf >= leaves or owners[leaf] < 0 or owners[leaf] >= targets:
                return 1
            place = row * targets + owners[leaf]
            if code == 2:
                out[place] = min(out[place], weights[leaf])
            elif code == 3:
                out[place] = max(out[place], weights[leaf])
            elif code == 1:
                out[place] = out[place] + weights[leaf] / trees
            else:
                out[place] = out[place] + weights[leaf]
    return 0


def _type(call: Call) -> list[TensorType]:
    x, splits, nodes, _, weights, owners = call.types
    for operand, rank in enumerate((2, 1, 2, 1, 1, 1)):
        require_rank(call, operand, rank)
    call.require(nodes.shape[1], 5, "numbers of a node")
    require_equal(call, splits.shape[0], nodes.shape[0], "splits and nodes")
    require_equal(call, weights.shape[0], owners.shape[0], "weights and targets of leaves")
    if call.attrs.targets < 1:
        call.fail(f"{call.attrs.targets} targets")
    return [TensorType(x.dtype, (x.shape[0], call.attrs.targets))]


def _leaf(call: Call, values: np.ndarray, splits: np.ndarray, nodes: np.ndarray, root: int) -> int:
    """The leaf that one row comes to in one tree."""
    at = root
    for _ in range(len(nodes) + 1):
        if at < 0:
            return -1 - at
        feature, mode, yes, no, missing = nodes[at].tolist()
        value = values[feature]
        holds = bool(_COMPARE[min(mode, 5)](value, splits[at])) or (bool(missing) and bool(np.isnan(value)))
        at = yes if holds else no
    raise DhcError("tree_ensemble: the nodes of a tree form a cycle", where=str(call.location))


def _reference(
    call: Call, x: np.ndarray, splits: np.ndarray, nodes: np.ndarray, roots: np.ndarray, weights: np.ndarray,
    owners: np.ndarray,
) -> Any:  # fmt: skip
    aggregate = call.attrs.aggregate
    start = {"min": np.inf, "max": -np.inf}.get(aggregate, 0.0)
    out = np.full((len(x), call.attrs.targets), start, x.dtype)
    for row, values in enumerate(x):
        for root in roots.tolist():
            leaf = _leaf(call, values, splits, nodes, root)
            place = (row, owners[leaf])
            weight = weights[leaf] / x.dtype.type(len(roots)) if aggregate == "average" else weights[leaf]
            if aggregate in ("min", "max"):
                out[place] = min(out[place], weight) if aggregate == "min" else max(out[place], weight)
            else:
                out[place] += weight
    return out


def _args(call: Call) -> Sequence[Any]:
    x, splits, _, roots, weights, _ = call.types
    a = call.attrs
    return [
        x.shape[1], splits.shape[0], roots.shape[0], weights.shape[0], a.targets, AGGREGATES.index(a.aggregate)
    ]  # fmt: skip


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    x = np.array([[1.5, 0.25], [-0.5, 1.75], [3.5, -2.25], [np.nan, 0.5]], np.float32)
    nodes = np.array(
        [[0, 0, 1, 2, 0], [1, 1, -1, -2, 0], [1, 2, -3, -4, 0], [0, 3, -5, 4, 1], [1, 5, -6, -1, 0]], np.int64
    )
    splits = np.array([1.0, 0.5, 0.0, 2.0, 0.25], np.float32)
    roots = np.array([0, 3], np.int64)
    weights = np.array([0.5, -1.25, 2.0, 3.5, -0.75, 1.0], np.float32)
    owners = np.array([0, 1, 2, 0, 1, 2], np.int64)
    operands: list[np.ndarray] = [x, splits, nodes, roots, weights, owners]
    return [(operands, {"targets": 3, "aggregate": aggregate}) for aggregate in AGGREGATES]


register(
    OpDef(
        name="tree_ensemble",
        doc="Decision trees on rows x[n, features]: sums the weights of the leaves that a row comes to, per target.",
        operands=(
            Operand("x", _REAL),
            Operand("splits", _REAL, same="x"),
            Operand("nodes", frozenset({i64})),
            Operand("roots", frozenset({i64})),
            Operand("weights", _REAL, same="x"),
            Operand("owners", frozenset({i64})),
        ),
        attrs=(
            Attr("targets", "int", doc="number of results per row"),
            Attr("aggregate", "str", "sum", "how the trees' weights for a target are joined", AGGREGATES),
        ),
        infer=_type,
        reference=_reference,
        kind=Opaque(tree_kernel, args=_args, parallel=lambda call: call.types[0].shape[0], flat=True),
        grad=NotDifferentiable("the result changes in jumps"),
        examples=_examples,
        source="ONNX TreeEnsemble: nodes are (feature, comparison <= < >= > == !=, yes, no, NaN is yes)",
    )
)
