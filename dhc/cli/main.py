"""The entry point of ``dhc``: verbs, errors as one paragraph, exit codes. Verbs import what they need when they run."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dhc_runtime.errors import DhcError

from dhc import __version__
from dhc.cli.failures import EXIT_CODES, INTERRUPTED, report_failure
from dhc.cli.verbs.bench import bench
from dhc.cli.verbs.check import check
from dhc.cli.verbs.compare import compare
from dhc.cli.verbs.compile import compile_model
from dhc.cli.verbs.demo import demo
from dhc.cli.verbs.doctor import doctor
from dhc.cli.verbs.inspect import inspect_file
from dhc.cli.verbs.opt import opt
from dhc.cli.verbs.run import run

VERBS = {
    "check": check,
    "compile": compile_model,
    "run": run,
    "inspect": inspect_file,
    "compare": compare,
    "opt": opt,
    "bench": bench,
    "doctor": doctor,
    "demo": demo,
}

_EPILOG = "Exit codes:\n" + "\n".join(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())

# The base of the errors that the option parser raises; Typer does not name it in every version.
_PARSER_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="dhc",
    help="The DeepHealth compiler: ONNX models in, programs for the devices at hand out.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dhc {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The DeepHealth compiler: ONNX models in, programs for the devices at hand out."""


for _name, _function in VERBS.items():
    app.command(name=_name)(_function)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status (``EXIT_CODES``).

    Args:
        arguments: the words after ``dhc``; None for those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    as_json, debug = "--json" in options, "--debug" in options
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _show_warning
        try:
            status = app(args=words, prog_name="dhc", standalone_mode=False)
            sys.stdout.flush()
        except _PARSER_ERROR as error:
            return _parser_failure(error, as_json)
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except BrokenPipeError:
            # The reader of our output went away (`dhc inspect ... | head`): nothing is left to say to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if debug and not isinstance(error, DhcError):
                raise
            return report_failure(error, as_json, debug)
    if status == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return int(status) if isinstance(status, int) else 0


def _parser_failure(error: Any, as_json: bool) -> int:
    """A wrong option or argument: the message of the parser, and where help is."""
    from dhc.errors import UsageError

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "dhc"
    return report_failure(
        UsageError(error.format_message(), hint=f"`{path} --help` shows what it takes"), as_json, False
    )


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """A warning as one line, without the place in our source."""
    sys.stderr.write(f"warning: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
