"""Sampling at positions that another tensor gives: warps, spatial transformers, registration.

One text of the rule serves the reference (arrays), backends (scalar expressions) and the gradient (nodes): it is
written with the arithmetic operators that all three have, and with the few functions of `_Algebra`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from dhc.ir import scalar as s
from dhc.ir.autodiff import region_gradient
from dhc.ir.builder import Builder
from dhc.ir.dtypes import FLOATS, DType, f32, f64, i64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.inference import require_elements, require_equal, require_rank
from dhc.ir.kinds import Index, LoadFn, Map
from dhc.ir.op import Attr, Call, Cost, OpDef, Operand
from dhc.ir.ops.matmul import load_as, moved_bytes
from dhc.ir.registry import register
from dhc.ir.symbols import Dim
from dhc.ir.types import TensorType

MODES = ("nearest", "linear", "cubic")
PADDINGS = ("zeros", "border", "reflection")
_TAPS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}


def _real(dtype: DType) -> DType:
    """Positions and weighted sums are in f32, those of f64 operands in f64."""
    return f64 if dtype == f64 else f32


@dataclass(frozen=True)
class _Algebra:
    """What the rule needs besides ``+ - * /``: for arrays, scalar expressions or nodes.

    Attributes:
        number: a size or a Python number in the dtype of positions.
        floor: largest whole number that is not above.
        rint: nearest whole number, halves to even.
        least: the smaller of two.
        most: the larger of two.
        below: comparison.
        choose: ``(condition, if_true, if_false)``.
        both: conjunction.
        whole: as i64, saturating; NaN gives any number.
    """

    number: Callable[[Any], Any]
    floor: Callable[[Any], Any]
    rint: Callable[[Any], Any]
    least: Callable[[Any, Any], Any]
    most: Callable[[Any, Any], Any]
    below: Callable[[Any, Any], Any]
    choose: Callable[[Any, Any, Any], Any]
    both: Callable[[Any, Any], Any]
    whole: Callable[[Any], Any]


def _of_arrays(dtype: DType) -> _Algebra:
    real: Any = dtype.numpy.type

    def whole(x: np.ndarray) -> Any:
        kept = np.where(np.isnan(x), real(0), np.clip(x, -(2.0**62), 2.0**62))
        return kept.astype(np.int64)

    return _Algebra(
        real, np.floor, np.rint, np.minimum, np.maximum, np.less, np.where, np.logical_and, whole
    )  # fmt: skip


def _of_scalars(dtype: DType) -> _Algebra:
    def number(value: Any) -> s.ScalarExpr:
        if isinstance(value, (int, float)):
            return s.const(float(value), dtype)
        return s.cast(s.size(value), dtype)

    return _Algebra(
        number,
        lambda x: s.unary("floor", x),
        lambda x: s.unary("rint", x),
        s.minimum,
        s.maximum,
        lambda a, b: a < b,
        s.select,
        lambda a, b: s.logical_and(a, b),
        lambda x: s.cast(x, i64, saturate=True),
    )


def _of_nodes(b: Builder, dtype: DType) -> _Algebra:
    def number(value: Any) -> Value:
        if isinstance(value, (int, float)):
            return b.constant(float(value), dtype)
        result: Value = b.cast(b.reshape(b.dims(values=(value,)), shape=()), dtype=dtype)
        return result

    return _Algebra(
        number, b.floor, b.round, b.minimum, b.maximum, b.lt, b.where, b.logical_and,
        lambda x: b.cast(x, dtype=i64, saturate=True),
    )  # fmt: skip


# ---- the rule --------------------------------------------------------------------------------------------------------


def _reflected(m: _Algebra, tap: Any, extent: Dim, align: bool) -> Any:
    """A whole position mirrored into the operand: at the outer elements' centres, else at their edges."""
    size, one = m.number(extent), m.number(1.0)
    period = m.most((size - one) * m.number(2.0), one) if align else size * m.number(2.0)
    rest = tap - m.floor(tap / period) * period
    return m.choose(m.below(rest, size), rest, period - rest if align else period - one - rest)


def _position(m: _Algebra, g: Any, extent: Dim, attrs: Any) -> Any:
    """Position in elements along an axis; what lies outside is decided for each tap on its own."""
    size, one, two = m.number(extent), m.number(1.0), m.number(2.0)
    if attrs.normalized:
        g = (g + one) / two * (size - one) if attrs.align_corners else ((g + one) * size - one) / two
    if attrs.mode == "nearest":
        g = m.rint(g)
    # So far outside every tap is the outer element: this changes nothing but infinite positions.
    return m.least(m.most(g, m.number(-2.0)), size + one) if attrs.padding == "border" else g


