"""Splits IR text into tokens, one at a time, with positions for messages."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from dhc_runtime.errors import ParseError


class Token(NamedTuple):
    """A piece of text.

    Attributes:
        kind: ``value`` (%x), ``at`` (@x), ``name``, ``int``, ``float``, ``hex``, ``sha``, ``string``, ``end``, or the
            punctuation itself.
        text: the characters; for value, at and string what they mean.
        offset: position in the source.
        plain: for ``value``: False when it stands for a number the printer made up (``%0``).
    """

    kind: str
    text: str
    offset: int
    plain: bool = True


_SKIP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_TOKEN = re.compile(
    r"""(?P<value>%(?:[A-Za-z_][A-Za-z0-9_.]*|[0-9]+|"(?:[^"\\\n]|\\.)*"))
      | (?P<at>@(?:[A-Za-z_][A-Za-z0-9_.]*|"(?:[^"\\\n]|\\.)*"))
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<sha>sha256:[0-9a-f]{64})
      | (?P<hex>0x[0-9a-fA-F]*)
      | (?P<float>[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+)
      | (?P<int>[0-9]+)
      | (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<mark>->|//|[()\[\]{}<>,:=+*/%?-])
    """,
    re.VERBOSE,
)
MAX_NUMBER = 400
"""Longest number in characters."""


class Lexer:
    """Tokens of a text; `peek` looks ahead without taking."""

    def __init__(self, source: str, where: str | None = None) -> None:
        self.source = source
        self.where = where
        self._offset = 0
        self._ahead: list[Token] = []

    def peek(self, distance: int = 0) -> Token:
        """The token `distance` places ahead."""
        while len(self._ahead) <= distance:
            self._ahead.append(self._scan())
        return self._ahead[distance]

    def take(self) -> Token:
        """Takes the next token."""
        token = self.peek()
        del self._ahead[0]
        return token

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1."""
        line = self.source.count("\n", 0, offset) + 1
        return line, offset - (self.source.rfind("\n", 0, offset) + 1) + 1

    def fail(self, message: str, at: Token | int | None = None, hint: str | None = None) -> ParseError:
        """The error to raise about a place (default: the next token)."""
        offset = at if isinstance(at, int) else (self.peek() if at is None else at).offset
        line, column = self.position(offset)
        start = self.source.rfind("\n", 0, offset) + 1
        end = self.source.find("\n", offset)
        text = self.source[start : len(self.source) if end < 0 else end].rstrip("\r")
        shown = column
        if len(text) > 200:  # a line of a large constant: show what is around the place
            first = max(0, column - 100)
            text, shown = text[first : first + 200], column - first
        error = ParseError(message, line, column, text, where=self.where, hint=hint)
        error.column = shown
        return error

    def _scan(self) -> Token:
        skipped = _SKIP.match(self.source, self._offset)
        if skipped:
            self._offset = skipped.end()
        start = self._offset
        if start >= len(self.source):
            return Token("end", "", start)
        match = _TOKEN.match(self.source, start)
        if match is None:
            character = self.source[start]
            if character == '"' or self.source[start + 1 : start + 2] == '"':
                raise self.fail("the string does not end on its line", start)
            raise self.fail(f"unexpected character {character!r}", start)
        kind, text = str(match.lastgroup), match.group()
        if len(text) > MAX_NUMBER and kind in ("int", "float"):
            raise self.fail(f"a {kind} of {len(text)} characters is too long", start)
        self._offset = match.end()
        if kind == "mark":
            return Token(text, text, start)
        if kind == "string":
            return Token(kind, self._decode(text, start), start)
        if kind in ("value", "at"):
            body = text[1:]
            if body.startswith('"'):
                return Token(kind, self._decode(body, start), start)
            return Token(kind, body, start, not body[0].isdigit())
        return Token(kind, text, start)

    def _decode(self, text: str, start: int) -> str:
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise self.fail(f"bad string: {error}", start) from None
