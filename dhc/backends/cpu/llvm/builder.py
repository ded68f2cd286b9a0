"""A small writer of LLVM IR text: integer arithmetic with operators, loops, vectors.

llvmlite's own builder keeps objects per instruction and renders them later; kernels here have thousands of vector
instructions and are written once, so the text is made directly. Loop-carried values live in :class:`Variable`, a stack
slot that LLVM turns into registers.

Pointers are opaque; offsets are in bytes. Integers are ``i64`` unless said otherwise; plain Python integers are
constants everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dhc.backends.cpu.target import CpuTarget

KERNEL_ARGUMENTS = (("ptr", "buffers"), ("ptr", "params"), ("i64", "tid"), ("i64", "nthreads"))
ELEMENT = {
    "f32": "float",
    "f64": "double",
    "f16": "half",
    "bf16": "bfloat",
    "i8": "i8",
    "i16": "i16",
    "i32": "i32",
    "i64": "i64",
    "u8": "i8",
    "u16": "i16",
    "u32": "i32",
    "u64": "i64",
    "bool": "i8",
}
ITEM_BYTES = {
    "f32": 4,
    "f64": 8,
    "f16": 2,
    "bf16": 2,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "bool": 1,
}


class Value:
    """An SSA value. Integer values have arithmetic and comparison operators; ``//`` and ``%`` truncate toward zero."""

    __slots__ = ("function", "ref", "type")

    def __init__(self, function: Function, type_: str, ref: str) -> None:
        self.function, self.type, self.ref = function, type_, ref

    def _binary(self, op: str, other: Int, swap: bool = False) -> Value:
        left, right = self.ref, other.ref if isinstance(other, Value) else str(other)
        if swap:
            left, right = right, left
        return self.function.emit(self.type, f"{op} {self.type} {left}, {right}")

    def __add__(self, other: Int) -> Value:
        return self if isinstance(other, int) and other == 0 else self._binary("add", other)

    __radd__ = __add__

    def __sub__(self, other: Int) -> Value:
        return self if isinstance(other, int) and other == 0 else self._binary("sub", other)

    def __rsub__(self, other: Int) -> Value:
        return self._binary("sub", other, swap=True)

    def __mul__(self, other: Int) -> Value:
        return self if isinstance(other, int) and other == 1 else self._binary("mul", other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Int) -> Value:
        return self if isinstance(other, int) and other == 1 else self._binary("sdiv", other)

    def __rfloordiv__(self, other: Int) -> Value:
        return self._binary("sdiv", other, swap=True)

    def __mod__(self, other: Int) -> Value:
        return self._binary("srem", other)

    def __and__(self, other: Int) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Int) -> Value:
        return self._binary("or", other)

    def _compare(self, op: str, other: Int) -> Value:
        right = other.ref if isinstance(other, Value) else str(other)
        return self.function.emit("i1", f"icmp {op} {self.type} {self.ref}, {right}")

    def __lt__(self, other: Int) -> Value:
        return self._compare("slt", other)

    def __le__(self, other: Int) -> Value:
        return self._compare("sle", other)

    def __gt__(self, other: Int) -> Value:
        return self._compare("sgt", other)

    def __ge__(self, other: Int) -> Value:
        return self._compare("sge", other)

    def equals(self, other: Int) -> Value:
        """``self == other`` as an ``i1``."""
        return self._compare("eq", other)


Int = int | Value


class Variable:
    """A mutable value of a function (a stack slot that optimisation removes)."""

    def __init__(self, function: Function, type_: str, slot: str) -> None:
        self.function, self.type, self.slot = function, type_, slot

    def get(self) -> Value:
        """The current value."""
        return self.function.emit(self.type, f"load {self.type}, ptr {self.slot}")

    def set(self, value: Value | int | str) -> None:
        """Replaces the value; a ``str`` is a literal in LLVM's spelling."""
        ref = value.ref if isinstance(value, Value) else str(value)
        self.function.line(f"store {self.type} {ref}, ptr {self.slot}")


