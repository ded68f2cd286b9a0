"""Strided transposed convolutions of small maps with many channels: vectors over output channels.

The first layers of generators and the deepest of decoders have maps of a few columns, which fill no vectors, and more
weights than a cache holds. Here the weights are the vectors, and a tile's rows are output positions of one residue
modulo the stride: an input value is broadcast for each. A thread copies the map once with zeros in place of padding,
then takes output channels of its own, a vector of them at a time, so that each weight is read from memory by one thread
and once, ahead of its use. The sums of all residues lie together as their outputs do; they are transposed in registers,
and whole rows of a channel are finished and stored at once.

Each result is one sum in the order (channel, y tap, x tap).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.contract.blocks import odd_lines
from dhc.backends.cpu.contract.conv_results import emit_conv_store
from dhc.backends.cpu.contract.copying import emit_copy_row
from dhc.backends.cpu.contract.spec import KERNEL, ConvTransposeSpec, KernelCode, buffer_names, finished
from dhc.backends.cpu.contract.tile import even_share
from dhc.backends.cpu.contract.transpose import transposed
from dhc.backends.cpu.contract.transposed_plan import TransposedPlan, is_shared, make_plan
from dhc.backends.cpu.contract.window_plan import PARAMS
from dhc.backends.cpu.llvm.builder import ELEMENT, ITEM_BYTES, Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

CONSTANTS = ("groups", "in_channels", "out_channels", "scratch_bytes")
_MOST_POSITIONS = 64  # input positions from which on vectors of columns do as well
_LEAST_VECTORS = 4  # of output channels: what threads divide
_AHEAD = 4096  # bytes of weights: hardware prefetchers stop at every page
_LINE = 64


def _most_sums(target: CpuTarget) -> int:
    """Sums of a tile: the other half of the registers holds inputs that several taps share."""
    return target.vector_registers // 2


def serves(spec: ConvTransposeSpec, target: CpuTarget, height: int, width: int) -> bool:
    """Whether a kernel can be written for outputs of ``height`` x ``width``."""
    stride = spec.stride[-1]
    fits = len(spec.kernel) <= 2 and is_shared(spec) and not spec.storage
    return fits and height > 0 and width > 0 and width % stride == 0 and width // stride <= _most_sums(target)


def for_small_map(spec: ConvTransposeSpec, target: CpuTarget, out_size: Sequence[Any]) -> ConvTransposeSpec | None:
    """The spec with this method where the map is small and the output channels are many; None: another is better.

    Args:
        spec: the spec.
        target: the target.
        out_size: spatial sizes of the output, numbers or symbolic expressions; empty: unknown.
    """
    if not out_size or len(out_size) > 2 or not all(isinstance(n, int) for n in out_size):
        return None
    height, width = (1, *out_size)[-2:]
    positions = -(-height // spec.padded(spec.stride, 1)[1]) * -(-width // spec.stride[-1])
    outs = spec.out_channels // spec.groups
    if positions > _MOST_POSITIONS or outs < _LEAST_VECTORS * target.lanes(spec.dtype):
        return None
    if not serves(spec, target, height, width):
        return None
    return replace(spec, method="channels", positions=height * width, width=width, narrow=False)


def pack_transposed_channels(
    spec: ConvTransposeSpec, target: CpuTarget, weights: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Weights ``[C, OC / groups, k...]`` as ``[group][vector of output channels][residue][channel][tap][lane]``, flat.

    Output channels are filled up with zeros to whole vectors.
    """
    import numpy as np

    plan, lanes = make_plan(spec, target), target.lanes(spec.dtype)
    ins, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    vectors = -(-outs // lanes)
    taps = spec.padded(spec.kernel, 1)[1:]
    full = np.zeros((spec.groups, ins, vectors * lanes, *taps), weights.dtype)
    full[:, :, :outs] = weights.reshape(spec.groups, ins, outs, *taps)
    packed = []
    for group, v in itertools.product(range(spec.groups), range(vectors)):
        chosen = full[group, :, v * lanes : (v + 1) * lanes]
        for part in itertools.chain.from_iterable(plan.parts):
            some = chosen[:, :, list(part.y.taps)][..., list(part.x.taps)]  # [ins, lanes, y taps, x taps]
            packed.append(some.reshape(ins, lanes, -1).transpose(0, 2, 1).reshape(-1))
    return np.ascontiguousarray(np.concatenate(packed)) if packed else np.zeros(0, weights.dtype)


def emit_transposed_channels(spec: ConvTransposeSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of a transposed convolution with ``positions`` outputs in rows of ``width``.

    Buffers: ``input``, ``weight`` (packed by :func:`pack_transposed_channels`), [``bias``], [``epilogue0``...],
    ``out``, ``scratch``. Parameters: as for other convolutions.
    """
    plan, module = make_plan(spec, target), Module(target, KERNEL)
    item, lanes = ITEM_BYTES[spec.dtype], target.lanes(spec.dtype)
    size = lanes * item
    stride_y, stride_x = plan.stride[1:]
    out_h, out_w = spec.positions // spec.width, spec.width
    t_h, t_w = -(-out_h // stride_y), out_w // stride_x
    rows = -(-t_h // -(-t_h // min(t_h, max(1, _most_sums(target) // t_w))))  # of a tile, evened out
    counts = sorted({rows, t_h % rows} - {0}, reverse=True)
    parts = list(itertools.chain.from_iterable(plan.parts))

    pitch_row = t_w + plan.span
    pitch = odd_lines((t_h + plan.halo) * pitch_row + lanes, item)  # of a channel
    ins_fixed = spec.in_channels // spec.groups
    scratch_bytes = -(-(max(ins_fixed, 1) * pitch + lanes) * item // 64) * 64
    flat = rows * stride_y * out_w  # outputs of a tile
    finished_pitch = -(-flat // lanes) * lanes
    patterns = sorted({part.offsets for part in parts})
    tiles = {
        (count, offsets): _emit_tile(
            module, f"tile{count}_{i}", spec, plan, lanes, count, t_w, pitch_row, pitch, offsets
        )
        for count in counts
        for i, offsets in enumerate(patterns)
    }
    collect = _emit_collect(module, spec.dtype, lanes, finished_pitch)
    copy_row = emit_copy_row(module, "copy_row", spec.dtype, lanes, 1)
    buffers = buffer_names("input", "weight", spec.bias, spec.epilogue)
    out_at = buffers.index("out")
    store = emit_conv_store(module, "store", spec, lanes, finished_pitch, out_at)

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS + CONSTANTS)}
    groups, ins, outs = names["groups"], names["in_channels"], names["out_channels"]
    in_h, in_w = names["in_h"], names["in_w"]
    source, weight = f.pointer_argument(0), f.pointer_argument(1)
    scratch = f.at(f.pointer_argument(out_at + 1), f.argument("tid") * names["scratch_bytes"])
    held, finished_rows = f.stack(finished_pitch * size), f.stack(finished_pitch * size)
    vectors = f.value(f.ceildiv(outs, lanes))
    part_bytes = [len(part.offsets) * size for part in parts]  # for each input channel
    begin, end = even_share(f, names["batch"] * groups * vectors, f.argument("tid"), f.argument("nthreads"))
    last = f.variable("i64", -1)
    with f.loop(begin, end) as unit:
        vector, channel_map = unit % vectors, unit // vectors  # of (image, group)
        group = channel_map % groups
        with f.if_(last.get().equals(channel_map).equals(0)):
            last.set(channel_map)
            channel0 = f.at(source, channel_map * ins * in_h * in_w * item)
            with f.loop(0, t_h + plan.halo) as r:
                y = r + plan.first_row
                inside = (y >= 0) & (y < in_h)
                start = f.at(channel0, f.select(inside, y * in_w * item, 0))
                to = f.at(scratch, r * (pitch_row * item))
                width = f.select(inside, in_w, 0)
                f.call(
                    copy_row, [start, in_h * in_w * item, ins, plan.first_column, width, pitch_row, to, pitch * item]
                )
        channel = vector * lanes
        here = f.minimum(lanes, outs - channel)
        weights = f.at(weight, (group * vectors + vector) * ins * sum(part_bytes))
        out_map = (channel_map * outs + channel) * (out_h * out_w)
        for count, first, many in ((rows, 0, t_h // rows), (t_h % rows, t_h // rows * rows, 1)):
            if count == 0:
                continue
            with f.loop(0, many) as index:
                t = index * count + first
                before = 0
                for part, own in zip(parts, part_bytes, strict=True):
                    a = f.at(scratch, (t * pitch_row + (part.row * pitch_row + part.column)) * item)
                    to = f.at(held, (part.y.first * out_w + part.x.first) * size)
                    steps = ins if part.offsets else f.const(0)
                    f.call(tiles[count, part.offsets], [a, f.at(weights, ins * before), steps, to])
                    before += own
                outputs = f.value(f.minimum(count * stride_y, out_h - t * stride_y)) * out_w
                f.call(collect, [held, outputs, finished_rows])
                place = out_map + t * (stride_y * out_w)
                f.call(
                    store,
                    [
                        f.argument("buffers"),
                        finished_rows,
                        here,
                        outputs,
                        place,
                        out_h * out_w,
                        group * outs + channel,
                        0,
                    ],
                )
    f.ret(0)
    constants = (spec.groups, ins_fixed, spec.out_channels // spec.groups, scratch_bytes)
    return finished(module, target, "convt_channels", buffers, PARAMS, scratch_bytes, constants)


def _emit_tile(
    module: Module, name: str, spec: ConvTransposeSpec, plan: TransposedPlan, lanes: int, rows: int, columns: int,
    pitch_row: int, pitch: int, offsets: Sequence[tuple[int, int]],
) -> Function:  # fmt: skip
    """``void tile(a, b, steps, to)``: one residue's sums for ``rows`` x ``columns`` positions.

    ``a``: the copied map at the first tap of the first position, ``b``: weights ``[channel][tap][lane]``. Output
    (r, c) of the residue goes to the vector at ``to`` that is its place among the outputs of all residues.
    """
    item, element = ITEM_BYTES[spec.dtype], ELEMENT[spec.dtype]
    vector, size = f"<{lanes} x {element}>", lanes * item
    f = module.function(name, "void", (("ptr", "a"), ("ptr", "b"), ("i64", "steps"), ("ptr", "to")))
    places = list(itertools.product(range(rows), range(columns)))
    sums = [f.variable(vector, "zeroinitializer") for _ in places]
    a, b = f.variable("ptr", f.argument("a")), f.variable("ptr", f.argument("b"))
    with f.loop(0, f.argument("steps")):
        a_now, b_now = a.get(), b.get()
        for offset in range(0, len(offsets) * size, _LINE):
            f.prefetch(f.at(b_now, _AHEAD + offset))
        for tap, (dy, dx) in enumerate(offsets):
            weights = f.load(vector, f.at(b_now, tap * size), item)
            for total, (r, c) in zip(sums, places, strict=True):
                scalar = f.load(element, f.at(a_now, ((r + dy) * pitch_row + c + dx) * item), item)
                total.set(f.fma(f.splat(scalar, lanes), weights, total.get()))
        a.set(f.at(a_now, pitch * item))
        b.set(f.at(b_now, len(offsets) * size))
    stride_y, stride_x = plan.stride[1:]
    for total, (r, c) in zip(sums, places, strict=True):
        f.store(total.get(), f.at(f.argument("to"), (r * stride_y * spec.width + c * stride_x) * size), size)
    f.ret()
    return f


def _emit_collect(module: Module, dtype: str, lanes: int, pitch: int) -> Function:
    """``void collect(from, count, to)``: lane ``c`` of vector ``j`` goes to ``to[c * pitch + j]``, whole vectors."""
    item = ITEM_BYTES[dtype]
    vector = f"<{lanes} x {ELEMENT[dtype]}>"
    f = module.function("collect", "void", (("ptr", "from"), ("i64", "count"), ("ptr", "to")))
    with f.loop(0, f.argument("count"), lanes) as j:
        source, to = f.at(f.argument("from"), j * (lanes * item)), f.at(f.argument("to"), j * item)
        some: list[Value] = [f.load(vector, f.at(source, i * lanes * item), lanes * item) for i in range(lanes)]
        for c, value in enumerate(transposed(f, some, lanes)):
            f.store(value, f.at(to, c * pitch * item), item)
    f.ret()
    return f
