"""The errors of dhc and its runtime: one family, each saying what is wrong, where, and what to do.

The compiler re-exports this module as ``dhc.errors``, so that a program catches the same classes whether a problem
shows at compile time or at run time. ``exit_code`` is the status with which the command line ends:

====  =======================================================
code  meaning
====  =======================================================
1     any other error
2     wrong usage of a command or of the API
3     the model is invalid (or its shapes and types do not fit)
4     the model uses something that is not supported
5     compiling failed
6     the artifact is damaged or made for another machine
7     a device failed or is missing
8     a limit of memory, time or disk was reached
====  =======================================================
"""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

__all__ = [
    "ArtifactError",
    "CompileError",
    "DeviceError",
    "DhcError",
    "MissingExtraError",
    "ModelError",
    "ParseError",
    "ResourceError",
    "ShapeError",
    "TypeMismatchError",
    "UnsupportedError",
    "UsageError",
    "VerifyError",
]


def _sentence(text: str) -> str:
    """Returns ``text`` ended by a full stop, so that the parts of an error join to one paragraph."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else text + "."


def _joined(text: str, hint: str) -> str:
    """Text and hint as one paragraph: a hint in lower case goes on with the sentence, others begin their own."""
    if text.endswith(".") and hint[:1].islower():
        return "{}; {}".format(text[:-1], hint)
    return "{} {}".format(text, hint)


class DhcError(Exception):
    """Base of every error that dhc raises on purpose.

    Args:
        message: what is wrong.
        where: the place in the user's model or data (node, file and line, input name), if there is one.
        hint: what to do about it, if something can be done.

    Attributes:
        exit_code: the status of the command line for this class of error.
    """

    exit_code: int = 1

    def __init__(self, message: str, where: Optional[Any] = None, hint: Optional[str] = None) -> None:
        self.message = str(message)
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        if self.where:
            text = _sentence("{} (at {})".format(self.message.rstrip().rstrip("."), self.where))
        else:
            text = _sentence(self.message)
        return _joined(text, _sentence(self.hint)) if self.hint else text

    def __reduce__(self) -> Tuple[Any, ...]:
        # Exceptions are rebuilt from `args`, which hold less than __init__ takes: restore the state by hand, so that
        # errors travel between processes whole.
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(cls: type, args: Tuple[Any, ...], state: "dict[str, Any]") -> BaseException:
    error: BaseException = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(DhcError):
    """A command or an API call was used wrongly: an unknown option, a missing file, a wrong argument."""

    exit_code = 2


class ModelError(DhcError):
    """The model or its input data is malformed or breaks a rule of its own format."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The model is valid, but uses something that dhc or the chosen target does not support.

    Args:
        message: what is not supported, as a whole.
        problems: one entry for each thing that is not supported; all of them are listed at once.
        where: see `DhcError`.
        hint: see `DhcError`.
    """

    exit_code = 4

    def __init__(
        self, message: str, problems: Sequence[Any] = (), where: Optional[Any] = None, hint: Optional[str] = None
    ) -> None:
        super().__init__(message, where, hint)
        self.problems = list(problems)

    def __str__(self) -> str:
        text = super().__str__()
        if not self.problems:
            return text
        return text + "".join("\n  - {}".format(problem) for problem in self.problems)


class ShapeError(ModelError):
    """Shapes do not fit together."""


class TypeMismatchError(ModelError):
    """Element types (dtypes), or kinds of types, do not fit together."""


class VerifyError(ModelError):
    """A graph breaks an invariant of the IR. After a pass this is a defect of that pass, never of the user's model."""


class ParseError(ModelError):
    """Text (IR, options, shapes) cannot be parsed.

    Args:
        message: what is wrong.
        line: 1-based line, if known.
        column: 1-based column, if known.
        source: the text of that line; a caret is drawn under the column.
        where: name of the file or other source; the position is added to it.
        hint: see `DhcError`.
    """

    def __init__(
        self,
        message: str,
        line: Optional[int] = None,
        column: Optional[int] = None,
        source: Optional[str] = None,
        where: Optional[Any] = None,
        hint: Optional[str] = None,
    ) -> None:
        place = None if where is None else str(where)
        if line is not None:
            position = "line {}".format(line) if column is None else "line {}, column {}".format(line, column)
            place = position if place is None else "{}, {}".format(place, position)
        super().__init__(message, place, hint)
        self.line = line
        self.column = column
        self.source = source

    @property
    def caret(self) -> str:
        """The source line with a caret under the column; empty when they are not known."""
        if self.source is None or self.column is None:
            return ""
        head = "".join("\t" if character == "\t" else " " for character in self.source[: max(self.column - 1, 0)])
        return "{}\n{}^".format(self.source, head)

    def __str__(self) -> str:
        caret = self.caret
        return "{}\n{}".format(super().__str__(), caret) if caret else super().__str__()


class CompileError(DhcError):
    """Code generation failed."""

    exit_code = 5


class ArtifactError(DhcError):
    """An artifact is damaged, tampered with, of an unknown format, or made for another machine."""

    exit_code = 6


class DeviceError(DhcError):
    """A device is missing, or failed while it worked."""

    exit_code = 7


class MissingExtraError(DeviceError):
    """An optional part of dhc is not installed.

    Args:
        extra: name of the extra that brings it, as in ``pip install 'dhc[extra]'``.
        what: what needs it.
        where: see `DhcError`.
    """

    def __init__(self, extra: str, what: str, where: Optional[Any] = None) -> None:
        super().__init__(
            "{} needs a package that is not installed".format(what),
            where,
            "Install it with: pip install 'dhc[{}]'".format(extra),
        )
        self.extra = extra
        self.what = what


class ResourceError(DhcError):
    """A limit of memory, time or disk would be exceeded.

    Args:
        message: what needs too much.
        budget: the limit, in the unit that the message names.
        where: see `DhcError`.
        hint: see `DhcError`.
    """

    exit_code = 8

    def __init__(
        self, message: str, budget: Optional[int] = None, where: Optional[Any] = None, hint: Optional[str] = None
    ) -> None:
        super().__init__(message, where, hint)
        self.budget = budget
