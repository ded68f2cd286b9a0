"""What adapters share: finding and running converters."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers import PeerError


def tool(name: str) -> str:
    """A command that a wheel has installed, next to this Python or on the path.

    Raises:
        ImportError: it is not there.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ImportError(f"the command {name} is not installed")
    return found


def run_tool(command: Sequence[str | Path], made: Path, seconds: float = 600) -> None:
    """Runs a converter in the folder of what it makes: some leave files where they run. Its paths are absolute.

    Raises:
        PeerError: it failed; the message has the last lines of what it wrote.
    """
    full = [str(part.absolute()) if isinstance(part, Path) else part for part in command]
    done = subprocess.run(full, cwd=made.parent, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode or not made.is_file():
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise PeerError(f"{Path(command[0]).name} ends with {done.returncode}: {' | '.join(lines[-2:])[:200]}")
