"""ONNX's own test cases: how many pass, by suite and device; the figures of the support page."""

from __future__ import annotations

from typing import Any

TITLE = "Test cases of the onnx package"


def run() -> list[dict[str, Any]]:
    """A row for each suite and device; *limited* cases are refused with a reason."""
    import onnx

    from dhc.frontend.onnx.conformance import SUITES, run_suite, summary

    rows = []
    for suite in SUITES:
        for device in ("CPU", "REFERENCE"):
            outcomes = run_suite(suite, device, jobs=2)
            row = {"suite": suite, "onnx": onnx.__version__, "device": device.lower(), "cases": len(outcomes)}
            rows.append({**row, **summary(outcomes)})
    return rows
