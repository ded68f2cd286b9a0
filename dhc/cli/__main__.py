"""``python -m dhc.cli`` and the ``dhc`` script: the command line, also when interrupted while it is being loaded."""

from __future__ import annotations

import sys


def start() -> int:
    """Loads the command line and runs it; returns the exit status."""
    try:
        from dhc.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
