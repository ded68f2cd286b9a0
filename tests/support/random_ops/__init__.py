"""How the random graph generator uses each op: which operands make sense, how large and how exact the result is."""

from __future__ import annotations

# isort: off
# Imported in the order in which the rules stand in the list: an example is a choice of positions in it.
from tests.support.random_ops import elementwise, reduction, view, indexing, contraction, norm, structure  # noqa: F401
from tests.support.random_ops.rule import RULES, Rule

__all__ = ["RULES", "Rule"]
