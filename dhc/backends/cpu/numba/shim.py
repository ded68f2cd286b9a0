"""The C ABI of CPU kernels around a function that Numba compiled, as LLVM IR text.

Numba passes an array as meminfo, parent, number of elements, item size, data, shape, strides; results go through a
pointer, and the status of exceptions is the native return value.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dhc.backends.cpu.numba.opaque import ArrayArgument, OpaqueKernel, Size
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.loop.functions import register
from dhc.backends.loop.half import expand_half
from dhc.backends.loop.ir import Buffer, For, Kernel, Store
from dhc.backends.loop.llvm_source import print_kernels
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, f32

# Numba's array functions ask this helper for the strides of a reshaped array; ours are always contiguous.
_RESHAPE_HELPER = """
define internal i32 @numba_attempt_nocopy_reshape(i64 %nd, ptr %dims, ptr %strides, i64 %newnd, ptr %newdims, ptr %newstrides, i64 %itemsize, i32 %order) {
entry:
  br label %head
head:
  %left = phi i64 [ %newnd, %entry ], [ %axis, %body ]
  %stride = phi i64 [ %itemsize, %entry ], [ %next, %body ]
  %more = icmp sgt i64 %left, 0
  br i1 %more, label %body, label %done
body:
  %axis = sub i64 %left, 1
  %pd = getelementptr i64, ptr %newdims, i64 %axis
  %ps = getelementptr i64, ptr %newstrides, i64 %axis
  store i64 %stride, ptr %ps
  %dim = load i64, ptr %pd
  %next = mul i64 %stride, %dim
  br label %head
done:
  ret i32 1
}
"""  # noqa: E501


def conversion(source: DType, target: DType) -> Kernel:
    """Copies n0 elements to another float type, on the first thread."""
    value: s.ScalarExpr = s.Load(source, 0, (s.Var("i"),))
    value = s.Cast(target, value) if source == f32 else s.Cast(f32, value)
    body = For("i", s.Var("n0"), (Store(1, s.Var("i"), value),))
    return Kernel("convert", (Buffer("x0", source, "read"), Buffer("y0", target, "write")), ("n0",), (body,))


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def emit(self, text: str) -> str:
        self._count += 1
        self.line(f"%s{self._count} = {text}")
        return f"%s{self._count}"

    def product(self, sizes: Sequence[str]) -> str:
        total = "1"
        for size in sizes:
            total = size if total == "1" else self.emit(f"mul i64 {total}, {size}")
        return total


def _ref(size: Size) -> str:
    return f"%{size}" if isinstance(size, str) else str(size)


def opaque_shim(kernel: OpaqueKernel, callee: str, target: CpuTarget, native: Collection[DType]) -> str:
    """LLVM IR of the kernel function that unpacks buffers and parameters and calls Numba's function `callee`."""
    w = _Writer()
    halves = [a for a in kernel.arrays if a.wide is not None]
    serial = (kernel.items is None and not kernel.splits) or bool(halves)
    if serial:
        first = w.emit("icmp eq i64 %tid, 0")
        w.line(f"br i1 {first}, label %work, label %idle")
        w.lines += ["idle:", "  ret i32 0", "work:"]
    for number, name in enumerate(kernel.params):
        place = w.emit(f"getelementptr i8, ptr %params, i64 {8 * number}")
        w.line(f"%{name} = load i64, ptr {place}, align 8")
    operands = []
    conversions: dict[str, Kernel] = {}
    after: list[tuple[str, str, str, str]] = []
    for number, array in enumerate(kernel.arrays):
        pointer = _buffer(w, number)
        if array.wide is not None:
            pointer = _widen(w, array, pointer, conversions, after, native)
        operands += _array_operands(w, array, pointer)
    for value in kernel.numbers:
        operands.append(f"double {_float(value)}" if isinstance(value, float) else f"i64 {_ref(value)}")
    if kernel.items is not None:
        operands += [f"i64 {x}" for x in _share(w, _ref(kernel.items), serial)]
    w.line("%result = alloca i64")
    w.line("%raised = alloca ptr")
    w.line("store i64 0, ptr %result")
    types = ", ".join(o.split(" ")[0] for o in operands)
    status = w.emit(f'call i32 @"{callee}"(ptr %result, ptr %raised, {", ".join(operands)})')
    # Negative: no value (None); positive: an exception, which functions of ops do not raise.
    bad = w.emit(f"icmp sgt i32 {status}, 0")
    w.line(f"br i1 {bad}, label %failed, label %good")
    w.lines += ["failed:", "  ret i32 3", "good:"]
    for symbol, source, goal, length in after:
        _convert(w, symbol, source, goal, length)
    code = w.emit("load i64, ptr %result")
    w.line(f"ret i32 {w.emit(f'trunc i64 {code} to i32')}")
    kernels = [conversions[name] for name in sorted(conversions)]
    head = print_kernels(kernels, target.triple)
    body = [f"define i32 @{kernel.symbol}(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) nounwind {{", "entry:"]
    return "\n".join([head, f'declare i32 @"{callee}"(ptr, ptr, {types})', *body, *w.lines, "}", _RESHAPE_HELPER])


