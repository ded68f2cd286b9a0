"""Lowers contractions to the explicit-vector generators: specs, packed weights, run-time sizes.

What no generator takes (integers, half floats, weights that are not constant) is lowered as a plain reduction by the
loop level: correct for every dtype, only slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dhc.backends.cpu.contract import registry as generators
from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.filtering import Filtering, filtering
from dhc.backends.cpu.contract.matmul import rows_beyond_tiles, steps_to_copy
from dhc.backends.cpu.contract.matmul_pairs import takes_pairs
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, KernelCode, MatmulSpec
from dhc.backends.cpu.contract.streaming import streamed_rows
from dhc.backends.cpu.epilogue import PlannedEpilogue, plan_epilogue
from dhc.backends.cpu.methods import Layer, Methods
from dhc.backends.cpu.target import CpuTarget
from dhc.ir import symbols
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.dtypes import f32, f64
from dhc.ir.graph import Node, Value
from dhc.ir.symbols import Dim
from dhc.passes.fuse import is_turned


@dataclass(frozen=True)
class PlannedContraction:
    """A contraction that a generator takes.

    Attributes:
        code: the kernel.
        operands: values or constant arrays for the buffers before the result.
        params: run-time sizes, without the code's ``constants``.
        epilogue: the nodes that it covers besides the contraction.
        before: a kernel over the first operand that runs before, and the f32 elements that it writes to a buffer, which
            both kernels take behind their operands; None when there is none.
        rounding: the largest change of a weight by storing weights in 16 bits, as a share of the largest weight; None
            where they are not.
        multiplied: whether it multiplies in bf16, the other factor rounded too.
        filtering: Winograd's method or a relative of it; None for plain sums.
    """

    code: KernelCode
    operands: tuple[Value | np.ndarray, ...]
    params: tuple[Dim, ...]
    epilogue: PlannedEpilogue
    before: tuple[KernelCode, Dim] | None = None
    rounding: float | None = None
    multiplied: bool = False
    filtering: Filtering | None = None


def plan_contraction(
    node: Node,
    tail: Sequence[Node],
    target: CpuTarget,
    resolve: dict[Value, Value] | None = None,
    *,
    exact: bool = False,
    storage: str = "",
    methods: Methods | None = None,
) -> PlannedContraction | None:
    """Plans a contraction and as much of its tail as possible; None when no generator takes it.

    Args:
        node: a `matmul`, `conv` or `conv_transpose`.
        tail: element-wise nodes after it.
        target: the CPU.
        resolve: inputs of the fused group -> the values outside that they stand for.
        exact: only methods whose results differ from the plain sum by the order of summation alone.
        storage: how weights of f32 are stored where the method can read them so: "", ``bf16`` or ``f16``.
        methods: what chooses methods and keeps generated kernels; None: the cost models, and nothing is kept.
    """
    outer = resolve or {}
    methods = methods or Methods()
    dtype = node.result.dtype
    if dtype not in (f32, f64) or any(v.dtype != dtype for v in node.operands):
        return None
    if node.op.name == "matmul":
        return _plan_matmul(node, tail, target, outer, storage if dtype == f32 else "", methods)
    if node.op.name in ("conv", "conv_transpose"):
        single = _plan_single_position(node, tail, target, outer, methods) if node.op.name == "conv_transpose" else None
        return single or _plan_window(node, tail, target, outer, exact, storage, methods)
    return None


def _constant(value: Value, outer: dict[Value, Value]) -> np.ndarray | None:
    producer = outer.get(value, value).producer
    if producer is None or producer.op.name != "constant":
        return None
    array: np.ndarray = producer.attrs["value"]
    return array


def _plan_window(
    node: Node,
    tail: Sequence[Node],
    target: CpuTarget,
    outer: dict[Value, Value],
    exact: bool,
    storage: str,
    methods: Methods,
) -> PlannedContraction | None:
    x, w = node.operands[:2]
    rank = x.type.rank - 2
    weights = _constant(w, outer)
    channels, pads = x.shape[1], node.attrs["pads_low"]
    if weights is None or not 1 <= rank <= 3 or not isinstance(channels, int):
        return None
    if not all(isinstance(p, int) for p in pads) or weights.size == 0:
        return None
    out_channels = node.result.shape[1]
    planned = plan_epilogue(node, tail, row_axis=1)
    cls = ConvSpec if node.op.name == "conv" else ConvTransposeSpec
    spec: ConvSpec | ConvTransposeSpec = cls(
        in_channels=channels,
        out_channels=int(out_channels),
        kernel=tuple(int(k) for k in weights.shape[2:]),
        stride=_per_axis(node.attrs["strides"], rank),
        dilation=_per_axis(node.attrs["dilations"], rank),
        pad_begin=tuple(int(p) for p in pads) or (0,) * rank,
        groups=node.attrs["groups"],
        bias=len(node.operands) > 2,
        dtype=node.result.dtype.name,
        epilogue=planned.epilogue or Epilogue(),
    )
    rounding = _rounding(weights, storage)
    sizes = (x.shape[0], *_three(x.shape[2:]), *_three(node.result.shape[2:]))
    finite = max(spec.dilation) == 1 or bool(np.isfinite(weights).all())  # matters to dilated ones alone
    layer = Layer(spec, sizes, tuple(x.shape[2:]), tuple(node.result.shape[2:]), exact, finite)
    chosen, described = methods.choose(layer, target, "" if rounding is None else storage)
    packed = generators.pack_weights(chosen, described, weights)
    operands = (x, packed, *node.operands[2:], *planned.operands)
    code = methods.emit(chosen, described)
    found = PlannedContraction(code, operands, sizes, planned, filtering=filtering(chosen))
    return replace(found, rounding=rounding, multiplied=chosen.pairs) if chosen.storage else found


def _plan_single_position(
    node: Node, tail: Sequence[Node], target: CpuTarget, outer: dict[Value, Value], methods: Methods
) -> PlannedContraction | None:
    """A transposed convolution of maps of one element, the first layer of a generator: a product of matrices."""
    x, w = node.operands[:2]
    weights = _constant(w, outer)
    bias = _constant(node.operands[2], outer) if len(node.operands) > 2 else np.zeros(0)
    if weights is None or bias is None or node.attrs["groups"] != 1 or weights.size == 0:
        return None
    single = all(d == 1 for d in x.shape[2:]) and not any(p != 0 for p in node.attrs["pads_low"])
    whole = node.result.shape[2:] == weights.shape[2:] and not any(d != 1 for d in node.attrs["dilations"])
    if not single or not whole:
        return None
    matrix = weights.reshape(weights.shape[0], -1)
    planned = plan_epilogue(node, tail, row_axis=None)
    spec = MatmulSpec(
        dtype=node.result.dtype.name,
        packed_b=True,
        bias="n" if bias.size else "none",
        epilogue=planned.epilogue or Epilogue(),
    )
    sizes = (1, 1, 1, x.shape[0], matrix.shape[1], matrix.shape[0], *(0,) * 6)
    chosen, described = methods.choose(Layer(spec, sizes), target)
    operands: list[Value | np.ndarray] = [x, generators.pack_weights(chosen, described, matrix)]
    if bias.size:
        operands.append(np.repeat(bias, matrix.shape[1] // len(bias)))
    return PlannedContraction(methods.emit(chosen, described), (*operands, *planned.operands), sizes, planned)


def _per_axis(values: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(int(v) for v in values) or (1,) * rank


def _three(sizes: Sequence[Dim]) -> tuple[Dim, ...]:
    return (1,) * (3 - len(sizes)) + tuple(sizes)


def _plan_matmul(
    node: Node, tail: Sequence[Node], target: CpuTarget, outer: dict[Value, Value], storage: str, methods: Methods
) -> PlannedContraction | None:
    a, b = node.operands
    (a_read, transpose_a), (b_read, transpose_b) = (_read_as(v, node, outer) for v in (a, b))
    constant = _constant(b, outer)
    flat = b.type.rank == 2 or all(d == 1 for d in b.shape[:-2])
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    if flat and not (transpose_a and symbols.product(a.shape[:-2]) != 1):
        # One matrix for the whole batch: the batch becomes rows, the kernel sees one large product.
        batch: tuple[Dim, ...] = (1, 1, 1)
        m = symbols.product(node.result.shape[:-1])
        if symbols.product(a.shape[:-1]) != m:
            return None
        a_strides: tuple[Dim, ...] = (0, 0, 0)
        b_strides: tuple[Dim, ...] = (0, 0, 0)
    else:
        merged = _batches(a.shape[:-2], b.shape[:-2], node.result.shape[:-2])
        if merged is None:
            return None
        batch, a_counts, b_counts = merged
        a_strides = tuple(c * m * k for c in a_counts)
        b_strides = tuple(c * k * n for c in b_counts)
    packed = constant is not None and flat and constant.size > 0
    rounding = _rounding(constant, storage) if packed and constant is not None else None
    streamed = streamed_rows(m, target) if packed and rounding is None else 0
    planned = plan_epilogue(node, tail, row_axis=None)
    following = next((n for n in tail if n.op.name != "constant"), None)
    bias = _column_bias(node, following) if following is not None else None
    if bias is not None and following is not None:
        # The kernel adds the vector itself; the epilogue starts after that.
        planned = plan_epilogue(following, [n for n in tail if n is not following], row_axis=None)
    spec = MatmulSpec(
        dtype=node.result.dtype.name,
        transpose_a=transpose_a,
        transpose_b=transpose_b,
        packed_b=packed,
        bias="none" if bias is None else "n",
        epilogue=planned.epilogue or Epilogue(),
        storage="" if rounding is None else storage,
        last_rows=0 if streamed else rows_beyond_tiles(m, target, node.result.dtype.name),
        copied_steps=steps_to_copy((m, n, k), target, node.result.dtype.name) if packed and not transpose_a else 0,
        streamed=streamed,
    )
    sizes = (*batch, m, n, k, *a_strides, *b_strides)
    chosen, described = methods.choose(Layer(spec, sizes), target)
    first: list[Value | np.ndarray] = [a_read, b_read]
    if packed:
        assert constant is not None
        first = [a_read, generators.pack_weights(chosen, described, constant.reshape(constant.shape[-2:]))]
    if bias is not None:
        first.append(bias)
    found = PlannedContraction(methods.emit(chosen, described), (*first, *planned.operands), sizes, planned)
    return replace(found, rounding=rounding, multiplied=takes_pairs(spec, target))


def _rounding(weights: np.ndarray, storage: str) -> float | None:
    """The largest change by storing weights in 16 bits, as a share of the largest; None where they stay as they are."""
    if not storage:
        return None
    with np.errstate(over="ignore"):
        stored = weights.astype(as_dtype(storage).numpy).astype(np.float32)
    if not np.isfinite(stored).all():
        return None  # beyond the range of the type
    return float(np.abs(stored - weights).max() / max(float(np.abs(weights).max()), np.finfo(np.float32).tiny))


def _read_as(value: Value, node: Node, outer: dict[Value, Value]) -> tuple[Value, bool]:
    """What the kernel reads for an operand: the matrix before a transpose that stands in the same group."""
    producer = value.producer
    if outer and producer is not None and producer.graph is node.graph and is_turned(value):
        return producer.operands[0], True
    return value, False


def _column_bias(node: Node, add: Node) -> Value | None:
    """The vector that a following `add` adds to every row of a matmul."""
    if add.op.name != "add" or add.result.type != node.result.type or len(node.result.uses) != 1:
        return None
    for index in (0, 1):
        if add.operands[index] is node.result:
            other = add.operands[1 - index]
            shape = other.shape
            if shape and shape[-1] == node.result.shape[-1] and all(d == 1 for d in shape[:-1]):
                return other
    return None


def _batches(
    a: Sequence[Dim], b: Sequence[Dim], result: Sequence[Dim]
) -> tuple[tuple[Dim, ...], tuple[Dim, ...], tuple[Dim, ...]] | None:
    """At most three batch axes with strides in matrices; 0 broadcasts. None when more would be needed."""
    rank = len(result)
    full_a, full_b = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    axes: list[tuple[Dim, Dim, Dim]] = []
    stride_a: Dim = 1
    stride_b: Dim = 1
    for size, x, y in reversed(list(zip(result, full_a, full_b))):
        if any(d not in (1, size) for d in (x, y)):
            return None  # may or may not be 1 at run time: the loop level decides then
        if size != 1:
            axes.append((size, 0 if x == 1 else stride_a, 0 if y == 1 else stride_b))
        stride_a, stride_b = stride_a * x, stride_b * y
    merged: list[tuple[Dim, Dim, Dim]] = []
    for size, sa, sb in axes:  # innermost first
        if merged:
            inner, inner_a, inner_b = merged[-1]
            if sa == inner * inner_a and sb == inner * inner_b:
                merged[-1] = (inner * size, inner_a, inner_b)
                continue
        merged.append((size, sa, sb))
    if len(merged) > 3:
        return None
    merged += [(1, 0, 0)] * (3 - len(merged))
    outermost_first = merged[::-1]
    return tuple(tuple(x[i] for x in outermost_first) for i in range(3))  # type: ignore[return-value]
