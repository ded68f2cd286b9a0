"""The table of ONNX operators: (domain, operator) -> handlers by the opset that introduced their meaning.

A handler takes a `NodeContext` and returns the values of the node's outputs. Of several handlers for an operator
the one with the highest `since` not above the model's opset is used, which is ONNX's own rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhc.frontend.onnx.context import NodeContext

Handler = Callable[["NodeContext"], Any]

_HANDLERS: dict[tuple[str, str], dict[int, Handler]] = {}

FAMILIES = (
    "activation", "contraction", "control", "einsum", "elementwise", "gather", "generate", "learning",
    "normalization", "pooling", "quantization", "recurrent", "reduction", "resize", "sampling", "sequences", "shape",
    "signal", "sorting", "text", "training",
)  # fmt: skip
"""Modules of `dhc.frontend.onnx.families`, one a family of operators."""


def onnx_op(*names: str, since: int = 1, domain: str = "ai.onnx") -> Callable[[Handler], Handler]:
    """Decorator: registers a handler for operators from an opset on."""

    def add(handler: Handler) -> Handler:
        for name in names:
            versions = _HANDLERS.setdefault((domain, name), {})
            if since in versions:
                raise ValueError(f"{domain}.{name} already has a handler since {since}")
            versions[since] = handler
        return handler

    return add


@cache
def load_families() -> None:
    """Imports every family once."""
    for family in FAMILIES:
        import_module(f"dhc.frontend.onnx.families.{family}")


def find_handler(domain: str, name: str, opset: int) -> Handler | None:
    """The handler for an operator at an opset, None when there is none."""
    load_families()
    versions = _HANDLERS.get((domain or "ai.onnx", name), {})
    fitting = [since for since in versions if since <= opset]
    return versions[max(fitting)] if fitting else None


def known_operators(domain: str = "ai.onnx") -> list[str]:
    """Operators with at least one handler, sorted."""
    load_families()
    return sorted(name for d, name in _HANDLERS if d == domain)