def _weights(m: _Algebra, t: Any, mode: str) -> list[Any]:
    """Weights of the taps for a position `t` (0 to 1) after the first element."""
    one = m.number(1.0)
    if mode == "nearest":
        return [one]
    if mode == "linear":
        return [one - t, t]
    a = -0.75  # Keys' kernel, as ONNX and PyTorch have it

    def number(value: float) -> Any:
        return m.number(value)

    def near(d: Any) -> Any:
        return (number(a + 2) * d - number(a + 3)) * d * d + one

    def far(d: Any) -> Any:
        return ((number(a) * d - number(5 * a)) * d + number(8 * a)) * d - number(4 * a)

    return [far(t + one), near(t), near(one - t), far(number(2.0) - t)]


def _axis_taps(m: _Algebra, g: Any, extent: Dim, attrs: Any) -> list[tuple[Any, Any, Any]]:
    """(position within the operand, weight, whether it counts; None: always) of the taps along an axis."""
    at = _position(m, g, extent, attrs)
    first = m.floor(at)
    found = []
    for offset, weight in zip(_TAPS[attrs.mode], _weights(m, at - first, attrs.mode)):
        tap = first + m.number(float(offset)) if offset else first
        counts = None
        last = m.number(extent) - m.number(1.0)
        if attrs.padding == "reflection":
            tap = _reflected(m, tap, extent, attrs.align_corners)
        elif attrs.padding == "zeros":
            counts = m.both(m.below(m.number(-0.5), tap), m.below(tap, m.number(extent)))
        # Also keeps what is not a number within the operand.
        found.append((m.whole(m.least(m.most(tap, m.number(0.0)), last)), weight, counts))
    return found


def _combined(m: _Algebra, axes: Sequence[list[tuple[Any, Any, Any]]]) -> Iterator[tuple[list[Any], Any, Any]]:
    """The taps of all axes together: positions, weight (None: 1) and whether they count."""
    for taps in product(*axes):
        weight = counts = None
        for _, w, c in taps:
            weight = w if weight is None else weight * w
            counts = c if counts is None or c is None else m.both(counts, c)
        yield [at for at, _, _ in taps], weight, counts


# ---- the op ----------------------------------------------------------------------------------------------------------


def _type(call: Call) -> list[TensorType]:
    x, grid = call.types
    rank = x.rank - 2
    if not 1 <= rank <= 3:
        call.fail("samples [N, C, *spatial] with 1 to 3 spatial axes")
    require_rank(call, 1, x.rank)
    call.require(grid.shape[-1], rank, "coordinates of a position")
    if call.attrs.mode == "cubic" and rank > 2:
        call.fail("cubic interpolation is for 1 or 2 spatial axes", hint="use linear")
    batch = require_equal(call, x.shape[0], grid.shape[0], "batches of operand and grid")
    for axis, size in enumerate(x.shape[2:]):
        require_elements(call, size, grid.numel, f"spatial axis {axis}")
    return [TensorType(x.dtype, (batch, x.shape[1], *grid.shape[1:-1]))]


def _reference(call: Call, x: np.ndarray, grid: np.ndarray) -> Any:
    real = _real(call.types[0].dtype)
    m = _of_arrays(real)
    rank = x.ndim - 2
    with np.errstate(all="ignore"):
        wide = grid.astype(real.numpy)
        axes = [_axis_taps(m, wide[..., rank - 1 - a], x.shape[2 + a], call.attrs) for a in range(rank)]
        batch = np.arange(x.shape[0]).reshape(-1, *(1,) * rank)
        channels_last = np.moveaxis(x, 1, -1)
        total = np.zeros((*grid.shape[:-1], x.shape[1]), real.numpy)
        for at, weight, counts in _combined(m, axes):
            part = channels_last[(batch, *at)].astype(real.numpy)
            if counts is not None:
                part = np.where(counts[..., None], part, real.numpy.type(0))
            total = part if call.attrs.mode == "nearest" else total + np.asarray(weight)[..., None] * part
    return np.ascontiguousarray(np.moveaxis(total, -1, 1)).astype(x.dtype)


def _element(call: Call, index: Index, load: LoadFn) -> s.ScalarExpr:
    x, _ = call.types
    real = _real(x.dtype)
    m = _of_scalars(real)
    rank = x.rank - 2
    axes = []
    for a in range(rank):
        g = load_as(load, 1, [index[0], *index[2:], s.const(rank - 1 - a, i64)], real)
        axes.append(_axis_taps(m, g, x.shape[2 + a], call.attrs))
    total: s.ScalarExpr | None = None
    for at, weight, counts in _combined(m, axes):
        part = load_as(load, 0, [index[0], index[1], *at], real)
        if counts is not None:
            part = s.select(counts, part, s.const(0.0, real))
        if call.attrs.mode != "nearest":
            part = weight * part
        total = part if total is None else total + part
    assert total is not None
    return s.cast(total, x.dtype)


