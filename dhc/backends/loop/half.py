"""f16 and bf16 as integers, for devices that do not convert them themselves.

Rewrites a kernel so that these types are gone: buffers hold u16, conversions are integer arithmetic that vectorises,
rounding to nearest even, NaN, infinities and denormals included.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from dhc.backends.loop.functions import HALF
from dhc.backends.loop.ir import Assign, Check, Declare, For, If, Kernel, Let, Statement, Store, values_of, walk
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, bf16, f32, i32, u16
from dhc.ir.scalar import ScalarExpr


def expand_half(kernel: Kernel, native: Collection[DType] = ()) -> Kernel:
    """The kernel without the half types that are not in `native`."""
    if not any(b.dtype in HALF and b.dtype not in native for b in kernel.buffers) and not _mentions(kernel, native):
        return kernel
    rewriter = _Rewriter(native)
    body = rewriter.block(kernel.body)
    buffers = tuple(replace(b, dtype=u16) if b.dtype in HALF and b.dtype not in native else b for b in kernel.buffers)
    return Kernel(kernel.name, buffers, kernel.params, body)


def _mentions(kernel: Kernel, native: Collection[DType]) -> bool:
    def inside(e: ScalarExpr) -> bool:
        return (e.dtype in HALF and e.dtype not in native) or any(inside(c) for c in s.children(e))

    return any(inside(e) for statement in walk(kernel.body) for e in values_of(statement))


class _Rewriter:
    def __init__(self, native: Collection[DType]) -> None:
        self._native = native
        self._pending: list[Statement] = []
        self._counter = 0

    def _let(self, value: ScalarExpr) -> ScalarExpr:
        if isinstance(value, (s.Var, s.Const)):
            return value
        name = f"h{self._counter}"
        self._counter += 1
        self._pending.append(Let(name, value))
        return s.Var(name, value.dtype)

    def block(self, body: tuple[Statement, ...]) -> tuple[Statement, ...]:
        done: list[Statement] = []
        for statement in body:
            rewritten = self._statement(statement)
            done += [*self._pending, rewritten]
            self._pending = []
        return tuple(done)

    def _statement(self, statement: Statement) -> Statement:
        if isinstance(statement, For):
            inner = self.block(statement.body)
            return replace(statement, body=inner)
        if isinstance(statement, If):
            # The inner blocks use the list of pending statements for themselves.
            body, orelse = self.block(statement.body), self.block(statement.orelse)
            return If(self._expr(statement.condition), body, orelse)
        if isinstance(statement, (Let, Declare)):
            return replace(statement, value=self._expr(statement.value))
        if isinstance(statement, Assign):
            return replace(statement, values=tuple(self._expr(v) for v in statement.values))
        if isinstance(statement, Store):
            return Store(statement.buffer, self._expr(statement.offset), self._expr(statement.value))
        assert isinstance(statement, Check)
        return Check(self._expr(statement.condition), statement.code)

    def _foreign(self, dtype: DType) -> bool:
        return dtype in HALF and dtype not in self._native

    def _expr(self, e: ScalarExpr) -> ScalarExpr:
        """A value of a half type becomes its bits as u16."""
        parts = s.children(e)
        if isinstance(e, s.Load) and self._foreign(e.dtype):
            return s.Load(u16, e.operand, e.index)
        if isinstance(e, s.Cast) and self._foreign(e.operand.dtype):
            return self._unpack(s.Cast(i32, self._expr(e.operand)), e.operand.dtype)
        if isinstance(e, s.Cast) and self._foreign(e.dtype):
            return s.Cast(u16, self._pack(self._let(self._expr(e.operand)), e.dtype))
        if isinstance(e, s.Bitcast) and self._foreign(e.operand.dtype):
            bits = self._expr(e.operand)
            return bits if e.dtype == u16 or self._foreign(e.dtype) else s.Bitcast(e.dtype, bits)
        if isinstance(e, s.Bitcast) and self._foreign(e.dtype):
            bits = self._expr(e.operand)
            return bits if bits.dtype == u16 else s.Bitcast(u16, bits)
        return s.rebuild(e, [self._expr(p) for p in parts]) if parts else e

    def _unpack(self, bits: ScalarExpr, dtype: DType) -> ScalarExpr:
        """f32 from the bits of a half number in an i32."""
        if dtype == bf16:
            return s.Bitcast(f32, bits << 16)
        bits = self._let(bits)
        size = self._let((bits & 0x7FFF) << 13)
        # The exponent's offset is corrected by a product, which also normalises denormals.
        finite = self._let(s.Bitcast(i32, s.Bitcast(f32, size) * float(2.0**112)))
        whole = s.select((bits & 0x7C00).eq(0x7C00), finite | 0x7F800000, finite)
        return self._let(s.Bitcast(f32, whole | ((bits & 0x8000) << 16)))

    def _pack(self, x: ScalarExpr, dtype: DType) -> ScalarExpr:
        """The bits of an f32 rounded to a half type, in an i32."""
        bits = self._let(s.Bitcast(i32, x))
        top = self._let((bits >> 16) & 0xFFFF)
        size = self._let(bits & 0x7FFFFFFF)
        nan = self._let(size > 0x7F800000)
        if dtype == bf16:
            rounded = ((bits & 0x7FFFFFFF) + 0x7FFF + (top & 1)) >> 16
            return self._let(s.select(nan, top | 0x40, (rounded & 0x7FFF) | (top & 0x8000)))
        # Below 2^-14 the sum with 0.5 puts the denormal's bits at the end, rounded.
        small = s.Bitcast(i32, s.Bitcast(f32, size) + 0.5) - 0x3F000000
        normal = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13
        finite = s.select(size < 0x38800000, small, normal)
        whole = s.select(nan, s.const(0x7E00, i32), s.select(size >= 0x47800000, s.const(0x7C00, i32), finite))
        return self._let(whole | (top & 0x8000))