def _buffer(w: _Writer, number: int) -> str:
    place = w.emit(f"getelementptr i8, ptr %buffers, i64 {8 * number}")
    return w.emit(f"load ptr, ptr {place}, align 8")


def _widen(
    w: _Writer,
    array: ArrayArgument,
    pointer: str,
    conversions: dict[str, Kernel],
    after: list[tuple[str, str, str, str]],
    native: Collection[DType],
) -> str:
    """Makes the function work on an f32 copy; results are converted back after the call."""
    assert array.wide is not None
    wide = _buffer(w, array.wide)
    length = w.product([_ref(d) for d in array.shape])
    pair = (f32, array.dtype) if array.written else (array.dtype, f32)
    kernel = expand_half(conversion(*pair), native)
    conversions[kernel.symbol] = kernel
    if array.written:
        after.append((kernel.symbol, wide, pointer, length))
    else:
        _convert(w, kernel.symbol, pointer, wide, length)
    return wide


def _convert(w: _Writer, symbol: str, source: str, goal: str, length: str) -> None:
    table = w.emit("alloca [2 x ptr]")
    w.line(f"store ptr {source}, ptr {table}")
    second = w.emit(f"getelementptr i8, ptr {table}, i64 8")
    w.line(f"store ptr {goal}, ptr {second}")
    size = w.emit("alloca i64")
    w.line(f"store i64 {length}, ptr {size}")
    w.emit(f"call i32 @{symbol}(ptr {table}, ptr {size}, i64 0, i64 1)")


def _array_operands(w: _Writer, array: ArrayArgument, pointer: str) -> list[str]:
    sizes = [_ref(d) for d in array.shape]
    itemsize = 4 if array.wide is not None else register(array.dtype).itemsize
    operands = ["ptr null", "ptr null", f"i64 {w.product(sizes)}", f"i64 {itemsize}", f"ptr {pointer}"]
    strides: list[str] = []
    running = str(itemsize)
    for size in reversed(sizes):
        strides.insert(0, running)
        running = w.emit(f"mul i64 {running}, {size}")
    return [*operands, *(f"i64 {x}" for x in sizes), *(f"i64 {x}" for x in strides)]


def _share(w: _Writer, items: str, serial: bool) -> tuple[str, str]:
    if serial:
        return "0", items
    rounded = w.emit(f"add i64 {items}, {w.emit('sub i64 %nthreads, 1')}")
    chunk = w.emit(f"sdiv i64 {rounded}, %nthreads")
    low = w.emit(f"mul i64 %tid, {chunk}")
    high = w.emit(f"add i64 {low}, {chunk}")
    ends = []
    for end in (low, high):
        beyond = w.emit(f"icmp slt i64 {end}, {items}")
        ends.append(w.emit(f"select i1 {beyond}, i64 {end}, i64 {items}"))
    return ends[0], ends[1]


def _float(value: float) -> str:
    import struct

    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