class Module:
    """An LLVM module as text: declarations and functions in the order they were asked for."""

    def __init__(self, target: CpuTarget, name: str) -> None:
        self.target, self.name = target, name
        self.declarations: dict[str, str] = {}
        self.functions: list[Function] = []

    def declare(self, name: str, result: str, arguments: Sequence[str]) -> str:
        """Declares an external function or intrinsic once; returns ``@name``."""
        self.declarations.setdefault(name, f"declare {result} @{name}({', '.join(arguments)})")
        return f"@{name}"

    def function(
        self, name: str, result: str, arguments: Sequence[tuple[str, str]], *, internal: bool = True
    ) -> Function:
        """Starts a function; internal ones are never inlined, so that each keeps its own register allocation."""
        function = Function(self, name, result, arguments, internal)
        self.functions.append(function)
        return function

    def kernel(self, name: str) -> Function:
        """Starts the function of the CPU kernel ABI."""
        return self.function(name, "i32", KERNEL_ARGUMENTS, internal=False)

    def text(self) -> str:
        """The module's IR."""
        bits = self.target.vector_bits
        parts = [f'target triple = "{self.target.triple}"']
        parts += [function.text() for function in self.functions]
        parts += [self.declarations[name] for name in sorted(self.declarations)]
        width = f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'
        parts += [f"attributes #0 = {{ nounwind {width} }}", f"attributes #1 = {{ nounwind noinline {width} }}"]
        return "\n".join(parts) + "\n"


