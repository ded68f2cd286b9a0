"""dhc_runtime: loads and runs artifacts of dhc; NumPy and the standard library only."""

from __future__ import annotations

__version__ = "0.1.0"
