"""The part of linking that all machines share: stubs for far functions, a table of addresses (GOT), range checks."""

from __future__ import annotations

import struct
from typing import Callable, Dict, FrozenSet, Mapping, NamedTuple

from dhc_runtime.errors import ArtifactError

__all__ = ["Linker", "Rules"]


class Rules(NamedTuple):
    """How one machine relocates.

    Attributes:
        widths: bytes that each known relocation type changes.
        low_memory: types that only work below 2 GiB.
        stub: makes a 16-byte jump to a far address.
        apply: carries out one relocation.
    """

    widths: Mapping[int, int]
    low_memory: FrozenSet[int]
    stub: Callable[[int], bytes]
    apply: Callable[["Linker", int, int, "Target"], None]


class Target(NamedTuple):
    """What a relocation refers to: a symbol (number and name), its address, whether it is outside, and the addend."""

    number: int
    name: str
    address: int
    external: bool
    addend: int


class Linker:
    """State of linking one image.

    Args:
        image: the writable bytes of the image.
        base: its address.
        stub_start: offset in the image of the room for stubs, 16 bytes for each symbol from outside.
        got_start: offset of the room for addresses, 8 bytes for each symbol.
        rules: the machine's rules.
        where: what to call the object in messages.
    """

    def __init__(self, image: memoryview, base: int, stub_start: int, got_start: int, rules: Rules, where: str) -> None:
        self.image = image
        self.base = base
        self._rules = rules
        self._where = where
        self._next_stub = stub_start
        self._next_got = got_start
        self.got_base = base + got_start
        self._stubs: Dict[int, int] = {}
        self._got: Dict[int, int] = {}

    def apply(self, kind: int, place: int, number: int, name: str, address: int, external: bool, addend: int) -> None:
        """Carries out one relocation of type ``kind`` at offset ``place`` of the image."""
        self._rules.apply(self, kind, place, Target(number, name, address, external, addend))

    def got_entry(self, target: Target) -> int:
        """The address of a memory cell that holds the address of the symbol."""
        if target.number not in self._got:
            self._got[target.number] = self._next_got
            struct.pack_into("<Q", self.image, self._next_got, target.address)
            self._next_got += 8
        return self.base + self._got[target.number]

    def callable_address(self, target: Target) -> int:
        """An address near the code from which the function runs: itself, or a stub that jumps to it."""
        if not target.external or target.address == 0:
            return target.address
        if target.number not in self._stubs:
            self._stubs[target.number] = self._next_stub
            self.image[self._next_stub : self._next_stub + 16] = self._rules.stub(target.address)
            self._next_stub += 16
        return self.base + self._stubs[target.number]

    def put(self, form: str, place: int, value: int, target: Target) -> None:
        """Stores a number, checked against the range of its place."""
        try:
            struct.pack_into("<" + form, self.image, place, value)
        except struct.error:
            raise self.out_of_range(target) from None

    def put_word(self, place: int, value: int, mask: int) -> None:
        """Replaces the masked bits of a 32-bit instruction."""
        word = struct.unpack_from("<I", self.image, place)[0]
        struct.pack_into("<I", self.image, place, (word & ~mask & 0xFFFFFFFF) | (value & mask))

    def out_of_range(self, target: Target) -> ArtifactError:
        """The error for an address that does not fit its place."""
        return ArtifactError(
            "The address of {} does not fit where the code needs it".format(target.name or "a section"),
            self._where,
            "Compile the model again, as position-independent code",
        )
