"""The kernel that pads maps: rows are copied in vectors, what lies around them is filled element by element."""

from __future__ import annotations

from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import even_share, load_lanes, store_lanes
from dhc.backends.cpu.llvm.builder import Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

PARAMS = ("planes", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w", "low_d", "low_h", "low_w")
_ITEM = 4


def emit_pad(mode: str, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a mode of ``pad`` for f32.

    Buffers: ``input``, ``value`` (one element, for the mode ``constant``), ``out``. Parameters: :data:`PARAMS`; widths
    are not negative.
    """
    module = Module(target, KERNEL)
    lanes = target.lanes("f32")
    vector = f"<{lanes} x float>"
    f = module.kernel(module.name)
    planes, in_d, in_h, in_w, out_d, out_h, out_w, low_d, low_h, low_w = (f.parameter(i) for i in range(len(PARAMS)))
    source, out = f.pointer_argument(0), f.pointer_argument(2)
    fill = f.load("float", f.pointer_argument(1), _ITEM)
    begin, end = even_share(f, planes * out_d * out_h, f.argument("tid"), f.argument("nthreads"))

    with f.loop(begin, end) as unit:
        y, rest = unit % out_h, unit // out_h
        z, plane = rest % out_d, rest // out_d
        from_z, inside_z = _origin(f, mode, z - low_d, in_d)
        from_y, inside_y = _origin(f, mode, y - low_h, in_h)
        row = f.at(source, ((plane * in_d + from_z) * in_h + from_y) * in_w * _ITEM)
        target_row = f.at(out, unit * out_w * _ITEM)

        def border(first: Value, last: Value, row: Value = row, target_row: Value = target_row) -> None:
            with f.loop(first, last) as x:
                from_x, _ = _origin(f, mode, x - low_w, in_w)
                value = fill if mode == "constant" else f.load("float", f.at(row, from_x * _ITEM), _ITEM)
                f.store(value, f.at(target_row, x * _ITEM), _ITEM)

        def copied(row: Value = row, target_row: Value = target_row) -> None:
            middle = f.at(target_row, low_w * _ITEM)
            border(f.const(0), low_w)
            whole = (in_w // lanes) * lanes
            with f.loop(0, whole, lanes) as j:
                f.store(f.load(vector, f.at(row, j * _ITEM), _ITEM), f.at(middle, j * _ITEM), _ITEM)
            with f.if_(whole < in_w):
                left = in_w - whole
                value = load_lanes(f, vector, f.at(row, whole * _ITEM), left, _ITEM)
                store_lanes(f, value, f.at(middle, whole * _ITEM), left, _ITEM)
            border(low_w + in_w, out_w)

        def filled() -> None:
            border(f.const(0), out_w)

        if mode == "constant":
            f.if_else(inside_z & inside_y, copied, filled)
        else:
            copied()
    f.ret(0)
    return finished(module, target, "pad", ("input", "value", "out"), PARAMS, 0)


def _origin(f: Function, mode: str, position: Value, size: Value) -> tuple[Value, Value]:
    """Where an element comes from, and whether its position is one of the operand's own (mode ``constant``)."""
    inside = (position >= 0) & (position < size)
    if mode == "constant":
        return f.select(inside, position, 0), inside
    if mode == "edge":
        return f.value(f.maximum(0, f.minimum(position, size - 1))), inside
    period = size if mode == "wrap" else f.value(f.maximum((size - 1) * 2, 1))
    turned = ((position % period) + period) % period
    if mode == "wrap":
        return turned, inside
    return f.select(turned < size, turned, (size - 1) * 2 - turned), inside
