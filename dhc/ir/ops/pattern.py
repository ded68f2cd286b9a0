"""Regular expressions on untrusted text: how much backtracking a pattern can need is bounded before it runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dhc_runtime.errors import UnsupportedError

MAX_PATTERN = 1000
"""Longest pattern in characters."""
MAX_STEPS = 2.0**24
"""Steps that matching all strings of a call may need at most (about a second)."""

_REPEAT = re.compile(r"\{(\d{1,9})?(,)?(\d{1,9})?\}")
_GROUP = re.compile(r"\(\?(?:P<\w+>|[aimsx]*:)")


def full_matches(pattern: str, texts: Sequence[str]) -> list[bool]:
    """Whether the pattern matches each whole text.

    Raises:
        UnsupportedError: the pattern is too long, uses what ONNX's syntax (RE2) has not, or could need too many steps.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedError(f"a pattern of {len(pattern)} characters; {MAX_PATTERN} are allowed")
    longest = max(map(len, texts), default=0)
    steps = math.log2(sum(len(t) + 1 for t in texts) + 1) + log_choices(pattern, longest)
    if steps > math.log2(MAX_STEPS):
        raise UnsupportedError(
            f"the pattern {pattern!r} could need too many steps on strings of {longest} characters",
            hint="avoid repetitions inside of repetitions, or pass shorter strings",
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsupportedError(f"the pattern {pattern!r} is not valid: {error}") from None
    return [compiled.fullmatch(text) is not None for text in texts]


class _Level:
    """One group while it is read: logarithms of how many ways there are to match its branches."""

    def __init__(self) -> None:
        self.branches: list[float] = []
        self.current = 0.0
        self.last = 0.0

    def item(self, ways: float) -> None:
        self.current += self.last
        self.last = ways

    def branch(self) -> None:
        self.item(0.0)
        self.branches.append(self.current)
        self.current = 0.0

    def total(self) -> float:
        self.branch()
        return max(self.branches) + math.log2(len(self.branches))


def log_choices(pattern: str, longest: int) -> float:
    """Logarithm of an upper bound of the ways in which a backtracking matcher can try to match.

    An item repeated up to n times, that matches in w ways itself, has at most (n + 1) * w**n; n is at most `longest`.

    Raises:
        UnsupportedError: look-around, back references and the like, or unbalanced brackets.
    """
    levels = [_Level()]
    position = 0
    while position < len(pattern):
        character = pattern[position]
        repeat = _REPEAT.match(pattern, position) if character == "{" else None
        if character == "\\":
            position = _escape(pattern, position)
            levels[-1].item(0.0)
        elif character == "[":
            position = _character_class(pattern, position)
            levels[-1].item(0.0)
        elif character == "(":
            position = _group(pattern, position)
            levels.append(_Level())
        elif character == ")":
            if len(levels) == 1:
                raise UnsupportedError(f"the pattern {pattern!r} closes a group that is not open")
            ways = levels.pop().total()
            levels[-1].item(ways)
            position += 1
        elif character == "|":
            levels[-1].branch()
            position += 1
        elif character in "*+?" or repeat is not None:
            most = _most(character, repeat, longest)
            levels[-1].last = math.log2(most + 1) + most * levels[-1].last
            position = repeat.end() if repeat is not None else position + 1
            position += pattern[position : position + 1] == "?"  # the lazy form
        else:
            levels[-1].item(0.0)
            position += 1
    if len(levels) != 1:
        raise UnsupportedError(f"the pattern {pattern!r} leaves a group open")
    return levels[0].total()


def _most(character: str, repeat: re.Match[str] | None, longest: int) -> int:
    if character == "?":
        return 1
    if repeat is None:
        return longest + 1
    bound = repeat.group(3) if repeat.group(2) else repeat.group(1)
    return min(int(bound), longest + 1) if bound else longest + 1


def _escape(pattern: str, position: int) -> int:
    following = pattern[position + 1 : position + 2]
    if following.isdigit() and following != "0":
        raise UnsupportedError(f"the pattern {pattern!r} refers back to a group")
    return position + 2


def _character_class(pattern: str, position: int) -> int:
    position += 1
    if pattern[position : position + 1] == "^":
        position += 1
    if pattern[position : position + 1] == "]":
        position += 1
    while position < len(pattern) and pattern[position] != "]":
        position += 2 if pattern[position] == "\\" else 1
    return position + 1


def _group(pattern: str, position: int) -> int:
    if pattern[position + 1 : position + 2] != "?":
        return position + 1
    match = _GROUP.match(pattern, position)
    if match is None:
        raise UnsupportedError(f"the pattern {pattern!r} looks around or sets flags, which is not supported")
    return match.end()
