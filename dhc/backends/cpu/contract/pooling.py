"""Maximum and mean over sliding windows, plain ``[N, C, D, H, W]`` layout in and out.

Windows are taken apart: the rows that a row of results needs are first combined element by element into one row in the
first-level cache, padded at both ends, then neighbouring elements of that row are combined. So there are neither
borders nor strides where vectors are loaded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dhc_runtime.errors import UsageError

from dhc.backends.cpu.contract.copying import gather
from dhc.backends.cpu.contract.spec import DTYPES, KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import even_share, load_lanes, store_lanes
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

PARAMS = ("planes", "in_d", "in_h", "in_w", "out_d", "out_h", "out_w")
CONSTANTS = (
    *(f"{what}_{axis}" for what in ("kernel", "stride", "dilation", "pad", "first", "beyond") for axis in "zyx"),
    "row_bytes",
)
# Results of a row that are computed at a time.
_X_BLOCK = 512
_ROWS = 8
_MOST_UNROLLED = 27


@dataclass(frozen=True)
class PoolSpec:
    """A sliding window of 1 to 3 dimensions.

    Attributes:
        mean: the mean instead of the maximum.
        kernel: window size of each spatial dimension.
        stride: distance of windows.
        dilation: distance of a window's elements.
        pad_begin: padding before the first element of each dimension.
        first: first position that counts in the divisor of a mean, for each dimension; 0: the first of the input.
        beyond: how far behind the input's last element positions count.
        dtype: ``f32`` or ``f64``.
    """

    mean: bool
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_begin: tuple[int, ...]
    first: tuple[int, ...]
    beyond: tuple[int, ...]
    dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"pooling kernels compute in {' or '.join(DTYPES)}, not {self.dtype}")
        lists = (self.kernel, self.stride, self.dilation, self.pad_begin, self.first, self.beyond)
        if not 1 <= len(self.kernel) <= 3 or len({len(values) for values in lists}) > 1:
            raise UsageError("pooling windows have 1 to 3 dimensions, and as many strides, dilations and pads")
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.dilation) < 1:
            raise UsageError("window sizes, strides and dilations are at least 1")


def emit_pool(spec: PoolSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel. Buffers: ``input``, ``out``, ``scratch``; parameters: :data:`PARAMS`."""
    module = Module(target, KERNEL)
    item, lanes, element = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype), ELEMENT[spec.dtype]
    vector = f"<{lanes} x {element}>"
    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    kernel, stride, dilation, pad, first, beyond = (
        [names[f"{what}_{axis}"] for axis in "zyx"]
        for what in ("kernel", "stride", "dilation", "pad", "first", "beyond")
    )
    in_d, in_h, in_w = names["in_d"], names["in_h"], names["in_w"]
    out_d, out_h, out_w = names["out_d"], names["out_h"], names["out_w"]
    source, out = f.pointer_argument(0), f.pointer_argument(1)
    row = f.at(f.pointer_argument(2), f.argument("tid") * names["row_bytes"])
    counts = f.at(row, names["row_bytes"] - (_X_BLOCK + lanes) * item)
    # Small windows are unrolled: a kernel for each; all others share one.
    unrolled = math.prod(spec.kernel) <= _MOST_UNROLLED
    fixed = (_three(spec.kernel, 1), _three(spec.dilation, 1))
    fill = f.constant(0.0 if spec.mean else float("-inf"), vector)

    def combine(total: Value, value: Value) -> Value:
        if spec.mean:
            return f.binary("fadd", total, value)
        larger = f.select(f.compare("ogt", value, total), value, total)
        return f.select(f.compare("uno", value, value), value, larger)  # NaN wins

    def combine_all(values: Sequence[Value]) -> Value:
        total = values[0]
        for value in values[1:]:
            total = combine(total, value) if spec.mean else f.select(f.compare("ogt", value, total), value, total)
        if spec.mean:
            return total
        # One comparison tells of two values whether either is NaN.
        pairs = [(values[i], values[min(i + 1, len(values) - 1)]) for i in range(0, len(values), 2)]
        wrong = f.compare("uno", *pairs[0])
        for pair in pairs[1:]:
            wrong = f.binary("or", wrong, f.compare("uno", *pair))
        return f.select(wrong, f.constant(float("nan"), vector), total)

    def number(axis: int, position: Value, size: Value) -> Value:
        """How many elements of the window at a result position count."""
        start = position * stride[axis] - pad[axis]

        def below(bound: Value) -> Value:
            whole = f.value(f.maximum(bound + (dilation[axis] - 1), 0)) // dilation[axis]
            return f.value(f.minimum(whole, kernel[axis]))

        return below(size + beyond[axis] - start) - below(first[axis] - start)

    x_blocks = f.value(f.ceildiv(out_w, _X_BLOCK))
    r_blocks = f.value(f.ceildiv(out_h, _ROWS))
    units = names["planes"] * out_d * r_blocks * x_blocks
    begin, end = even_share(f, units, f.argument("tid"), f.argument("nthreads"))
    counted = f.variable("i64", -1)
    with f.loop(begin, end) as unit:
        x_block, rest = unit % x_blocks, unit // x_blocks
        r_block, rest = rest % r_blocks, rest // r_blocks
        z_out, plane = rest % out_d, rest // out_d
        x_first, r_first = x_block * _X_BLOCK, r_block * _ROWS
        x_count = f.value(f.minimum(_X_BLOCK, out_w - x_first))
        r_last = f.value(f.minimum(out_h, r_first + _ROWS))
        # Element j of the row is the input's column left + j; [inner, outer) lies within the input.
        left = x_first * stride[2] - pad[2]
        needed = (x_count - 1) * stride[2] + (kernel[2] - 1) * dilation[2] + 1
        inner = f.value(f.minimum(needed, f.maximum(0, 0 - left)))
        outer = f.value(f.maximum(inner, f.minimum(needed, in_w - left)))
        if spec.mean:
            with f.if_(counted.get().equals(x_block).equals(0)):
                counted.set(x_block)
                with f.loop(0, x_count) as j:
                    count = f.emit(element, f"sitofp i64 {number(2, x_first + j, in_w).ref} to {element}")
                    f.store(count, f.at(counts, j * item), item)
        with f.loop(0, inner, lanes) as j:
            f.store(fill, f.at(row, j * item), item)
        with f.loop(outer, needed + lanes, lanes) as j:
            f.store(fill, f.at(row, j * item), item)

        taps_z = _inside(f, z_out, stride[0], pad[0], dilation[0], kernel[0], in_d)
        with f.loop(r_first, r_last) as y_out:
            taps_y = _inside(f, y_out, stride[1], pad[1], dilation[1], kernel[1], in_h)
            z_start, y_start = z_out * stride[0] - pad[0], y_out * stride[1] - pad[1]
            base = f.at(source, (plane * in_d * in_h * in_w + left) * item)

            def read(pointer: Value, count: Value | None) -> Value:
                return f.load(vector, pointer, item) if count is None else load_lanes(f, vector, pointer, count, item)

            def some(
                j: Value,
                count: Value | None,
                base: Value = base,
                taps_z: tuple[Value, Value] = taps_z,
                taps_y: tuple[Value, Value] = taps_y,
                z_start: Value = z_start,
                y_start: Value = y_start,
            ) -> Value:
                """Combines those rows that lie within the input."""
                total = f.variable(vector, fill)
                with f.loop(*taps_z) as kz, f.loop(*taps_y) as ky:
                    z, y = z_start + kz * dilation[0], y_start + ky * dilation[1]
                    value = read(f.at(base, ((z * in_h + y) * in_w + j) * item), count)
                    total.set(combine(total.get(), value))
                return total.get()

            def columns(
                combined: Callable[[Value, Value | None], Value], inner: Value = inner, outer: Value = outer
            ) -> None:
                """Combines rows, ``lanes`` columns at a time; what lies behind the input's last column is filled."""
                whole = ((outer - inner) // lanes) * lanes + inner
                with f.loop(inner, whole, lanes) as j:
                    f.store(combined(j, None), f.at(row, j * item), item)
                with f.if_(whole < outer):
                    count = outer - whole
                    result = f.select(f.lanes_below(count, lanes), combined(whole, count), fill)
                    f.store(result, f.at(row, whole * item), item)

            def whole_window(base: Value = base, z_start: Value = z_start, y_start: Value = y_start) -> None:
                taps = [(z * fixed[1][0], y * fixed[1][1]) for z in range(fixed[0][0]) for y in range(fixed[0][1])]
                starts = [f.at(base, ((z_start + z) * in_h + y_start + y) * in_w * item) for z, y in taps]
                columns(lambda j, count: combine_all([read(f.at(start, j * item), count) for start in starts]))

            if unrolled:
                every = (taps_z[1] - taps_z[0] >= fixed[0][0]) & (taps_y[1] - taps_y[0] >= fixed[0][1])
                f.if_else(every, whole_window, functools.partial(columns, some))
            else:
                columns(some)

            place = ((plane * out_d + z_out) * out_h + y_out) * out_w + x_first
            scale = f.const(0)
            if spec.mean:
                scale = number(0, z_out, in_d) * number(1, y_out, in_h)
                scale = f.splat(f.emit(element, f"sitofp i64 {scale.ref} to {element}"), lanes)

            def neighbour(at: Value, x_stride: int) -> Value:
                """Every ``x_stride``-th element; 0 stands for any stride."""
                if x_stride == 1:
                    return f.load(vector, at, item)
                if x_stride == 2:
                    low, high = (f.load(vector, f.at(at, part * lanes * item), item) for part in range(2))
                    return f.shuffle(low, high, range(0, 2 * lanes, 2))
                return gather(f, vector, at, stride[2] * item)

            def results(x_stride: int, place: Value = place, x_count: Value = x_count, scale: Value = scale) -> None:
                """Combines neighbours in the row."""
                with f.loop(0, x_count, lanes) as j:
                    start = f.at(row, j * (x_stride or stride[2]) * item)
                    if unrolled:
                        steps = [kx * fixed[1][2] * item for kx in range(fixed[0][2])]
                        result = combine_all([neighbour(f.at(start, step), x_stride) for step in steps])
                    else:
                        total = f.variable(vector, fill)
                        with f.loop(0, kernel[2]) as kx:
                            value = neighbour(f.at(start, kx * dilation[2] * item), x_stride)
                            total.set(combine(total.get(), value))
                        result = total.get()
                    if spec.mean:
                        count = f.binary("fmul", scale, f.load(vector, f.at(counts, j * item), item))
                        one = f.constant(1.0, vector)
                        result = f.binary("fdiv", result, f.select(f.compare("ogt", count, one), count, one))
                    here = f.at(out, (place + j) * item)
                    left_over = x_count - j
                    f.if_else(
                        left_over >= lanes,
                        functools.partial(f.store, result, here, item),
                        functools.partial(store_lanes, f, result, here, left_over, item),
                    )

            if unrolled:
                results(spec.stride[-1] if spec.stride[-1] <= 2 else 0)
            else:

                def wider(write: Callable[[int], None] = results) -> None:
                    f.if_else(stride[2].equals(2), lambda: write(2), lambda: write(0))

                f.if_else(stride[2].equals(1), functools.partial(results, 1), wider)
    f.ret(0)

    reach = (_X_BLOCK + lanes) * spec.stride[-1] + (spec.kernel[-1] - 1) * spec.dilation[-1] + 3 * lanes
    row_bytes = -(-(reach + _X_BLOCK + lanes) * item // 64) * 64
    constants: list[int] = []
    for values, missing in (
        (spec.kernel, 1), (spec.stride, 1), (spec.dilation, 1), (spec.pad_begin, 0), (spec.first, 0), (spec.beyond, 0)
    ):  # fmt: skip
        constants += _three(values, missing)
    stem = "mean_pool" if spec.mean else "max_pool"
    return finished(module, target, stem, ("input", "out", "scratch"), PARAMS, row_bytes, (*constants, row_bytes))


def _three(values: Sequence[int], missing: int) -> list[int]:
    return [missing] * (3 - len(values)) + list(values)


def _inside(
    f: Function, position: Value, stride: Value, pad: Value, dilation: Value, kernel: Value, size: Value
) -> tuple[Value, Value]:
    """The range of taps whose elements lie within the input."""
    start = position * stride - pad
    low = f.value(f.ceildiv(f.value(f.maximum(0, 0 - start)), dilation))
    high = f.value(f.minimum(kernel, f.ceildiv(f.value(f.maximum(0, size - start)), dilation)))
    return low, f.value(f.maximum(low, high))
