"""The node cases of the onnx package, and the list of those that pass in the interpreter."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from dhc.frontend.onnx.conformance import load_cases

LIST = Path(__file__).with_name("node_cases.txt")
"""Names of the cases that pass (``python -m dhc.frontend.onnx.conformance --device reference --list``)."""


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Any]:
    """Every node case by name."""
    return {case.name: case for case in load_cases("node")}


def passing_names() -> list[str]:
    """The checked-in list."""
    return LIST.read_text(encoding="utf-8").split()
