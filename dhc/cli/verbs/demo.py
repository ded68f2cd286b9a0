"""``dhc demo``: real handwritten digits through a network that dhc compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dhc.cli.options import AsJson, Debug
from dhc.cli.output import Output


def demo(
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for what is written.")] = Path("demo_out"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fit, compile and run a classifier of real handwritten digits."""
    from dhc.cli.demo import run_demo

    out = Output(as_json)
    result = run_demo(out_dir, out.line)
    out.end(result, f"dhc inspect {result['files']['dhc']}")
