"""Named sequences of passes: what targets run by default."""

from __future__ import annotations

from collections.abc import Callable

from dhc.passes.base import Pass
from dhc.passes.canonicalize import Canonicalize
from dhc.passes.cse import CommonSubexpressions
from dhc.passes.dce import DeadCode
from dhc.passes.decompose import Decompose
from dhc.passes.fold import Fold
from dhc.passes.fold_batch_norm import FoldBatchNorm
from dhc.passes.fuse import Fuse
from dhc.passes.fuse_attention import FuseAttention
from dhc.passes.sink import Sink

KEPT = {"cpu": "group_norm+instance_norm"}
"""Composites for which targets have kernels, see `Decompose.keep`."""


def clean_up() -> list[Pass]:
    """Simplifies without choosing anything: fold, canonicalize, merge, remove."""
    return [Fold(), Canonicalize(), CommonSubexpressions(), DeadCode()]


def standard_pipeline(target: str = "cpu") -> list[Pass]:
    """The passes that `dhc.compile` runs for a target.

    The `reference` target takes the graph as it is: it is what the others are compared with.
    """
    if target == "reference":
        return []
    simplify: list[Pass] = [
        *clean_up(),
        FoldBatchNorm(),
        Decompose(KEPT.get(target, "")),
        *clean_up(),
        Sink(),
        *clean_up(),
    ]
    return [*simplify, FoldBatchNorm(), Fold(), DeadCode(), FuseAttention(), Fuse()]


PIPELINES: dict[str, Callable[[], list[Pass]]] = {"clean": clean_up, "standard": standard_pipeline}
"""Pipelines by name, for `dhc opt --passes standard`."""
