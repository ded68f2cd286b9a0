"""Reading and linking ELF64 relocatable objects: what a compiler emits, made ready to run at a given address.

`ElfObject` checks the object and lays out its sections; `ElfObject.link` fills a buffer that will be (or stands for)
memory at a given base address. Nothing here makes memory executable: `dhc_runtime.code_object` does. The formats are
those of the System V ABI (gABI chapter 4, and the processor supplements for x86-64 and AArch64).
"""

from __future__ import annotations

import struct
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from dhc_runtime import elf_aarch64, elf_x86_64
from dhc_runtime.elf_relocation import Linker
from dhc_runtime.errors import ArtifactError

__all__ = ["ElfObject", "Segment"]

_LARGEST_PAGE = 65536  # of any AArch64 system
_MAX_IMAGE = 128 << 20
_MAX_SECTIONS = 65535
_MAX_SYMBOLS = 200_000
_MAX_RELOCATIONS = 400_000

_SHT_PROGBITS, _SHT_SYMTAB, _SHT_RELA, _SHT_NOTE, _SHT_NOBITS, _SHT_REL = 1, 2, 4, 7, 8, 9
_SHT_INIT_ARRAY, _SHT_FINI_ARRAY, _SHT_PREINIT_ARRAY, _SHT_X86_64_UNWIND = 14, 15, 16, 0x70000001
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS, _SHF_COMPRESSED = 1, 2, 4, 0x400, 0x800
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON, _SHN_LORESERVE = 0, 0xFFF1, 0xFFF2, 0xFF00
_STT_FUNC, _STT_TLS, _STT_GNU_IFUNC = 2, 6, 10
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK = 0, 1, 2
_GOT_SYMBOL = "_GLOBAL_OFFSET_TABLE_"  # stands for the start of the table of addresses that the linker builds
_MACHINES = {62: "x86_64", 183: "aarch64"}

Buffer = Union[bytes, bytearray, memoryview]


