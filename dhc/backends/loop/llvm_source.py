"""Prints kernels as LLVM IR text: the compiled form on CPUs.

Made directly, without a front end: a small kernel takes a few milliseconds to print and compile (measured beside the
other printers in `cpu/numba/compile.py`). Iterations of an innermost loop over results are declared independent, so
that LLVM vectorises without asking whether buffers overlap; float sums marked `reorder` may use several partial sums.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from dhc_runtime.errors import CompileError

from dhc.backends.loop.ir import Assign, Check, Declare, For, If, Kernel, Let, Statement, Store, walk
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, f16, f32, f64
from dhc.ir.scalar import ScalarExpr

_COMPARE_INT = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_COMPARE_FLOAT = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_BITWISE = {"and": "and", "or": "or", "xor": "xor"}
_INTRINSIC = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}
_LIBRARY_BINARY = {"pow": "pow", "fmod": "fmod"}


def llvm_type(dtype: DType) -> str:
    """The LLVM type of a value in registers."""
    if dtype.kind == "b":
        return "i1"
    if dtype.is_float:
        return {"f64": "double", "f32": "float", "f16": "half"}[dtype.name]
    return f"i{dtype.itemsize * 8}"


def print_kernels(kernels: Sequence[Kernel], triple: str, attributes: str = "") -> str:
    """LLVM IR text of one module with a function for each kernel, named by its symbol.

    Args:
        kernels: kernels without foreign half types (see `half.py`).
        triple: target triple.
        attributes: attributes for every function, in LLVM's spelling.
    """
    module = _Module()
    functions = [_Function(module, kernel).text() for kernel in kernels]
    parts = [f'target triple = "{triple}"', *functions]
    parts += [module.declarations[name] for name in sorted(module.declarations)]
    parts.append(f"attributes #0 = {{ nounwind {attributes} }}")
    parts.append("attributes #1 = { nounwind willreturn memory(none) }")
    parts += module.metadata
    return "\n".join(parts) + "\n"


class _Module:
    def __init__(self) -> None:
        self.declarations: dict[str, str] = {}
        self.metadata: list[str] = []

    def declare(self, name: str, result: str, operands: Sequence[str]) -> None:
        self.declarations.setdefault(name, f"declare {result} @{name}({', '.join(operands)}) #1")

    def node(self, text: str) -> str:
        number = len(self.metadata)
        self.metadata.append(f"!{number} = {text.replace('SELF', f'!{number}')}")
        return f"!{number}"


class _Function:
    def __init__(self, module: _Module, kernel: Kernel) -> None:
        self._module = module
        self._kernel = kernel
        self._lines: list[str] = []
        self._slots: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._count = 0
        self._block = "entry"
        self._access = ""

    def text(self) -> str:
        kernel = self._kernel
        for number in range(len(kernel.buffers)):
            self._line(f"%pp{number} = getelementptr i8, ptr %buffers, i64 {8 * number}")
            self._line(f"%b{number} = load ptr, ptr %pp{number}, align 8")
        for number, name in enumerate(kernel.params):
            self._line(f"%pn{number} = getelementptr i8, ptr %params, i64 {8 * number}")
            self._line(f"%{name} = load i64, ptr %pn{number}, align 8")
            self._names[name] = f"%{name}"
        if not kernel.is_parallel:
            first = self._emit("icmp eq i64 %tid, 0")
            go, done = self._label("serial"), self._label("idle")
            self._line(f"br i1 {first}, label %{go}, label %{done}")
            self._start(done)
            self._line("ret i32 0")
            self._start(go)
        self._body(kernel.body)
        self._line("ret i32 0")
        slots = [f"  %{name} = alloca {kind}" for name, kind in self._slots.items()]
        head = f"define i32 @{kernel.symbol}(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) #0 {{"
        return "\n".join([head, "entry:", *slots, *self._lines, "}"])

    # ---- lines -----------------------------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self._lines.append("  " + text)

    def _emit(self, text: str) -> str:
        self._count += 1
        name = f"%u{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def _label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label

    # ---- statements ------------------------------------------------------------------------------------------------

    def _body(self, body: Sequence[Statement]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        if isinstance(statement, Let):
            self._names[statement.name] = self._value(statement.value)
        elif isinstance(statement, Declare):
            self._assign(statement.name, statement.value.dtype, self._value(statement.value))
        elif isinstance(statement, Assign):
            values = [self._value(v, statement.reorder) for v in statement.values]
            for name, value, e in zip(statement.names, values, statement.values):
                self._assign(name, e.dtype, value)
        elif isinstance(statement, Store):
            self._store(statement)
        elif isinstance(statement, Check):
            good, bad = self._label("good"), self._label("bad")
            condition = self._value(statement.condition)
            self._line(f"br i1 {condition}, label %{good}, label %{bad}")
            self._start(bad)
            self._line(f"ret i32 {statement.code}")
            self._start(good)
        elif isinstance(statement, If):
            yes, no, end = (self._label(stem) for stem in ("then", "else", "end"))
            condition = self._value(statement.condition)
            self._line(f"br i1 {condition}, label %{yes}, label %{no}")
            for label, body in ((yes, statement.body), (no, statement.orelse)):
                self._start(label)
                self._body(body)
                self._line(f"br label %{end}")
            self._start(end)
        else:
            self._for(statement)

    def _assign(self, name: str, dtype: DType, value: str) -> None:
        kind = llvm_type(dtype)
        self._slots.setdefault(f"s_{name}", kind)
        self._line(f"store {kind} {value}, ptr %s_{name}")

    def _for(self, loop: For) -> None:
        extent = self._value(loop.extent)
        start, stop = "0", extent
        if loop.parallel:
            start, stop = self._share(extent, not any(isinstance(x, For) for x in walk(loop.body)))
        head, inside, end = (self._label(stem) for stem in ("head", "body", "end"))
        before = self._block
        self._line(f"br label %{head}")
        self._start(head)
        var = f"%{loop.var}_{self._label('i')}"
        self._names[loop.var] = var
        phi_at = len(self._lines)
        self._lines.append("")
        more = self._emit(f"icmp slt i64 {var}, {stop}")
        self._line(f"br i1 {more}, label %{inside}, label %{end}")
        self._start(inside)
        innermost = not any(isinstance(x, For) for x in walk(loop.body))
        metadata = ""
        if innermost and loop.independent:
            self._access = self._module.node("distinct !{}")
            parallel = self._module.node(f'!{{!"llvm.loop.parallel_accesses", {self._access}}}')
            metadata = ", !llvm.loop " + self._module.node(f"distinct !{{SELF, {parallel}}}")
        self._body(loop.body)
        if innermost:
            self._access = ""
        following = self._emit(f"add nuw nsw i64 {var}, 1")
        self._lines[phi_at] = f"  {var} = phi i64 [ {start}, %{before} ], [ {following}, %{self._block} ]"
        self._line(f"br label %{head}{metadata}")
        self._start(end)

    def _share(self, extent: str, fine: bool) -> tuple[str, str]:
        """Bounds of this thread's part of a range.

        Single elements are given out in blocks of 64, so that no two threads write to one cache line and short ranges
        stay on one thread.
        """
        grain = 64 if fine else 1
        units = extent
        if grain > 1:
            units = self._emit(f"sdiv i64 {self._emit(f'add i64 {extent}, {grain - 1}')}, {grain}")
        rounded = self._emit(f"add i64 {units}, {self._emit('sub i64 %nthreads, 1')}")
        chunk = self._emit(f"sdiv i64 {rounded}, %nthreads")
        if grain > 1:
            chunk = self._emit(f"mul i64 {chunk}, {grain}")
        low = self._emit(f"mul i64 %tid, {chunk}")
        high = self._emit(f"add i64 {low}, {chunk}")
        self._module.declare("llvm.smin.i64", "i64", ["i64", "i64"])
        return low, self._emit(f"call i64 @llvm.smin.i64(i64 {high}, i64 {extent})")

    # ---- memory ----------------------------------------------------------------------------------------------------

    def _pointer(self, buffer: int, dtype: DType, offset: ScalarExpr) -> tuple[str, str]:
        kind = "i8" if dtype.kind == "b" else llvm_type(dtype)
        place = self._value(offset)
        return kind, self._emit(f"getelementptr {kind}, ptr %b{buffer}, i64 {place}")

    def _group(self) -> str:
        return f", !llvm.access.group {self._access}" if self._access else ""

    def _load(self, e: s.Load) -> str:
        kind, pointer = self._pointer(e.operand, e.dtype, e.index[0])
        align = 1 if kind == "i8" else e.dtype.itemsize
        loaded = self._emit(f"load {kind}, ptr {pointer}, align {align}{self._group()}")
        return self._emit(f"icmp ne i8 {loaded}, 0") if e.dtype.kind == "b" else loaded

    def _store(self, statement: Store) -> None:
        value = self._value(statement.value)
        dtype = statement.value.dtype
        if dtype.kind == "b":
            value = self._emit(f"zext i1 {value} to i8")
        kind, pointer = self._pointer(statement.buffer, dtype, statement.offset)
        align = 1 if kind == "i8" else dtype.itemsize
        self._line(f"store {kind} {value}, ptr {pointer}, align {align}{self._group()}")

    # ---- values ----------------------------------------------------------------------------------------------------

    def _value(self, e: ScalarExpr, reorder: bool = False) -> str:
        if isinstance(e, s.Const):
            return _literal(e)
        if isinstance(e, s.Var):
            slot = f"s_{e.name}"
            if slot in self._slots:
                return self._emit(f"load {llvm_type(e.dtype)}, ptr %{slot}")
            return self._names[e.name]
        if isinstance(e, s.Load):
            return self._load(e)
        if isinstance(e, s.Unary):
            return self._unary(e)
        if isinstance(e, s.Binary):
            return self._binary(e, reorder)
        if isinstance(e, s.Select):
            condition, yes, no = (self._value(c) for c in (e.condition, e.if_true, e.if_false))
            kind = llvm_type(e.dtype)
            return self._emit(f"select i1 {condition}, {kind} {yes}, {kind} {no}")
        if isinstance(e, s.Cast):
            return self._cast(e)
        if isinstance(e, s.Bitcast):
            source, target = llvm_type(e.operand.dtype), llvm_type(e.dtype)
            value = self._value(e.operand)
            return value if source == target else self._emit(f"bitcast {source} {value} to {target}")
        raise CompileError(f"the LLVM printer has no form of {type(e).__name__}")

    def _call(self, name: str, result: str, kinds: Sequence[str], values: Sequence[str]) -> str:
        self._module.declare(name, result, kinds)
        operands = ", ".join(f"{kind} {value}" for kind, value in zip(kinds, values))
        return self._emit(f"call {result} @{name}({operands})")

    def _unary(self, e: s.Unary) -> str:
        value, kind = self._value(e.operand), llvm_type(e.dtype)
        if e.function == "neg" and e.dtype.is_float:
            return self._emit(f"fneg {kind} {value}")
        if e.function == "neg":
            return self._emit(f"sub {kind} 0, {value}")
        if e.function in _INTRINSIC:
            return self._call(f"llvm.{_INTRINSIC[e.function]}.{e.dtype}", kind, [kind], [value])
        return self._call(e.function + _suffix(e.dtype), kind, [kind], [value])

    def _binary(self, e: s.Binary, reorder: bool) -> str:
        left, right = self._value(e.left), self._value(e.right)
        dtype, kind = e.left.dtype, llvm_type(e.left.dtype)
        signed = "s" if dtype.kind == "i" else "u"
        if e.function in _COMPARE_INT:
            if dtype.is_float:
                return self._emit(f"fcmp {_COMPARE_FLOAT[e.function]} {kind} {left}, {right}")
            sign = "" if e.function in ("eq", "ne") else signed
            return self._emit(f"icmp {sign}{_COMPARE_INT[e.function]} {kind} {left}, {right}")
        if e.function in _BITWISE:
            return self._emit(f"{_BITWISE[e.function]} {kind} {left}, {right}")
        if e.function in ("min", "max"):
            name = f"{e.function}imum" if dtype.is_float else f"{signed}{e.function}"
            return self._call(f"llvm.{name}.{dtype if dtype.is_float else kind}", kind, [kind, kind], [left, right])
        if dtype.is_float:
            if e.function in ("add", "sub", "mul", "div"):
                flags = "reassoc nsz " if reorder else ""
                return self._emit(f"f{e.function} {flags}{kind} {left}, {right}")
            return self._call(_LIBRARY_BINARY[e.function] + _suffix(dtype), kind, [kind, kind], [left, right])
        if e.function in ("add", "sub", "mul"):
            return self._emit(f"{e.function} {kind} {left}, {right}")
        if e.function in ("div", "fmod"):
            return self._emit(f"{signed}{'div' if e.function == 'div' else 'rem'} {kind} {left}, {right}")
        shift = "shl" if e.function == "shl" else "ashr" if dtype.kind == "i" else "lshr"
        return self._emit(f"{shift} {kind} {left}, {right}")

    def _cast(self, e: s.Cast) -> str:
        source, target = e.operand.dtype, e.dtype
        value = self._value(e.operand)
        old, new = llvm_type(source), llvm_type(target)
        if source.is_float and target.is_float:
            if old == new:
                return value
            wider = target.bits > source.bits
            return self._emit(f"{'fpext' if wider else 'fptrunc'} {old} {value} to {new}")
        if source.is_float:
            return self._emit(f"fpto{'s' if target.kind == 'i' else 'u'}i {old} {value} to {new}")
        if target.is_float:
            op = "sitofp" if source.kind == "i" else "uitofp"
            return self._emit(f"{op} {old} {value} to {new}")
        if old == new:
            return value
        if target.itemsize < source.itemsize and source.kind != "b":
            return self._emit(f"trunc {old} {value} to {new}")
        return self._emit(f"{'sext' if source.kind == 'i' else 'zext'} {old} {value} to {new}")


def _suffix(dtype: DType) -> str:
    return "f" if dtype == f32 else ""


def _literal(e: s.Const) -> str:
    dtype = e.dtype
    if dtype.kind == "b":
        return "true" if e.value else "false"
    if not dtype.is_float:
        return str(int(e.value))  # type: ignore[arg-type]
    value = float(e.value)  # type: ignore[arg-type]
    if dtype in (f32, f16):
        try:
            (value,) = struct.unpack("<f", struct.pack("<f", value))
        except OverflowError:
            value = float("inf") if value > 0 else float("-inf")
    if dtype == f16:
        (bits,) = struct.unpack("<H", struct.pack("<e", value))
        return f"0xH{bits:04X}"
    assert dtype in (f32, f64), dtype
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return f"0x{bits:016X}"
