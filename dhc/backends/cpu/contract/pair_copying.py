"""Copies of input rows as pairs of bf16: two channels side by side, in the place of one channel's f32.

Copied rows have the layout of those in f32, with half as many channels, so that kernels read both kinds alike. The last
of an odd number of channels has zeros beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dhc.backends.cpu.contract.copying import inside_mask
from dhc.backends.cpu.contract.factors import rounded_pairs
from dhc.backends.cpu.contract.tile import TileShape, load_lanes
from dhc.backends.cpu.llvm.builder import Function, Int, Module, Value

_ITEM, _LANES, _VECTOR = 4, 16, "<16 x float>"


def emit_copy_row_pairs(module: Module, name: str, stride: int) -> Function:
    """Writes ``void copy(from, from_stride, channels, first, width, count, to, to_stride)``.

    As :func:`~dhc.backends.cpu.contract.copying.emit_copy_row`, but row ``p`` at ``to + p * to_stride`` has the
    elements of channels ``2 p`` and ``2 p + 1``. Up to 15 pairs behind ``count`` are overwritten.
    """
    names = ("from_stride", "channels", "first", "width", "count")
    arguments = (("ptr", "from"), *(("i64", name) for name in names), ("ptr", "to"), ("i64", "to_stride"))
    f = module.function(name, "void", arguments)
    from_stride, channels, first, width, count = (f.argument(name) for name in names)

    def load(base: Value, x: Value, inside: bool) -> Value:
        """Elements ``x``, ``x + stride``, ... of a row, zeros outside of it."""
        if stride > 2:
            lanes = "<" + ", ".join(f"i64 {lane * stride}" for lane in range(_LANES)) + ">"
            start = f.at(base, x * _ITEM)
            at = f.emit(f"<{_LANES} x ptr>", f"getelementptr float, ptr {start.ref}, <{_LANES} x i64> {lanes}")
            return _gather(f, at, _inside(f, x, stride, width))
        parts = []
        for part in range(stride):
            at = f.at(base, (x + part * _LANES) * _ITEM)
            if inside:
                parts.append(f.load(_VECTOR, at, _ITEM))
            else:
                parts.append(f.masked_load(_VECTOR, at, inside_mask(f, x + part * _LANES, width, _LANES), _ITEM))
        return parts[0] if stride == 1 else f.shuffle(parts[0], parts[1], range(0, 2 * _LANES, 2))

    # Vectors in [begin, end) read nothing outside the row: no masks there.
    step = stride * _LANES
    limit = f.value(f.ceildiv(count, _LANES)) * _LANES
    begin = f.value(f.ceildiv(f.value(f.maximum(0, 0 - first)), step)) * _LANES
    begin = f.value(f.minimum(begin, limit))
    room = width - first - step
    fitting = f.select(room >= 0, (room // step + 1) * _LANES, 0)
    end = f.value(f.minimum(limit, f.maximum(begin, fitting)))

    def copy(even: Value, odd: Value | None, to: Value) -> None:
        for low, high, inside in ((f.const(0), begin, False), (begin, end, True), (end, limit, False)):
            with f.loop(low, high, _LANES) as j:
                x = first + j * stride
                left = load(even, x, inside)
                right = load(odd, x, inside) if odd is not None else Value(f, _VECTOR, "zeroinitializer")
                f.store(rounded_pairs(f, left, right), f.at(to, j * _ITEM), _ITEM)

    _over_pairs(f, f.argument("from"), from_stride, channels, f.argument("to"), f.argument("to_stride"), copy)
    f.ret()
    return f


def emit_copy_panel_pairs(module: Module, name: str, shape: TileShape) -> Function:
    """Writes ``void copy(from, from_stride, steps, count, to)``: rows of ``count`` columns become rows of a panel.

    As :func:`~dhc.backends.cpu.contract.fused_tile.emit_copy_panel`, but a row of the panel holds two rows, and
    ``steps`` counts what is copied.
    """
    arguments = (("ptr", "from"), ("i64", "from_stride"), ("i64", "steps"), ("i64", "count"), ("ptr", "to"))
    f = module.function(name, "void", arguments)
    count = f.argument("count")

    def copy(whole: bool, even: Value, odd: Value | None, to: Value) -> None:
        for v in range(shape.vectors):
            left: Int = f.maximum(0, f.minimum(_LANES, count - v * _LANES))

            def load(row: Value | None, v: int = v, left: Int = left) -> Value:
                if row is None:
                    return Value(f, _VECTOR, "zeroinitializer")
                at = f.at(row, v * _LANES * _ITEM)
                return f.load(_VECTOR, at, _ITEM) if whole else load_lanes(f, _VECTOR, at, f.value(left), _ITEM)

            f.store(rounded_pairs(f, load(even), load(odd)), f.at(to, v * _LANES * _ITEM), _ITEM)

    def rows(whole: bool) -> None:
        _over_pairs(
            f, f.argument("from"), f.argument("from_stride"), f.argument("steps"), f.argument("to"),
            f.const(shape.columns * _ITEM), partial(copy, whole),
        )  # fmt: skip

    f.if_else(count >= shape.columns, lambda: rows(True), lambda: rows(False))
    f.ret()
    return f


def _over_pairs(
    f: Function, source: Value, from_stride: Value, count: Value, to: Value, to_stride: Value,
    copy: Callable[[Value, Value | None, Value], None],
) -> None:  # fmt: skip
    """Calls ``copy(even row, odd row, where the pairs go)``; the last of an odd number of rows has no other."""
    pairs = f.value(count // 2)
    with f.loop(0, pairs) as p:
        even = f.at(source, from_stride * (p * 2))
        copy(even, f.at(even, from_stride), f.at(to, p * to_stride))
    with f.if_((count % 2).equals(1)):
        copy(f.at(source, from_stride * (pairs * 2)), None, f.at(to, pairs * to_stride))


def _inside(f: Function, first: Value, stride: int, width: Value) -> Value:
    """A mask: lane ``j`` is set when ``0 <= first + j * stride < width``."""
    low, high = (f.emit("i32", f"trunc i64 {value.ref} to i32") for value in (first, width))
    steps = "<" + ", ".join(f"i32 {lane * stride}" for lane in range(_LANES)) + ">"
    type_ = f"<{_LANES} x i32>"
    at = f.emit(type_, f"add {type_} {f.splat(low, _LANES).ref}, {steps}")
    return f.emit(f"<{_LANES} x i1>", f"icmp ult {type_} {at.ref}, {f.splat(high, _LANES).ref}")


def _gather(f: Function, at: Value, mask: Value) -> Value:
    """Elements from anywhere; those that the mask leaves out are zero and not touched."""
    symbol = f.module.declare("llvm.masked.gather.v16f32.v16p0", _VECTOR, [at.type, "i32", mask.type, _VECTOR])
    return f.emit(
        _VECTOR,
        f"call {_VECTOR} {symbol}({at.type} {at.ref}, i32 {_ITEM}, {mask.type} {mask.ref}, {_VECTOR} zeroinitializer)",
    )
