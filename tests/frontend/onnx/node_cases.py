"""The node cases of the onnx package, and the lists of those that pass."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from dhc.frontend.onnx.conformance import load_cases

LISTS = {
    "REFERENCE": Path(__file__).with_name("node_cases.txt"),
    "CPU": Path(__file__).with_name("node_cases_cpu.txt"),
}
"""Names of the cases that pass (``python -m dhc.frontend.onnx.conformance --device reference --list``)."""


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Any]:
    """Every node case by name."""
    return {case.name: case for case in load_cases("node")}


def passing_names(device: str = "REFERENCE") -> list[str]:
    """The checked-in list of a device."""
    return LISTS[device].read_text(encoding="utf-8").split()