def _parts(b: Builder, x: Value, grid: Value, call: Call) -> Value:
    """The op by gathers and products, for the gradient."""
    real = _real(x.dtype)
    m = _of_nodes(b, real)
    rank = x.type.rank - 2
    grid_rank = rank + 2
    wide = grid if grid.dtype == real else b.cast(grid, dtype=real)
    axes = []
    for a in range(rank):
        starts = [0] * (grid_rank - 1) + [rank - 1 - a]
        one = b.slice(wide, starts=starts, sizes=[*grid.shape[:-1], 1], steps=[1] * grid_rank)
        axes.append(_axis_taps(m, b.reshape(one, shape=grid.shape[:-1]), x.shape[2 + a], call.attrs))
    channels_last = b.transpose(x, perm=[0, *range(2, rank + 2), 1])
    if x.dtype != real:
        channels_last = b.cast(channels_last, dtype=real)
    column = (*grid.shape[:-1], 1)
    total: Value | None = None
    for at, weight, counts in _combined(m, axes):
        positions = b.concat(*(b.reshape(p, shape=column) for p in at), axis=-1)
        part = b.gather_nd(channels_last, positions, batch_dims=1)
        if counts is not None:
            part = b.where(b.reshape(counts, shape=column), part, b.like(0, part))
        if call.attrs.mode != "nearest":
            part = b.mul(part, b.reshape(weight, shape=column))
        total = part if total is None else b.add(total, part)
    assert total is not None
    moved = b.transpose(total, perm=[0, rank + 1, *range(1, rank + 1)])
    result: Value = moved if x.dtype == real else b.cast(moved, dtype=x.dtype)
    return result


def _grad(b: Builder, node: Node, g: Value) -> Sequence[Value | None]:
    parts = Graph("grid_sample", parent=node.graph)
    x, grid = (parts.add_input(f"operand{i}", v.type) for i, v in enumerate(node.operands))
    parts.output(_parts(Builder(parts, node.location), x, grid, Call.of(node)))
    return region_gradient(b, parts, node.operands, [g])


def _cost(call: Call) -> Cost:
    taps = len(_TAPS[call.attrs.mode]) ** (call.types[0].rank - 2)
    return Cost(call.results[0].numel * (2 * taps), moved_bytes(call))


def _examples() -> list[tuple[list[np.ndarray], dict[str, Any]]]:
    rng = np.random.default_rng(11)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def grid(*shape: int, reach: float = 1.3) -> np.ndarray:
        return rng.uniform(-reach, reach, shape).astype(np.float32)

    return [
        ([f(2, 3, 4, 5), grid(2, 3, 2, 2)], {}),
        ([f(1, 2, 4, 5), grid(1, 6, 2, 2)], {"align_corners": True, "padding": "border"}),
        ([f(1, 2, 3, 2), grid(1, 3, 4, 2, reach=4.0)], {"padding": "reflection"}),
        ([f(1, 2, 4, 5), grid(1, 2, 3, 2)], {"mode": "cubic"}),
        ([f(1, 1, 4, 5), grid(1, 2, 3, 2, reach=3.0)], {"mode": "cubic", "padding": "reflection"}),
        ([f(1, 2, 4, 5), grid(1, 2, 5, 2)], {"mode": "nearest", "align_corners": True}),
        ([f(2, 1, 3, 4, 5), grid(2, 2, 3, 2, 3)], {"align_corners": True}),
        ([f(1, 2, 6), grid(1, 5, 1, reach=5.0)], {"normalized": False}),
        ([f(0, 2, 3, 3), grid(0, 2, 2, 2)], {}),
    ]


register(
    OpDef(
        name="grid_sample",
        doc="Samples of x[N, C, *spatial] at positions grid[N, *out, axes]; coordinates are listed last axis first.",
        operands=(Operand("x", FLOATS), Operand("grid", FLOATS)),
        attrs=(
            Attr("mode", "str", "linear", "interpolation between elements", MODES),
            Attr("padding", "str", "zeros", "what lies outside: zeros, the nearest element, a mirror image", PADDINGS),
            Attr("align_corners", "bool", False, "-1 and 1 are the centres of the corner elements, else their edges"),
            Attr("normalized", "bool", True, "coordinates run from -1 to 1 over the operand, else count elements"),
        ),
        infer=_type,
        reference=_reference,
        kind=Map(_element, role="gather"),
        grad=_grad,
        cost=_cost,
        examples=_examples,
        source="ONNX GridSample; Jaderberg et al., Spatial transformer networks, NeurIPS 2015",
    )
)
