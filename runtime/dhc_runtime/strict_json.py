"""Parsing JSON that somebody else wrote: bounded in memory, no duplicate keys, no NaN."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Tuple, Union

from dhc_runtime.errors import ArtifactError

__all__ = ["parse_table"]

_MAX_VALUES = 1_500_000
"""A value takes up to some 100 bytes once parsed: this bounds the memory to about 150 MB whatever the text holds."""


def _no_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ArtifactError("It names {!r} twice in one table".format(twice[:100]))
    return result


def _no_constant(text: str) -> Any:
    raise ArtifactError("It holds the number {}".format(text))


def parse_table(
    data: Union[bytes, bytearray, memoryview], what: str, limit: int, hint: Optional[str] = None
) -> Dict[str, Any]:
    """Parses a JSON table.

    Args:
        data: UTF-8 text.
        what: what to call it in messages.
        limit: largest size in bytes.
        hint: what to do about an error.

    Raises:
        ArtifactError: it is too large, not valid JSON, no table, or names a key twice.
    """
    if len(data) > limit:
        raise ArtifactError("It holds {} bytes, more than the {} allowed".format(len(data), limit), what, hint)
    text = bytes(data)
    if text.count(b",") + text.count(b"[") + text.count(b"{") > _MAX_VALUES:
        raise ArtifactError("It holds more than {} values".format(_MAX_VALUES), what, hint)
    try:
        result = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ArtifactError as error:
        raise ArtifactError(error.message, what, hint) from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError("It is not valid JSON: {}".format(str(error)[:200]), what, hint) from error
    if not isinstance(result, dict):
        raise ArtifactError("It is not a JSON table", what, hint)
    return result
