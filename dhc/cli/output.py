"""What commands print: tables and lines for people, or one JSON document, and progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dhc_runtime.errors import UsageError

_UNITS = (("GiB", 30), ("MiB", 20), ("KiB", 10))


def dump_json(data: Any) -> str:
    """JSON text; NumPy numbers become plain ones, and NaN and infinities (which JSON has not) null."""
    return json.dumps(_plain(data), indent=1, ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def format_bytes(count: int) -> str:
    """``1.5 MiB``."""
    for unit, power in _UNITS:
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} B"


def format_count(count: float) -> str:
    """``1.8 G``: a count with a decimal prefix."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


def format_seconds(seconds: float) -> str:
    """``12.3 ms``."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def format_shape(shape: Sequence[Any]) -> str:
    """``[N, 3, 224, 224]``."""
    return f"[{', '.join(str(d) for d in shape)}]"


def require_folder(path: Path | None) -> None:
    """Refuses a file whose folder does not exist: better now than after the work.

    Raises:
        UsageError: there is no such folder, or the path is one itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder", hint="name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r}", hint=f"mkdir -p {path.parent}")


class Output:
    """Prints the answer of one command.

    Args:
        as_json: collect everything for one JSON document; tables and lines print nothing.
        notes: print lines and tables on standard error, where standard output carries the result itself.
    """

    def __init__(self, as_json: bool, notes: bool = False) -> None:
        self.as_json = as_json
        self._stream = sys.stderr if notes else sys.stdout
        self._console_: Any = None

    @property
    def _console(self) -> Any:
        if self._console_ is None:
            from rich.console import Console

            class Printer(Console):
                def on_broken_pipe(self) -> None:
                    # Rich would end the process with status 1; `main` ends it quietly.
                    raise BrokenPipeError

            # A pipe has no width: wide enough that no cell of a table is folded.
            width = None if self._stream.isatty() else 240
            self._console_ = Printer(file=self._stream, width=width, markup=False, highlight=False, emoji=False)
        return self._console_

    def line(self, text: str = "", style: str = "") -> None:
        """One line for people."""
        if not self.as_json:
            self._console.print(text, style=style or None, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """A table for people; columns titled ``>...`` are aligned to the right, empty columns left out."""
        if self.as_json or not rows:
            return
        from rich import box
        from rich.table import Table

        texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
        kept = [i for i, column in enumerate(columns) if any(row[i] for row in texts)]
        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for column in (columns[i] for i in kept):
            right = column.startswith(">")
            table.add_column(column[1:] if right else column, justify="right" if right else "left", overflow="fold")
        for row in texts:
            table.add_row(*(row[i] for i in kept))
        self._console.print(table)

    def fields(self, pairs: Sequence[tuple[str, Any]]) -> None:
        """Names and values in two columns."""
        if not self.as_json and pairs:
            width = max(len(name) for name, _ in pairs) + 2
            for name, value in pairs:
                self.line(f"{name:<{width}}{value}")

    def end(self, data: Mapping[str, Any], following: str = "") -> None:
        """Finishes: the JSON document, or the next useful command."""
        if self.as_json:
            sys.stdout.write(dump_json({**data, "next": following or None}) + "\n")
        elif following:
            self.line(f"next: {following}", style="dim")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on standard error while the block runs, where that is a terminal."""
        if self.as_json or not sys.stderr.isatty():
            yield Progress(None)
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            yield Progress(bar)


class Progress:
    """The stages of long work; does nothing without a bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Shows a stage; ``total`` 0 means that its length is not known."""
        if self._bar is None:
            return
        if stage not in self._tasks:
            for task in self._tasks.values():
                self._bar.update(task, visible=False)
            self._tasks[stage] = self._bar.add_task(stage, total=None)
        self._bar.update(self._tasks[stage], completed=done, total=total or None, visible=True)
