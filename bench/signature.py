"""What goes into a model and what comes out: all that an engine must know to be fed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """What goes in and what comes out.

    Attributes:
        inputs: sizes by name.
        outputs: names.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