class Section(NamedTuple):
    """One section header, with its name looked up."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Symbol(NamedTuple):
    """One symbol; ``section`` is an index, or a reserved one (undefined, absolute, common)."""

    name: str
    kind: int
    binding: int
    section: int
    value: int
    size: int


class Segment(NamedTuple):
    """A part of the image with one protection: ``rx``, ``r`` or ``rw``; start and size are multiples of the page."""

    protection: str
    start: int
    size: int


class ElfObject:
    """A checked relocatable object.

    Args:
        data: the bytes of the object.
        where: what to call it in messages.
        page: page size of the memory that the code will run in.

    Attributes:
        arch: ``x86_64`` or ``aarch64``.
        page: alignment of the image and of its segments: the page size, or more if a section asks for more.
        segments: the parts of the image, in order of address.
        image_size: bytes of memory that the linked code takes.
        undefined: names of the symbols that must come from outside, sorted.
        needs_low_memory: whether the image must lie below 2 GiB (code compiled without PIC).

    Raises:
        ArtifactError: it is no such object, a part of it lies outside of the data, or it uses something that the loader
            does not offer (thread-local storage, constructors, an unknown relocation).
    """

    def __init__(self, data: Buffer, where: str = "object code", page: int = _LARGEST_PAGE) -> None:
        self._data = memoryview(data).cast("B")
        self._where = where
        self.page = page
        self.arch = ""
        self._sections = self._read_sections()
        self._symbols = self._read_symbols()
        self._relocations = self._read_relocations()
        self._rules = elf_x86_64.RULES if self.arch == "x86_64" else elf_aarch64.RULES
        self._check_relocation_types()
        self._common: Dict[int, int] = {}
        self._placed: Dict[int, int] = {}
        self.segments: List[Segment] = []
        self.image_size = 0
        self._stub_start = self._got_start = 0
        self._lay_out()
        outside = {s.name for s in self._symbols[1:] if s.section == _SHN_UNDEF and s.name and s.binding != _STB_WEAK}
        self.undefined = sorted(outside - {_GOT_SYMBOL})
        self.needs_low_memory = any(
            kind in self._rules.low_memory for entries in self._relocations.values() for _, kind, _, _ in entries
        )

    def _fail(self, message: str) -> ArtifactError:
        return ArtifactError(message, self._where, "Compile the model again")

    def _slice(self, start: int, size: int, what: str) -> memoryview:
        if start < 0 or size < 0 or start + size > self._data.nbytes:
            raise self._fail("The {} of the object lies outside of it".format(what))
        return self._data[start : start + size]

    def _text(self, table: memoryview, offset: int) -> str:
        if offset >= table.nbytes:
            raise self._fail("A name of the object lies outside of its string table")
        raw = bytes(table[offset : offset + 4096])
        end = raw.find(b"\0")
        if end < 0:
            raise self._fail("A name of the object has no end")
        return raw[:end].decode("utf-8", "replace")

    def _read_sections(self) -> List[Section]:
        head = self._slice(0, 64, "header")
        ident = bytes(head[:16])
        kind, machine, version = struct.unpack_from("<HHI", head, 16)
        section_offset = struct.unpack_from("<Q", head, 40)[0]
        entry_size, count, names = struct.unpack_from("<HHH", head, 58)
        if ident[:4] != b"\x7fELF" or ident[4] != 2 or ident[5] != 1 or ident[6] != 1 or version != 1:
            raise self._fail("The object code is not a 64-bit little-endian ELF file")
        if kind != 1:
            raise self._fail("The object code is not relocatable (ELF type {})".format(kind))
        if machine not in _MACHINES:
            raise self._fail("The object code is for the unknown machine {}".format(machine))
        self.arch = _MACHINES[machine]
        if entry_size != 64:
            raise self._fail("The section headers of the object have a wrong size")
        if section_offset and not count:
            # More than 65,279 sections: the true count stands in the first header.
            count = struct.unpack_from("<Q", self._slice(section_offset, 64, "section table"), 32)[0]
        if names == 0xFFFF:
            names = struct.unpack_from("<I", self._slice(section_offset, 64, "section table"), 40)[0]
        if not 0 < count <= _MAX_SECTIONS:
            raise self._fail("The object has {} sections".format(count))
        table = self._slice(section_offset, count * 64, "section table")
        raw = [struct.unpack_from("<IIQQQQIIQQ", table, 64 * index) for index in range(count)]
        if names >= count:
            raise self._fail("The object has no section names")
        name_table = self._slice(raw[names][4], raw[names][5], "table of section names")
        sections = []
        for name, kind, flags, _, offset, size, link, info, alignment, entry in raw:
            text = self._text(name_table, name) if kind else ""
            if kind not in (0, _SHT_NOBITS):
                self._slice(offset, size, "section " + text)
            alignment = max(alignment, 1)
            if flags & _SHF_ALLOC and (alignment & (alignment - 1) or alignment > _LARGEST_PAGE):
                raise self._fail("The section {} has the alignment {}".format(text, alignment))
            sections.append(Section(text, kind, flags, offset, size, link, info, alignment, entry))
        return sections

    def _read_symbols(self) -> List[Symbol]:
        tables = [section for section in self._sections if section.kind == _SHT_SYMTAB]
        if len(tables) != 1:
            raise self._fail("The object has {} symbol tables instead of one".format(len(tables)))
        table = tables[0]
        if (
            table.entry_size != 24
            or table.size % 24
            or table.link >= len(self._sections)
            or table.size // 24 > _MAX_SYMBOLS
        ):
            raise self._fail("The symbol table of the object is malformed")
        strings = self._sections[table.link]
        names = self._slice(strings.offset, strings.size, "string table")
        data = self._slice(table.offset, table.size, "symbol table")
        symbols = []
        for index in range(table.size // 24):
            name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", data, 24 * index)
            text = self._text(names, name) if name else ""
            kind, binding = info & 15, info >> 4
            if kind == _STT_TLS or kind == _STT_GNU_IFUNC:
                raise self._fail(
                    "The symbol {} is thread-local or resolved at load, which is not supported".format(text)
                )
            if section >= _SHN_LORESERVE and section not in (_SHN_ABS, _SHN_COMMON):
                raise self._fail("The symbol {} lies in the reserved section {}".format(text, section))
            if section < _SHN_LORESERVE:
                if section >= len(self._sections):
                    raise self._fail("The symbol {} lies in a section that does not exist".format(text))
                if section and value + size > self._sections[section].size:
                    raise self._fail("The symbol {} lies outside of its section".format(text))
            if section == _SHN_COMMON:
                # The value of such a symbol is its alignment.
                if value < 1 or value & (value - 1) or value > _LARGEST_PAGE:
                    raise self._fail("The symbol {} has the alignment {}".format(text, value))
                self.page = max(self.page, value)
            symbols.append(Symbol(text, kind, binding, section, value, size))
        return symbols

    def _read_relocations(self) -> Dict[int, List[Tuple[int, int, int, int]]]:
        """For each section that is loaded: (offset, type, symbol index, addend)."""
        result: Dict[int, List[Tuple[int, int, int, int]]] = {}
        total = 0
        for section in self._sections:
            if section.kind not in (_SHT_RELA, _SHT_REL):
                continue
            if section.info >= len(self._sections):
                raise self._fail("The section {} relocates a section that does not exist".format(section.name))
            if not self._is_loaded(self._sections[section.info]):
                continue
            if section.kind == _SHT_REL or section.entry_size != 24 or section.size % 24:
                raise self._fail("The section {} holds relocations of an unknown form".format(section.name))
            data = self._slice(section.offset, section.size, "section " + section.name)
            entries = result.setdefault(section.info, [])
            total += section.size // 24
            if total > _MAX_RELOCATIONS:
                raise self._fail("The object has more than {} relocations".format(_MAX_RELOCATIONS))
            for index in range(section.size // 24):
                offset, info, addend = struct.unpack_from("<QQq", data, 24 * index)
                if info >> 32 >= len(self._symbols):
                    raise self._fail("A relocation of {} names a symbol that does not exist".format(section.name))
                entries.append((offset, info & 0xFFFFFFFF, info >> 32, addend))
        return result

    def _check_relocation_types(self) -> None:
        for target, entries in self._relocations.items():
            size, name = self._sections[target].size, self._sections[target].name
            for offset, kind, index, _ in entries:
                if kind not in self._rules.widths:
                    raise self._fail("Relocation type {} ({}) in {} is not supported".format(kind, self.arch, name))
                if offset + self._rules.widths[kind] > size:
                    raise self._fail("A relocation of {} lies outside of it".format(name))
                if self._symbols[index].section == _SHN_UNDEF and index and not self._symbols[index].name:
                    raise self._fail("A relocation of {} names an undefined symbol without a name".format(name))

    def _is_loaded(self, section: Section) -> bool:
        if not section.flags & _SHF_ALLOC or section.kind in (0, _SHT_NOTE, _SHT_X86_64_UNWIND):
            return False
        if section.name.startswith(".eh_frame"):
            return False  # unwinding tables: generated code never throws
        if section.flags & (_SHF_TLS | _SHF_COMPRESSED):
            raise self._fail(
                "The section {} is thread-local or compressed, which is not supported".format(section.name)
            )
        constructors = section.kind in (_SHT_INIT_ARRAY, _SHT_FINI_ARRAY, _SHT_PREINIT_ARRAY)
        if section.size and (constructors or section.name.startswith((".ctors", ".dtors", ".init", ".fini"))):
            raise self._fail("The section {} asks for code to run at load, which is not supported".format(section.name))
        if section.kind not in (_SHT_PROGBITS, _SHT_NOBITS) and not constructors:
            raise self._fail("The section {} has the unknown type {}".format(section.name, section.kind))
        return True

    def _lay_out(self) -> None:
        groups: Dict[str, List[int]] = {"rx": [], "r": [], "rw": []}
        for index, section in enumerate(self._sections):
            if not self._is_loaded(section):
                continue
            self.page = max(self.page, section.alignment)
            if section.flags & _SHF_EXECINSTR:
                if section.flags & _SHF_WRITE:
                    raise self._fail("The section {} is both writable and executable".format(section.name))
                groups["rx"].append(index)
            elif section.flags & _SHF_WRITE and not section.name.startswith(".data.rel.ro"):
                groups["rw"].append(index)
            else:
                groups["r"].append(index)
        references = {index for entries in self._relocations.values() for _, _, index, _ in entries}
        externals = sum(1 for index in references if self._symbols[index].section == _SHN_UNDEF)
        position = 0
        for protection in ("rx", "r", "rw"):
            start = position
            for index in groups[protection]:
                section = self._sections[index]
                position = -(-position // section.alignment) * section.alignment
                self._placed[index] = position
                position += section.size
                if position > _MAX_IMAGE:
                    raise self._fail("The object asks for more than {} MiB of memory".format(_MAX_IMAGE >> 20))
            position = -(-position // 16) * 16
            if protection == "rx":
                self._stub_start = position
                position += 16 * externals
            elif protection == "r":
                self._got_start = position
                position += 8 * len(references)
            else:
                for number, symbol in enumerate(self._symbols):
                    if symbol.section == _SHN_COMMON:
                        position = -(-position // symbol.value) * symbol.value
                        self._common[number] = position
                        position += symbol.size
            position = -(-position // self.page) * self.page
            if position > _MAX_IMAGE:
                raise self._fail("The object asks for more than {} MiB of memory".format(_MAX_IMAGE >> 20))
            if position > start:
                self.segments.append(Segment(protection, start, position - start))
        self.image_size = position

    def _offset(self, index: int) -> Optional[int]:
        """Where a symbol lies in the image; None for one from outside."""
        symbol = self._symbols[index]
        if symbol.section == _SHN_UNDEF:
            return None
        if symbol.section == _SHN_COMMON:
            return self._common[index]
        if symbol.section not in self._placed:
            raise self._fail("The symbol {} lies in a section that is not loaded".format(symbol.name or index))
        return self._placed[symbol.section] + symbol.value

    def symbols(self) -> Dict[str, int]:
        """Offsets in the image of the functions and data that the object offers by name."""
        result: Dict[str, int] = {}
        for symbol in self._symbols:
            if symbol.name and symbol.binding != _STB_LOCAL and symbol.section in self._placed:
                if symbol.name in result:
                    raise self._fail("The symbol {} is defined twice".format(symbol.name))
                result[symbol.name] = self._placed[symbol.section] + symbol.value
        return result

    def link(self, image: memoryview, base: int, resolve: Callable[[str], int]) -> None:
        """Copies the sections into ``image`` and applies all relocations for the address ``base``.

        Args:
            image: zeroed writable bytes, at least `image_size`.
            base: the address at which they lie (or will lie); a multiple of the page size.
            resolve: gives the address of a symbol from outside; raises ArtifactError for one that is not allowed.

        Raises:
            ArtifactError: a symbol from outside is not allowed, or a value does not fit its place.
        """
        for index, place in self._placed.items():
            section = self._sections[index]
            if section.kind != _SHT_NOBITS:
                image[place : place + section.size] = self._data[section.offset : section.offset + section.size]
        linker = Linker(image, base, self._stub_start, self._got_start, self._rules, self._where)
        addresses: Dict[int, int] = {}
        for target in sorted(self._relocations):
            for offset, kind, index, addend in self._relocations[target]:
                symbol = self._symbols[index]
                external = symbol.section == _SHN_UNDEF and symbol.name != _GOT_SYMBOL
                if index not in addresses:
                    if symbol.section == _SHN_ABS:
                        addresses[index] = symbol.value
                    elif symbol.name == _GOT_SYMBOL and symbol.section == _SHN_UNDEF:
                        addresses[index] = linker.got_base
                    elif not external:
                        addresses[index] = base + (self._offset(index) or 0)
                    elif index == 0 or (symbol.binding == _STB_WEAK):
                        addresses[index] = 0
                    else:
                        addresses[index] = resolve(symbol.name)
                linker.apply(
                    kind, self._placed[target] + offset, index, symbol.name, addresses[index], external, addend
                )
