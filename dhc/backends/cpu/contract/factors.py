"""How register tiles read the two factors of their products, and add the products to their sums.

A tile broadcasts one factor (of a row) and multiplies it with a vector of the other (columns). Either may be stored in
16 bits and widened on the way, which is exact. Or both are *pairs* of bf16, two steps of the sum in the place of one
f32, which processors with AVX512-BF16 multiply and add at once; denormals then count as zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Value
from dhc.backends.cpu.target import CpuTarget

PAIRS = "<32 x bfloat>"
"""Sixteen pairs, as the instruction takes them."""


def has_pairs(target: CpuTarget) -> bool:
    """Whether a target multiplies pairs of bf16."""
    return "avx512bf16" in target.features and target.vector_bits == 512


@dataclass(frozen=True)
class Factors:
    """The factors of a tile.

    Attributes:
        dtype: element type of the sums.
        lanes: vector length.
        rows: how the broadcast factor is stored when it is not as ``dtype``: ``bf16`` or ``f16``.
        columns: how the other one is stored.
        pairs: both are pairs of bf16; one step of the tile is two of the sum.
    """

    dtype: str
    lanes: int
    rows: str = ""
    columns: str = ""
    pairs: bool = False

    @staticmethod
    def with_weights_as_rows(spec: ConvSpec | ConvTransposeSpec, lanes: int) -> Factors:
        """Those of a convolution whose tiles broadcast the weights."""
        return Factors(spec.dtype, lanes, rows="" if spec.pairs else spec.storage, pairs=spec.pairs)

    @staticmethod
    def with_weights_as_columns(spec: ConvSpec, lanes: int) -> Factors:
        """Those of a convolution whose tiles broadcast the inputs."""
        return Factors(spec.dtype, lanes, columns="" if spec.pairs else spec.storage, pairs=spec.pairs)

    @property
    def vector(self) -> str:
        """The type of a vector of sums."""
        return f"<{self.lanes} x {ELEMENT[self.dtype]}>"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's factor for one step."""
        return 2 if self.rows else ITEM_BYTES[self.dtype]

    @property
    def column_bytes(self) -> int:
        """Bytes of a column's factor for one step."""
        return 2 if self.columns else ITEM_BYTES[self.dtype]

    def row(self, f: Function, pointer: Value) -> Value:
        """The factor of a row in all lanes."""
        if self.pairs:
            both = f.splat(f.load("i32", pointer, 4), self.lanes)
            return f.emit(PAIRS, f"bitcast {both.type} {both.ref} to {PAIRS}")
        if self.rows == "f16":
            half = f.splat(f.load("half", pointer, 2), self.lanes)
            return f.emit(self.vector, f"fpext {half.type} {half.ref} to {self.vector}")
        if self.rows:
            # The same 16 bits in both halves of a lane; the shift leaves the upper ones.
            twice = f.splat(f.load("i16", pointer, 2), 2 * self.lanes)
            lanes = f"<{self.lanes} x i32>"
            return _upper_half(f, f.emit(lanes, f"bitcast {twice.type} {twice.ref} to {lanes}"), self.vector)
        return f.splat(f.load(ELEMENT[self.dtype], pointer, self.row_bytes), self.lanes)

    def column(self, f: Function, pointer: Value) -> Value:
        """The factors of a vector of columns."""
        if self.pairs:
            return f.load(PAIRS, pointer, 4)
        return load_widened(f, self.columns, self.vector, pointer, ITEM_BYTES[self.dtype])

    def multiply_add(self, f: Function, row: Value, column: Value, total: Value) -> Value:
        """The sums with one step more."""
        if self.pairs:
            return f.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", self.vector, [total, column, row])
        return f.fma(row, column, total)


def load_widened(f: Function, storage: str, vector: str, pointer: Value, item: int) -> Value:
    """Loads a vector; elements of bf16 or f16 become f32, which is exact."""
    if not storage:
        return f.load(vector, pointer, item)
    lanes = vector[1:-1].split(" x ")[0]
    if storage == "f16":
        return f.emit(vector, f"fpext <{lanes} x half> {f.load(f'<{lanes} x half>', pointer, 2).ref} to {vector}")
    bits = f.load(f"<{lanes} x i16>", pointer, 2)
    return _upper_half(f, f.emit(f"<{lanes} x i32>", f"zext <{lanes} x i16> {bits.ref} to <{lanes} x i32>"), vector)


def _upper_half(f: Function, lower: Value, vector: str) -> Value:
    """The f32 whose upper halves are the lower halves of 32-bit lanes."""
    sixteen = f.splat(f.const(16, "i32"), int(vector[1:-1].split(" x ")[0]))
    high = f.binary("shl", lower, sixteen)
    return f.emit(vector, f"bitcast {high.type} {high.ref} to {vector}")


def rounded_pairs(f: Function, even: Value, odd: Value) -> Value:
    """Two vectors of f32, rounded to bf16 (to nearest even), side by side lane by lane."""
    both = f.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", PAIRS, [odd, even])
    words = f.emit("<32 x i16>", f"bitcast {PAIRS} {both.ref} to <32 x i16>")
    return f.shuffle(words, words, [lane // 2 + 16 * (lane % 2) for lane in range(32)])
