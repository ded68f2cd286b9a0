"""Classical machine learning (domain ai.onnx.ml), as far as it is numeric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.dtypes import f32, f64
from dhc.ir.graph import Value

_DOMAIN = "ai.onnx.ml"


@onnx_op("ArrayFeatureExtractor", domain=_DOMAIN)
def extract_features(n: NodeContext) -> Value:
    """Columns of the last axis; a vector counts as one row."""
    x, chosen = n.value(0), n.value(1)
    flat = n.b.reshape(chosen, shape=(chosen.type.numel,))
    found: Value = n.b.gather(x, flat, axis=x.type.rank - 1)
    return n.b.reshape(found, shape=(1, *found.shape)) if x.type.rank == 1 else found


@onnx_op("Binarizer", domain=_DOMAIN)
def binarize(n: NodeContext) -> Value:
    """1 above the threshold, else 0."""
    x, threshold = n.value(0), n.attr("threshold", 0.0)
    if not x.dtype.is_float:
        wide = n.b.cast(x, dtype=f64)
        return n.b.cast(n.b.gt(wide, n.b.like(threshold, wide)), dtype=x.dtype)
    return n.b.cast(n.b.gt(x, n.b.like(threshold, x)), dtype=x.dtype)


@onnx_op("Scaler", domain=_DOMAIN)
def scale_features(n: NodeContext) -> Value:
    """(x - offset) * scale along the last axis, as f32."""
    x = n.value(0)
    wide = x if x.dtype == f32 else n.b.cast(x, dtype=f32)
    offset = n.b.constant(np.array(n.attr("offset") or [0.0], np.float32))
    scale = n.b.constant(np.array(n.attr("scale") or [1.0], np.float32))
    return n.b.mul(n.b.sub(wide, offset), scale)


# ---- trees -----------------------------------------------------------------------------------------------------------

_LE, _LT, _GE, _GT, _EQ, _NE, _MEMBER = range(7)
_AGGREGATE = ("average", "sum", "min", "max")
_TRANSFORMS = ("none", "softmax", "logistic", "softmax_zero", "probit")


@onnx_op("TreeEnsemble", since=5, domain=_DOMAIN)
def tree_ensemble(n: NodeContext) -> Value:
    """Every tree leads to a leaf; the weights of the leaves are added up for each target."""
    count = len(n.require_attr("nodes_modes"))
    columns = {name: list(n.require_attr(f"nodes_{name}")) for name in (
        "featureids", "modes", "splits", "truenodeids", "trueleafs", "falsenodeids", "falseleafs",
    )}  # fmt: skip
    missing = n.attr("nodes_missing_value_tracks_true") or [0] * count
    weights, targets = n.require_attr("leaf_weights"), n.require_attr("leaf_targetids")
    if any(len(c) != count for c in (*columns.values(), missing)) or len(weights) != len(targets):
        n.invalid("the lists of nodes, or of leaves, differ in length")
    nodes: list[list[int]] = []
    for i in range(count):
        branches = []
        for side in ("true", "false"):
            to, leaf = int(columns[f"{side}nodeids"][i]), bool(columns[f"{side}leafs"][i])
            if not 0 <= to < (len(weights) if leaf else count):
                n.invalid(f"node {i} leads to {'leaf' if leaf else 'node'} {to}, which does not exist")
            branches.append(-1 - to if leaf else to)
        nodes.append([int(columns["featureids"][i]), int(columns["modes"][i]), *branches, int(missing[i])])
    splits = [float(v) for v in columns["splits"]]
    _expand_members(n, nodes, splits, n.attr("membership_values"))
    roots = list(n.require_attr("tree_roots"))
    if any(not 0 <= r < count for r in roots):
        n.invalid("a root does not exist")
    return evaluate_trees(
        n, nodes, splits, roots, weights, targets, n.require_attr("n_targets"),
        _AGGREGATE[n.attr("aggregate_function", 1)], _TRANSFORMS[n.attr("post_transform", 0)],
    )  # fmt: skip


def _expand_members(n: NodeContext, nodes: list[list[int]], splits: list[float], members: Any) -> None:
    """Replaces each test for membership by a chain of tests for equality."""
    values = [] if members is None else [float(v) for v in np.asarray(members).reshape(-1)]
    sets: list[list[float]] = [[]]
    for value in values:
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    pending = iter(sets[:-1])
    for i in range(len(nodes)):
        if nodes[i][1] != _MEMBER:
            continue
        own = next(pending, None)
        if own is None:
            n.invalid("membership values are missing")
        feature, _, yes, no, missing = nodes[i]
        # Every node of the chain but the last asks on when the value differs.
        splits[i] = own[0] if own else float("nan")
        nodes[i] = [feature, _EQ, yes, no, missing]
        at = i
        for value in own[1:]:
            nodes[at][3] = len(nodes)
            at = len(nodes)
            nodes.append([feature, _EQ, yes, no, missing])
            splits.append(value)


def evaluate_trees(
    n: NodeContext, nodes: list[list[int]], splits: list[float], roots: Sequence[int], weights: Any, targets: Any,
    count: int, aggregate: str, transform: str,
) -> Value:  # fmt: skip
    """The op `tree_ensemble` and what follows it."""
    b, x = n.b, n.value(0)
    wide = x.dtype if x.dtype in (f32, f64) else f32
    scores: Value = b.tree_ensemble(
        x if x.dtype == wide else b.cast(x, dtype=wide),
        b.constant(np.array(splits), wide),
        b.constant(np.array(nodes, np.int64).reshape(-1, 5)),
        b.constant(np.array(roots, np.int64)),
        b.constant(np.asarray(weights, np.float64), wide),
        b.constant(np.asarray(targets, np.int64)),
        targets=count,
        aggregate=aggregate,
    )
    if transform == "none":
        return scores
    if transform == "softmax":
        return b.softmax(scores, axis=1)
    if transform == "logistic":
        return b.sigmoid(scores)
    return n.unsupported(f"the transformation {transform} of scores is not supported")
