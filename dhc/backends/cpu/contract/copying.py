"""Copies of input rows into scratch memory, zeros in place of padding, strides taken out."""

from __future__ import annotations

from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Int, Module, Value


def emit_copy_row(module: Module, name: str, dtype: str, lanes: int, stride: int) -> Function:
    """Writes ``void copy(from, from_stride, channels, first, width, count, to, to_stride)``.

    For each channel ``c``, element ``j < count`` of the row at ``to + c * to_stride`` becomes element
    ``first + j * stride`` of the row at ``from + c * from_stride`` where that lies in ``[0, width)``, else 0. Whole
    vectors are written: up to ``lanes - 1`` elements behind ``count`` are overwritten. Strides in bytes.
    """
    item, element = ITEM_BYTES[dtype], ELEMENT[dtype]
    vector = f"<{lanes} x {element}>"
    f = module.function(
        name,
        "void",
        (
            ("ptr", "from"),
            ("i64", "from_stride"),
            ("i64", "channels"),
            ("i64", "first"),
            ("i64", "width"),
            ("i64", "count"),
            ("ptr", "to"),
            ("i64", "to_stride"),
        ),
    )
    source, from_stride, channels, first, width, count, to, to_stride = (f.argument(n) for _, n in f.arguments)
    zero = Value(f, vector, "zeroinitializer")

    def scalars(base: Value, target: Value, x: Value, j: Value) -> None:
        for lane in range(lanes):
            at = x + lane * stride
            inside = (at >= 0) & (at < width)
            cell = f.at(target, (j + lane) * item)

            def copy(at: Value = at, cell: Value = cell) -> None:
                f.store(f.load(element, f.at(base, at * item), item), cell, item)

            def clear(cell: Value = cell) -> None:
                f.store(f.constant(0.0, element), cell, item)

            f.if_else(inside, copy, clear)

    def masked(base: Value, x: Value, place: Value) -> None:
        parts = []
        for part in range(stride):
            mask = inside_mask(f, x + part * lanes, width, lanes)
            parts.append(f.masked_load(vector, f.at(base, (x + part * lanes) * item), mask, item))
        value = parts[0] if stride == 1 else f.shuffle(parts[0], parts[1], range(0, 2 * lanes, 2))
        f.store(value, place, item)

    def whole(base: Value, x: Value, place: Value) -> None:
        if stride == 1:
            value = f.load(vector, f.at(base, x * item), item)
        elif stride == 2:
            low, high = (f.load(vector, f.at(base, (x + part * lanes) * item), item) for part in range(2))
            value = f.shuffle(low, high, range(0, 2 * lanes, 2))
        else:
            value = gather(f, vector, f.at(base, x * item), stride * item)
        f.store(value, place, item)

    def border(base: Value, target: Value, x: Value, j: Value, place: Value) -> None:
        if module.target.masks and stride <= 2:
            masked(base, x, place)
            return
        f.if_else(
            (width <= x) | (x + (lanes - 1) * stride < 0) | (width <= 0),
            lambda: f.store(zero, place, item),
            lambda: scalars(base, target, x, j),
        )

    # Vectors in [begin, end) read nothing outside the row: no masks there.
    reach = stride * lanes - 1 if stride <= 2 else stride * (lanes - 1)
    limit = f.value(f.ceildiv(count, lanes)) * lanes
    begin = f.value(f.ceildiv(f.value(f.maximum(0, 0 - first)), stride * lanes)) * lanes
    begin = f.value(f.minimum(begin, limit))
    room = width - first - reach - 1
    fitting = f.select(room >= 0, (room // (stride * lanes) + 1) * lanes, 0)
    end = f.value(f.minimum(limit, f.maximum(begin, fitting)))
    with f.loop(0, channels) as c:
        base, target = f.at(source, c * from_stride), f.at(to, c * to_stride)
        for low, high, inside in ((f.const(0), begin, False), (begin, end, True), (end, limit, False)):
            with f.loop(low, high, lanes) as j:
                x, place = first + j * stride, f.at(target, j * item)
                if inside:
                    whole(base, x, place)
                else:
                    border(base, target, x, j, place)
    f.ret()
    return f


def gather(f: Function, type_: str, pointer: Value, stride: Int) -> Value:
    """A vector of elements ``stride`` bytes apart."""
    lanes, element = type_[1:-1].split(" x ")
    value = Value(f, type_, "poison")
    align = {"float": 4, "double": 8}[element]
    for lane in range(int(lanes)):
        scalar = f.load(element, f.at(pointer, lane * stride), align)
        value = f.emit(type_, f"insertelement {type_} {value.ref}, {element} {scalar.ref}, i64 {lane}")
    return value


def inside_mask(f: Function, first: Value, width: Value, lanes: int) -> Value:
    """A mask: lane ``j`` is set when ``0 <= first + j < width``."""
    low, high = (f.emit("i32", f"trunc i64 {value.ref} to i32") for value in (first, width))
    iota = "<" + ", ".join(f"i32 {j}" for j in range(lanes)) + ">"
    type_ = f"<{lanes} x i32>"
    at = f.emit(type_, f"add {type_} {f.splat(low, lanes).ref}, {iota}")
    # As unsigned numbers negative positions are huge, so one comparison tests both ends.
    return f.emit(f"<{lanes} x i1>", f"icmp ult {type_} {at.ref}, {f.splat(high, lanes).ref}")
