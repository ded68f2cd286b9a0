"""The error classes of dhc: those of the runtime, so that one ``except`` catches a problem wherever it shows."""

from __future__ import annotations

from dhc_runtime.errors import *  # noqa: F403 - the runtime's __all__ is the list
from dhc_runtime.errors import __all__ as __all__
