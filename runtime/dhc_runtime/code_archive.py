"""Object code of several kernels in one member: the ``ar`` format of static libraries, one ELF object for each kernel.

The members are named by position; a table in the first member, ``symbols``, says which object holds which function
(lines of ``name<TAB>number``), so that only the objects that a plan uses are linked.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple, Union

from dhc_runtime.code_object import CodeObject
from dhc_runtime.errors import ArtifactError

__all__ = ["CodeArchive", "read_archive", "write_archive"]

_MAGIC = b"!<arch>\n"
_HEADER = 60
_INDEX = "symbols"
_MAX_MEMBERS = 100_000

Buffer = Union[bytes, bytearray, memoryview]


def _header(name: str, size: int) -> bytes:
    # Name, time, owner, group, mode, size: only name and size carry meaning, so that equal code is equal bytes.
    return "{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n".format(name + "/", 0, 0, 0, "644", size).encode("ascii")


def write_archive(objects: Mapping[str, bytes]) -> bytes:
    """An archive of objects, each of which defines the function it is named after.

    Args:
        objects: function name -> ELF relocatable object; their order is kept.
    """
    index = "".join("{}\t{}\n".format(symbol, number) for number, symbol in enumerate(objects)).encode("ascii")
    parts = [_MAGIC]
    for name, data in [(_INDEX, index)] + [(str(number), data) for number, data in enumerate(objects.values())]:
        parts.append(_header(name, len(data)))
        parts.append(data)
        parts.append(b"\n" * (len(data) % 2))
    return b"".join(parts)


def read_archive(data: Buffer, where: str = "object code") -> Dict[str, memoryview]:
    """The objects of an archive by function name.

    Raises:
        ArtifactError: the archive is malformed.
    """
    view = memoryview(data).cast("B")

    def fail(what: str) -> ArtifactError:
        return ArtifactError("The code archive is damaged: {}".format(what), where, "Compile the model again")

    if bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise fail("it does not begin as one")
    position = len(_MAGIC)
    members: List[Tuple[str, memoryview]] = []
    while position < len(view):
        header = bytes(view[position : position + _HEADER])
        if len(header) != _HEADER or header[58:] != b"`\n" or len(members) > _MAX_MEMBERS:
            raise fail("a header is broken")
        digits = header[48:58].strip()
        if not digits.isdigit():
            raise fail("a size is no number")
        name, size = header[:16].strip().rstrip(b"/").decode("ascii", "replace"), int(digits)
        position += _HEADER
        if position + size > len(view):
            raise fail("a member is cut off")
        members.append((name, view[position : position + size]))
        position += size + size % 2
    if not members or members[0][0] != _INDEX:
        raise fail("the table of functions is missing")
    found: Dict[str, memoryview] = {}
    for line in bytes(members[0][1]).decode("ascii", "replace").splitlines():
        symbol, _, number = line.partition("\t")
        if not number.isdigit() or int(number) + 1 >= len(members) or symbol in found:
            raise fail("the table of functions is wrong")
        found[symbol] = members[int(number) + 1][1]
    return found


class CodeArchive:
    """The functions of an archive, linked when they are first asked for.

    Args:
        data: the archive.
        where: what to call it in messages.

    Raises:
        ArtifactError: the archive is malformed.
    """

    def __init__(self, data: Buffer, where: str = "object code") -> None:
        self._where = where
        self._objects = read_archive(data, where)
        self._loaded: Dict[str, Any] = {}

    def address(self, symbol: str) -> int:
        """The address of a function.

        Raises:
            ArtifactError: there is no such function, or its object is damaged or for another machine.
        """
        if symbol not in self._loaded:
            if symbol not in self._objects:
                raise ArtifactError(
                    "The code has no function {!r}".format(symbol), self._where, "Compile the model again"
                )
            self._loaded[symbol] = CodeObject(self._objects[symbol], "{} in {}".format(symbol, self._where))
        return int(self._loaded[symbol].address(symbol))
