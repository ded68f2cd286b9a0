"""Relocations of x86-64 (System V ABI, AMD64 supplement, table 4.9)."""

from __future__ import annotations

import struct

from dhc_runtime.elf_relocation import Linker, Rules, Target

__all__ = ["RULES"]

_NONE, _64, _PC32, _GOT32, _PLT32, _GOTPCREL = 0, 1, 2, 3, 4, 9
_32, _32S, _16, _PC16, _8, _PC8, _PC64, _GOTOFF64, _GOTPC32, _GOT64, _GOTPCREL64, _GOTPC64, _PLTOFF64 = (
    10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 31,
)  # fmt: skip
_GOTPCRELX, _REX_GOTPCRELX = 41, 42

_WIDTHS = {
    _NONE: 0, _64: 8, _PC32: 4, _GOT32: 4, _PLT32: 4, _GOTPCREL: 4, _32: 4, _32S: 4, _16: 2, _PC16: 2, _8: 1, _PC8: 1,
    _PC64: 8, _GOTOFF64: 8, _GOTPC32: 4, _GOT64: 8, _GOTPCREL64: 8, _GOTPC64: 8, _PLTOFF64: 8, _GOTPCRELX: 4,
    _REX_GOTPCRELX: 4,
}  # fmt: skip


def _stub(address: int) -> bytes:
    # jmp *[rip + 2]; two bytes of ud2; the address
    return b"\xff\x25\x02\x00\x00\x00\x0f\x0b" + struct.pack("<Q", address)


def _apply(linker: Linker, kind: int, place: int, target: Target) -> None:
    value = target.address + target.addend
    here = linker.base + place
    if kind == _NONE:
        return
    if kind == _64:
        linker.put("Q", place, value & 0xFFFFFFFFFFFFFFFF, target)
    elif kind in (_PC32, _PLT32):
        linker.put("i", place, linker.callable_address(target) + target.addend - here, target)
    elif kind in (_GOTPCREL, _GOTPCRELX, _REX_GOTPCRELX):
        linker.put("i", place, linker.got_entry(target) + target.addend - here, target)
    elif kind == _32:
        linker.put("I", place, value, target)
    elif kind == _32S:
        linker.put("i", place, value, target)
    elif kind == _PC64:
        linker.put("q", place, value - here, target)
    elif kind == _GOTOFF64:
        linker.put("q", place, value - linker.got_base, target)
    elif kind == _GOTPC32:
        linker.put("i", place, linker.got_base + target.addend - here, target)
    elif kind == _GOTPC64:
        linker.put("q", place, linker.got_base + target.addend - here, target)
    elif kind == _GOT32:
        linker.put("i", place, linker.got_entry(target) - linker.got_base + target.addend, target)
    elif kind == _GOT64:
        linker.put("q", place, linker.got_entry(target) - linker.got_base + target.addend, target)
    elif kind == _GOTPCREL64:
        linker.put("q", place, linker.got_entry(target) + target.addend - here, target)
    elif kind == _PLTOFF64:
        linker.put("q", place, linker.callable_address(target) + target.addend - linker.got_base, target)
    elif kind in (_16, _8):
        linker.put("H" if kind == _16 else "B", place, value, target)
    else:
        linker.put("h" if kind == _PC16 else "b", place, value - here, target)


RULES = Rules(_WIDTHS, frozenset((_32, _32S, _16, _8)), _stub, _apply)
