"""ONNX's own test cases on the CPU target: how many pass, by suite; the figures of the support page."""

from __future__ import annotations

from typing import Any

TITLE = "Test cases of the onnx package on the target cpu"


def run() -> list[dict[str, Any]]:
    """A row for each suite. *Limited* are refused with a reason; *interpreted* are strings, sequences and optionals."""
    import onnx

    from dhc.frontend.onnx.conformance import SUITES, run_suite, summary

    rows = []
    for suite in SUITES:
        outcomes = run_suite(suite, "CPU", jobs=2)
        row = {"suite": suite, "onnx": onnx.__version__, "cases": len(outcomes)}
        rows.append({**row, **summary(outcomes)})
    return rows
