"""Relocations of AArch64 (ELF for the Arm 64-bit Architecture, tables 8 to 15)."""

from __future__ import annotations

import struct

from dhc_runtime.elf_relocation import Linker, Rules, Target

__all__ = ["RULES"]

_ABS64, _ABS32, _ABS16, _PREL64, _PREL32, _PREL16 = 257, 258, 259, 260, 261, 262
_MOVW = {
    263: (0, True),
    264: (0, False),
    265: (1, True),
    266: (1, False),
    267: (2, True),
    268: (2, False),
    269: (3, False),
}
_LD_PREL_LO19, _ADR_PREL_LO21, _ADR_PAGE, _ADR_PAGE_NC, _ADD_LO12 = 273, 274, 275, 276, 277
_LDST_SHIFT = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
_TSTBR14, _CONDBR19, _JUMP26, _CALL26 = 279, 280, 282, 283
_ADR_GOT_PAGE, _LD64_GOT_LO12, _LD64_GOTPAGE_LO15, _PLT32, _GOTPCREL32 = 311, 312, 313, 314, 315

_WORDS = (
    _ABS32, _PREL32, _LD_PREL_LO19, _ADR_PREL_LO21, _ADR_PAGE, _ADR_PAGE_NC, _ADD_LO12, _TSTBR14, _CONDBR19, _JUMP26,
    _CALL26, _ADR_GOT_PAGE, _LD64_GOT_LO12, _LD64_GOTPAGE_LO15, _PLT32, _GOTPCREL32, *_MOVW, *_LDST_SHIFT,
)  # fmt: skip
_WIDTHS = {0: 0, 256: 0, _ABS64: 8, _PREL64: 8, _ABS16: 2, _PREL16: 2, **dict.fromkeys(_WORDS, 4)}


def _stub(address: int) -> bytes:
    # ldr x16, #8; br x16; the address. x16 is the register that the ABI leaves to such veneers.
    return struct.pack("<IIQ", 0x58000050, 0xD61F0200, address)


def _signed(linker: Linker, value: int, bits: int, target: Target, unit: int = 1) -> int:
    limit = 1 << (bits - 1)
    if value % unit or not -limit <= value < limit:
        raise linker.out_of_range(target)
    return value // unit


def _adr(linker: Linker, place: int, value: int) -> None:
    """Stores the 21 bits of an ADR or ADRP: two low bits at 29, the others at 5."""
    linker.put_word(place, (value & 3) << 29 | (value >> 2 & 0x7FFFF) << 5, 0x60FFFFE0)


def _page(address: int) -> int:
    return address & ~0xFFF


def _apply(linker: Linker, kind: int, place: int, target: Target) -> None:
    value = target.address + target.addend
    here = linker.base + place
    if kind in (0, 256):
        return
    if kind == _ABS64:
        linker.put("Q", place, value & 0xFFFFFFFFFFFFFFFF, target)
    elif kind == _PREL64:
        linker.put("q", place, value - here, target)
    elif kind in (_PREL32, _PLT32):
        linker.put("i", place, linker.callable_address(target) + target.addend - here, target)
    elif kind == _PREL16:
        linker.put("h", place, value - here, target)
    elif kind == _ABS32:
        linker.put("I" if value >= 0 else "i", place, value, target)
    elif kind == _ABS16:
        linker.put("H", place, value, target)
    elif kind in (_CALL26, _JUMP26):
        distance = _signed(linker, linker.callable_address(target) + target.addend - here, 28, target, 4)
        linker.put_word(place, distance, 0x03FFFFFF)
    elif kind == _CONDBR19 or kind == _LD_PREL_LO19:
        linker.put_word(place, _signed(linker, value - here, 21, target, 4) << 5, 0x00FFFFE0)
    elif kind == _TSTBR14:
        linker.put_word(place, _signed(linker, value - here, 16, target, 4) << 5, 0x0007FFE0)
    elif kind == _ADR_PREL_LO21:
        _adr(linker, place, _signed(linker, value - here, 21, target))
    elif kind in (_ADR_PAGE, _ADR_PAGE_NC):
        distance = _page(linker.callable_address(target) + target.addend) - _page(here)
        _adr(linker, place, _signed(linker, distance, 33, target, 4096))
    elif kind == _ADD_LO12:
        linker.put_word(place, ((linker.callable_address(target) + target.addend) & 0xFFF) << 10, 0x003FFC00)
    elif kind in _LDST_SHIFT:
        shift = _LDST_SHIFT[kind]
        if value & ((1 << shift) - 1):
            raise linker.out_of_range(target)
        linker.put_word(place, ((value & 0xFFF) >> shift) << 10, 0x003FFC00)
    elif kind in _MOVW:
        group, checked = _MOVW[kind]
        if checked and value >> (16 * (group + 1)):
            raise linker.out_of_range(target)
        linker.put_word(place, (value >> (16 * group) & 0xFFFF) << 5, 0x001FFFE0)
    else:
        _apply_got(linker, kind, place, target, here)


def _apply_got(linker: Linker, kind: int, place: int, target: Target, here: int) -> None:
    # The addend of a GOT relocation selects another cell; compilers emit 0.
    if target.addend:
        raise linker.out_of_range(target)
    cell = linker.got_entry(target)
    if kind == _ADR_GOT_PAGE:
        _adr(linker, place, _signed(linker, _page(cell) - _page(here), 33, target, 4096))
    elif kind == _LD64_GOT_LO12:
        linker.put_word(place, ((cell & 0xFFF) >> 3) << 10, 0x003FFC00)
    elif kind == _LD64_GOTPAGE_LO15:
        offset = cell - _page(linker.got_base)
        if not 0 <= offset < 1 << 15:
            raise linker.out_of_range(target)
        linker.put_word(place, (offset >> 3) << 10, 0x003FFC00)
    else:
        linker.put("i", place, cell - here, target)


RULES = Rules(_WIDTHS, frozenset((_ABS32, _ABS16)), _stub, _apply)
