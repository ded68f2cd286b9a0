"""The table of exporters: op -> function that writes its nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhc.frontend.onnx.export.writer import GraphWriter
    from dhc.ir.graph import Node

Exporter = Callable[["GraphWriter", "Node"], Any]

_EXPORTERS: dict[str, Exporter] = {}

FAMILIES = (
    "contraction", "control", "elementwise", "gather", "generate", "normalization", "quantization", "recurrent",
    "reduction", "view", "window",
)  # fmt: skip


def exports(*ops: str) -> Callable[[Exporter], Exporter]:
    """Decorator: registers an exporter, which returns the ONNX name of each result (or the only one)."""

    def add(function: Exporter) -> Exporter:
        for op in ops:
            if op in _EXPORTERS:
                raise ValueError(f"{op} already has an exporter")
            _EXPORTERS[op] = function
        return function

    return add


@cache
def load_families() -> None:
    """Imports every family once."""
    for family in FAMILIES:
        import_module(f"dhc.frontend.onnx.export.{family}")


def find_exporter(op: str) -> Exporter | None:
    """The exporter of an op, None when there is none."""
    load_families()
    return _EXPORTERS.get(op)
