"""How a command that fails says so: one paragraph on standard error, a status, and JSON where that was asked for."""

from __future__ import annotations

import errno
import sys

from dhc_runtime.errors import DhcError, ResourceError, UnsupportedError, UsageError

EXIT_CODES = {
    0: "done",
    1: "any other error, or answers that differ",
    2: "wrong usage of a command or of the API",
    3: "the model is invalid, or its shapes and types do not fit",
    4: "the model uses something that is not supported",
    5: "compiling failed",
    6: "the artifact is damaged or made for another machine",
    7: "a device failed or is missing, or an extra is not installed",
    8: "a limit of memory, time or disk was reached",
    130: "interrupted",
}
INTERRUPTED = 130
_SHOWN_PROBLEMS = 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_WRITABLE = "Name a folder that you may write to, or change its permissions (ls -ld)."
_REMEDIES = {
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EROFS: _WRITABLE,
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
    errno.EEXIST: "A file of that name is in the way: remove it, or name another.",
}
"""What to do about errors of the system that are those of a path that the user gave."""


def report_failure(error: Exception, as_json: bool, debug: bool) -> int:
    """Prints an error and returns the exit status.

    Args:
        error: what was raised.
        as_json: also write it as JSON on standard output.
        debug: show the traceback.
    """
    if debug:
        import traceback

        traceback.print_exception(error)
    status = _status(error)
    if as_json:
        from dhc.cli.output import dump_json

        sys.stdout.write(dump_json({"error": _as_data(error, status)}) + "\n")
    if not debug:
        _print_paragraph(error)
    return status


def _status(error: Exception) -> int:
    if isinstance(error, DhcError):
        return error.exit_code
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL):
        return ResourceError.exit_code
    return UsageError.exit_code if isinstance(error, OSError) and error.errno in _REMEDIES else 1


def _text(error: Exception) -> str:
    if isinstance(error, UnsupportedError) and len(error.problems) > _SHOWN_PROBLEMS:
        whole = DhcError.__str__(error)
        shown = "".join(f"\n  - {problem}" for problem in error.problems[:_SHOWN_PROBLEMS])
        return f"{whole}{shown}\n  ... and {len(error.problems) - _SHOWN_PROBLEMS} more (--json lists all)"
    if isinstance(error, DhcError):
        return str(error)
    if isinstance(error, MemoryError):
        return "The memory of this machine does not suffice. Use smaller sizes (--shape) or fewer threads."
    if isinstance(error, OSError):
        place = f" (at {error.filename})" if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "")
        return f"{error.strerror or error}{place}.{' ' if remedy else ''}{remedy}"
    return f"Internal error, {type(error).__name__}: {error}. This is a defect of dhc; --debug shows where it happened."


def _print_paragraph(error: Exception) -> None:
    text = _text(error)
    if not sys.stderr.isatty():
        sys.stderr.write(f"error: {text}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text("error: ", style="bold red") + Text(text), soft_wrap=True)


def _as_data(error: Exception, status: int) -> dict[str, object]:
    data: dict[str, object] = {"kind": type(error).__name__, "exit_code": status}
    if isinstance(error, DhcError):
        data.update(message=error.message, where=error.where, hint=error.hint)
        if isinstance(error, UnsupportedError):
            data["problems"] = [str(problem) for problem in error.problems]
    else:
        data.update(message=_text(error), where=None, hint=None)
    return data
