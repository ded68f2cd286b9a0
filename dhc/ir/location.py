"""Where a node came from: what every message about it shows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Location:
    """Origin of a node.

    Attributes:
        source: the model file or Python file.
        line: line in a Python or text file; 0 when it does not apply.
        node: name of the node in the source model.
        op: operator in the source model, e.g. ``Conv``.
    """

    source: str = ""
    line: int = 0
    node: str = ""
    op: str = ""

    def __str__(self) -> str:
        if self.node or self.op:
            label = f"{self.op} node {self.node!r}" if self.op else f"node {self.node!r}"
            return f"{label} of {self.source}" if self.source else label
        if self.line:
            return f"{self.source}:{self.line}"
        return self.source or "unknown location"


UNKNOWN = Location()


def caller_location() -> Location:
    """Location of the nearest stack frame outside of the dhc package."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return Location(source=Path(frame.f_code.co_filename).name, line=frame.f_lineno)
