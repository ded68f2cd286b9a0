"""Passes: graph to graph, one file a pass. `pipelines.py` names the sequences that targets use."""

from __future__ import annotations

from dhc.passes.base import Pass, PassResult, Refusal, find_pass, parse_passes, pass_names, register_pass, run_passes
from dhc.passes.rewrite import Rule, apply_rules, replace_node, rule

__all__ = [
    "Pass", "PassResult", "Refusal", "Rule", "apply_rules", "find_pass", "parse_passes", "pass_names", "register_pass",
    "replace_node", "rule", "run_passes",
]  # fmt: skip