class Function:
    """A function being written; new instructions go to the end of the current block."""

    def __init__(
        self, module: Module, name: str, result: str, arguments: Sequence[tuple[str, str]], internal: bool
    ) -> None:
        self.module, self.name, self.result, self.internal = module, name, result, internal
        self.arguments = tuple(arguments)
        self.block = "entry"
        self._lines: list[str] = []
        self._slots: list[str] = []
        self._count = 0

    # ---------------------------------------------------------------- text

    def text(self) -> str:
        """The function's IR."""
        signature = ", ".join(f"{type_} %{name}" for type_, name in self.arguments)
        head = (
            f"define {'internal ' if self.internal else ''}{self.result} @{self.name}({signature}) "
            f"{'#1' if self.internal else '#0'} {{"
        )
        return "\n".join([head, "entry:", *self._slots, *self._lines, "}"])

    def line(self, text: str) -> None:
        """Appends one instruction without a result."""
        self._lines.append("  " + text)

    def _fresh(self, stem: str = "v") -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def emit(self, type_: str, text: str) -> Value:
        """Appends one instruction and names its result."""
        name = "%" + self._fresh()
        self._lines.append(f"  {name} = {text}")
        return Value(self, type_, name)

    def argument(self, name: str) -> Value:
        """An argument of this function."""
        return Value(self, {n: t for t, n in self.arguments}[name], f"%{name}")

    def const(self, value: int, type_: str = "i64") -> Value:
        """An integer constant as a value."""
        return Value(self, type_, str(value))

    def value(self, value: Int) -> Value:
        """``value`` itself, or an integer as an ``i64`` constant."""
        return value if isinstance(value, Value) else self.const(value)

    # ---------------------------------------------------------------- control flow

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self.block = label

    def variable(self, type_: str, initial: Value | int | str | None = None) -> Variable:
        """A mutable value; ``initial`` is stored here and now."""
        slot = "%" + self._fresh("slot")
        self._slots.append(f"  {slot} = alloca {type_}")
        variable = Variable(self, type_, slot)
        if initial is not None:
            variable.set(initial)
        return variable

    def stack(self, size: int, align: int = 64) -> Value:
        """``size`` bytes on the stack for the whole call."""
        slot = "%" + self._fresh("slot")
        self._slots.append(f"  {slot} = alloca [{size} x i8], align {align}")
        return Value(self, "ptr", slot)

    @contextmanager
    def loop(self, start: Int, stop: Int, step: Int = 1) -> Iterator[Value]:
        """``for i in range(start, stop, step)`` with a positive step."""
        head, body, end = (self._fresh(stem) for stem in ("head", "body", "end"))
        before = self.block
        self.line(f"br label %{head}")
        self._start(head)
        index = Value(self, "i64", "%" + self._fresh("i"))
        phi_at = len(self._lines)
        self._lines.append("")
        inside = index < stop
        self.line(f"br i1 {inside.ref}, label %{body}, label %{end}")
        self._start(body)
        yield index
        following = index + step
        first = start.ref if isinstance(start, Value) else str(start)
        self._lines[phi_at] = f"  {index.ref} = phi i64 [ {first}, %{before} ], [ {following.ref}, %{self.block} ]"
        self.line(f"br label %{head}")
        self._start(end)

    @contextmanager
    def while_(self, condition: Callable[[], Value]) -> Iterator[None]:
        """Repeats the body while ``condition()``, emitted at the loop's head, holds."""
        head, body, end = (self._fresh(stem) for stem in ("head", "body", "end"))
        self.line(f"br label %{head}")
        self._start(head)
        self.line(f"br i1 {condition().ref}, label %{body}, label %{end}")
        self._start(body)
        yield
        self.line(f"br label %{head}")
        self._start(end)

    @contextmanager
    def if_(self, condition: Value) -> Iterator[None]:
        """Runs the body when ``condition`` (``i1``) holds."""
        then, end = self._fresh("then"), self._fresh("end")
        self.line(f"br i1 {condition.ref}, label %{then}, label %{end}")
        self._start(then)
        yield
        self.line(f"br label %{end}")
        self._start(end)

    def if_else(self, condition: Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Emits a branch with two arms."""
        labels = [self._fresh(stem) for stem in ("then", "else", "end")]
        self.line(f"br i1 {condition.ref}, label %{labels[0]}, label %{labels[1]}")
        for label, arm in ((labels[0], then), (labels[1], otherwise)):
            self._start(label)
            arm()
            self.line(f"br label %{labels[2]}")
        self._start(labels[2])

    def call(self, function: Function, arguments: Sequence[Int]) -> Value | None:
        """Calls another function of the module."""
        texts = []
        for (type_, _), argument in zip(function.arguments, arguments, strict=True):
            texts.append(f"{type_} {argument.ref if isinstance(argument, Value) else argument}")
        call = f"call {function.result} @{function.name}({', '.join(texts)})"
        if function.result == "void":
            self.line(call)
            return None
        return self.emit(function.result, call)

    def intrinsic(self, name: str, result: str, arguments: Sequence[Value]) -> Value:
        """Calls an intrinsic or external function by name, declaring it.

        The mangling of an overloaded intrinsic (``llvm.sqrt``) is added from the result's type when it is missing.
        """
        if name.startswith("llvm.") and name.count(".") == 1:
            name = f"{name}.{suffix(result)}"
        symbol = self.module.declare(name, result, [a.type for a in arguments])
        texts = ", ".join(f"{a.type} {a.ref}" for a in arguments)
        return self.emit(result, f"call {result} {symbol}({texts})")

    def ret(self, value: Int | None = None) -> None:
        """Ends the function."""
        if value is None:
            self.line("ret void")
        else:
            self.line(f"ret {self.result} {value.ref if isinstance(value, Value) else value}")

    # ---------------------------------------------------------------- integers and pointers

    def select(self, condition: Value, yes: Int, no: Int, type_: str = "i64") -> Value:
        """``yes`` where ``condition`` holds, else ``no``; vectors choose lane by lane."""
        refs = [x.ref if isinstance(x, Value) else str(x) for x in (yes, no)]
        for x in (yes, no):
            type_ = x.type if isinstance(x, Value) else type_
        return self.emit(type_, f"select {condition.type} {condition.ref}, {type_} {refs[0]}, {type_} {refs[1]}")

    def minimum(self, left: Int, right: Int) -> Int:
        """The smaller of two integers."""
        if isinstance(left, int) and isinstance(right, int):
            return min(left, right)
        return self.intrinsic("llvm.smin.i64", "i64", [self.value(left), self.value(right)])

    def maximum(self, left: Int, right: Int) -> Int:
        """The larger of two integers."""
        if isinstance(left, int) and isinstance(right, int):
            return max(left, right)
        return self.intrinsic("llvm.smax.i64", "i64", [self.value(left), self.value(right)])

    def ceildiv(self, left: Int, right: Int) -> Int:
        """``left / right`` rounded up, for non-negative ``left`` and positive ``right``."""
        if isinstance(left, int) and isinstance(right, int):
            return -(-left // right)
        return self.value(left + (right - 1)) // right

    def at(self, pointer: Value, offset: Int) -> Value:
        """``pointer`` plus ``offset`` bytes."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        ref = offset.ref if isinstance(offset, Value) else str(offset)
        return self.emit("ptr", f"getelementptr i8, ptr {pointer.ref}, i64 {ref}")

    def pointer_argument(self, index: int) -> Value:
        """Operand buffer ``index`` of a kernel."""
        return self.load("ptr", self.at(self.argument("buffers"), 8 * index), 8)

    def parameter(self, index: Int) -> Value:
        """Run-time parameter ``index`` of a kernel."""
        return self.load("i64", self.at(self.argument("params"), index * 8), 8)

    def load(self, type_: str, pointer: Value, align: int) -> Value:
        """Loads a value."""
        return self.emit(type_, f"load {type_}, ptr {pointer.ref}, align {align}")

    def store(self, value: Value, pointer: Value, align: int) -> None:
        """Stores a value."""
        self.line(f"store {value.type} {value.ref}, ptr {pointer.ref}, align {align}")

    def prefetch(self, pointer: Value, level: int = 1) -> None:
        """Asks for the cache line at ``pointer`` to be brought to the first or second level of the caches."""
        symbol = self.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.line(f"call void {symbol}(ptr {pointer.ref}, i32 0, i32 {4 - level}, i32 1)")

    # ---------------------------------------------------------------- floating point and vectors

    def constant(self, value: float, type_: str) -> Value:
        """A floating-point constant; for a vector type in every lane."""
        if type_.startswith("<"):
            lanes, element = type_[1:-1].split(" x ")
            item = self.constant(value, element).ref
            return Value(self, type_, "<" + ", ".join([f"{element} {item}"] * int(lanes)) + ">")
        if type_ == "float":
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        return Value(self, type_, "0x" + struct.pack(">d", value).hex().upper())

    def binary(self, op: str, left: Value, right: Value) -> Value:
        """``fadd``, ``fmul``, ``and`` ... of two values of one type."""
        return self.emit(left.type, f"{op} {left.type} {left.ref}, {right.ref}")

    def compare(self, op: str, left: Value, right: Value) -> Value:
        """``fcmp`` (``olt``, ``ogt``, ``uno`` ...) of scalars or vectors."""
        result = f"<{left.type[1:-1].split(' x ')[0]} x i1>" if left.type.startswith("<") else "i1"
        return self.emit(result, f"fcmp {op} {left.type} {left.ref}, {right.ref}")

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """``left * right + addend``, rounded once where the target has the instruction, else twice."""
        if not self.module.target.fma:
            return self.binary("fadd", self.binary("fmul", left, right), addend)
        return self.intrinsic(f"llvm.fma.{suffix(left.type)}", left.type, [left, right, addend])

    def splat(self, scalar: Value, lanes: int) -> Value:
        """A vector with ``scalar`` in all lanes."""
        type_ = f"<{lanes} x {scalar.type}>"
        one = self.emit(type_, f"insertelement {type_} poison, {scalar.type} {scalar.ref}, i64 0")
        return self.emit(type_, f"shufflevector {type_} {one.ref}, {type_} poison, <{lanes} x i32> zeroinitializer")

    def shuffle(self, left: Value, right: Value, lanes: Sequence[int]) -> Value:
        """Picks lanes of the concatenation of two vectors."""
        element = left.type[1:-1].split(" x ")[1]
        indices = ", ".join(f"i32 {lane}" for lane in lanes)
        pair = f"{left.type} {left.ref}, {right.type} {right.ref}"
        return self.emit(f"<{len(lanes)} x {element}>", f"shufflevector {pair}, <{len(lanes)} x i32> <{indices}>")

    def lanes_below(self, count: Value, lanes: int, start: int = 0) -> Value:
        """A mask: lane ``j`` is set when ``start + j < count``."""
        short = self.emit("i32", f"trunc i64 {count.ref} to i32")
        iota = "<" + ", ".join(f"i32 {start + j}" for j in range(lanes)) + ">"
        return self.emit(f"<{lanes} x i1>", f"icmp slt <{lanes} x i32> {iota}, {self.splat(short, lanes).ref}")

    def masked_load(self, type_: str, pointer: Value, mask: Value, align: int) -> Value:
        """Loads the lanes of ``mask``; the others are zero and their memory is not touched."""
        symbol = self.module.declare(f"llvm.masked.load.{suffix(type_)}.p0", type_, ["ptr", "i32", mask.type, type_])
        return self.emit(
            type_,
            f"call {type_} {symbol}(ptr {pointer.ref}, i32 {align}, {mask.type} {mask.ref}, {type_} zeroinitializer)",
        )

    def masked_store(self, value: Value, pointer: Value, mask: Value, align: int) -> None:
        """Stores the lanes of ``mask``."""
        symbol = self.module.declare(
            f"llvm.masked.store.{suffix(value.type)}.p0", "void", [value.type, "ptr", "i32", mask.type]
        )
        arguments = f"{value.type} {value.ref}, ptr {pointer.ref}, i32 {align}, {mask.type} {mask.ref}"
        self.line(f"call void {symbol}({arguments})")


def suffix(type_: str) -> str:
    """The mangling of a type in an intrinsic's name: ``<16 x float>`` is ``v16f32``."""
    names = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}
    if type_.startswith("<"):
        lanes, element = type_[1:-1].split(" x ")
        return f"v{lanes}{names.get(element, element)}"
    return names.get(type_, type_)
