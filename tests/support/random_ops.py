"""How the random graph generator uses each op: which operands make sense, how large and how exact the result is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc.ir import Builder, Graph, Value, dtype, registry
from dhc.ir.symbols import Dim, SymExpr
from tests.support.random_graphs import Item, Maker


@dataclass(frozen=True)
class Rule:
    """One way to add an op; `name` is the op's name, or ``op:variant``; families are chosen with equal chances."""

    name: str
    apply: Callable[[Maker], object]
    family: str
    data_dependent: bool = False

    @property
    def op(self) -> str:
        return self.name.partition(":")[0]


RULES: list[Rule] = []


def rule(*names: str, data_dependent: bool = False) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Registers ``function(maker)``, or ``function(maker, op)`` for several ops of one form."""

    def enter(function: Callable[..., object]) -> Callable[..., object]:
        for name in names:
            if len(names) == 1:
                RULES.append(Rule(name, function, name, data_dependent))
            else:
                family = function.__name__
                if family == "smooth":  # many ops: several families, so that each still has a fair chance
                    family += str(len(RULES) % 4)
                RULES.append(Rule(name, lambda m, n=name: function(m, n), family, data_dependent))
        return function

    return enter


def least_grid(*items: Item) -> float | None:
    grids = [i.grid for i in items]
    return None if any(g is None for g in grids) else min(grids)  # type: ignore[type-var]


# ---- elementwise ---------------------------------------------------------------------------------------------------


def positive(m: Maker, x: Item, least: float) -> Item | None:
    """|x| + least."""
    return m.add(m.b.add(m.b.abs(x.value), least), x.bound + least, x.error, least_grid(x, Item(x.value, 0, grid=0.5)))


def within(m: Maker, x: Item, limit: float) -> Item | None:
    """x scaled by a power of two so that it stays within the limit."""
    if x.bound <= limit:
        return x
    scale = 2.0 ** -math.ceil(math.log2(x.bound / limit))
    grid = None if x.grid is None else x.grid * scale
    return m.add(m.b.mul(x.value, scale), x.bound * scale, x.error * scale, grid)


def _grows(limit: float) -> Callable[[Maker, Item], Item | None]:
    return lambda m, x: within(m, x, limit)


SMOOTH: dict[
    str, tuple[Callable[[Maker, Item], Item | None] | None, Callable[[float], float], Callable[[float], float]]
]
SMOOTH = {  # op: (how to bring the operand into its domain, bound of the result, steepest slope), both of the bound
    "exp": (_grows(4), math.exp, math.exp),
    "expm1": (_grows(4), math.exp, math.exp),
    "sinh": (_grows(4), math.exp, math.exp),
    "cosh": (_grows(4), math.exp, math.exp),
    "log": (lambda m, x: positive(m, x, 0.5), lambda b: max(0.7, math.log(b + 1)), lambda b: 2.0),
    "log1p": (lambda m, x: positive(m, x, 0.5), lambda b: math.log(b + 2), lambda b: 1.0),
    "sqrt": (lambda m, x: positive(m, x, 0.5), lambda b: math.sqrt(b), lambda b: 1.0),
    "rsqrt": (lambda m, x: positive(m, x, 0.5), lambda b: 1.5, lambda b: 1.5),
    "acosh": (lambda m, x: positive(m, x, 1.5), lambda b: math.log(2 * b + 1), lambda b: 1.0),
    "asin": (_grows(0.5), lambda b: 0.6, lambda b: 1.2),
    "acos": (_grows(0.5), lambda b: 2.2, lambda b: 1.2),
    "atanh": (_grows(0.5), lambda b: 0.6, lambda b: 1.4),
    "tan": (_grows(1), lambda b: 1.6, lambda b: 3.5),
    "sin": (_grows(64), lambda b: 1.0, lambda b: 1.0),
    "cos": (_grows(64), lambda b: 1.0, lambda b: 1.0),
    "atan": (None, lambda b: 1.6, lambda b: 1.0),
    "asinh": (None, lambda b: math.log(2 * b + 2), lambda b: 1.0),
    "tanh": (None, lambda b: 1.0, lambda b: 1.0),
    "erf": (None, lambda b: 1.0, lambda b: 1.2),
    "sigmoid": (None, lambda b: 1.0, lambda b: 0.3),
    "gelu": (None, lambda b: b, lambda b: 1.2),
    "silu": (None, lambda b: b, lambda b: 1.2),
    "mish": (None, lambda b: b, lambda b: 1.2),
    "softplus": (None, lambda b: b + 0.7, lambda b: 1.0),
    "softsign": (None, lambda b: 1.0, lambda b: 1.0),
    "elu": (None, lambda b: max(b, 1.0), lambda b: 1.0),
    "celu": (None, lambda b: max(b, 1.0), lambda b: 1.0),
    "selu": (None, lambda b: 1.06 * max(b, 1.7), lambda b: 1.8),
    "hard_sigmoid": (None, lambda b: 1.0, lambda b: 0.2),
    "hard_swish": (None, lambda b: b, lambda b: 1.5),
    "leaky_relu": (None, lambda b: b, lambda b: 1.0),
}


@rule(*SMOOTH)
def smooth(m: Maker, op: str) -> None:
    prepare, bound, slope = SMOOTH[op]
    x = m.pick("f")
    if x is not None and prepare is not None and m.has("abs", "mul", "add"):
        x = prepare(m, x)
    if x is None:
        return
    attrs: dict[str, Any] = {}
    if op == "gelu" and m.flip():
        attrs = {"approximate": "tanh"}
    if op == "leaky_relu" and m.flip():
        attrs = {"alpha": 0.25}
    m.add(getattr(m.b, op)(x.value, **attrs), bound(x.bound), slope(x.bound) * x.error)


@rule("neg", "abs", "relu", "copy")
def exact_unary(m: Maker, op: str) -> None:
    x = m.pick("fic" if op in ("neg", "copy") else "fi", special=True)
    if x is not None:
        m.add(getattr(m.b, op)(x.value), x.bound, x.error, x.grid, x.special)


@rule("floor", "ceil", "round", "trunc", "sign", "thresholded_relu")
def jump(m: Maker, op: str) -> None:
    x = m.pick("fiu" if op == "sign" else "f", exact=True, special=op != "thresholded_relu")
    if x is not None:
        grid = x.grid if op == "thresholded_relu" else 1.0
        m.add(getattr(m.b, op)(x.value), x.bound + 1, 0.0, grid, x.special)


@rule("add", "sub", "mul", "minimum", "maximum")
def binary(m: Maker, op: str) -> None:
    x = m.pick("fiu" if op in ("minimum", "maximum") else "fiuc", special=True)
    if x is None:
        return
    y = m.partner(x, special=True)
    special = x.special or y.special
    if op == "mul":
        grid = None if x.grid is None or y.grid is None else x.grid * y.grid
        error = x.error * y.bound + y.error * x.bound + x.error * y.error
        m.add(m.b.mul(x.value, y.value), x.bound * y.bound, error, grid, special)
        return
    bound = max(x.bound, y.bound) if op in ("minimum", "maximum") else x.bound + y.bound
    m.add(getattr(m.b, op)(x.value, y.value), bound, x.error + y.error, least_grid(x, y), special)


@rule("div", "mod", "fmod")
def division(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=op != "div")
    if x is None or not m.has("maximum"):
        return
    y = m.partner(x, exact=True)
    if x.dtype.kind == "f":
        d = positive(m, y, 0.5)
    else:
        d = m.add(m.b.maximum(y.value, 1), max(y.bound, 1))
    if d is None:
        return
    if op == "div":
        bound = x.bound * (2 if x.dtype.kind == "f" else 1)
        m.add(m.b.div(x.value, d.value), bound, 2 * x.error + 4 * x.bound * d.error)
    elif d.exact:
        m.add(getattr(m.b, op)(x.value, d.value), d.bound, 0.0, least_grid(x, d))


@rule("pow")
def power(m: Maker) -> None:
    x = m.pick("fiu")
    if x is None:
        return
    if x.dtype.kind != "f":
        m.add(m.b.pow(x.value, m.integer(0, 3)), math.inf)
        return
    base = positive(m, x, 0.5)
    if base is None or base.bound > 16:
        return
    exponent = m.choose([2.0, 0.5, 1.5, -1.0, 3.0])
    largest = max(base.bound**exponent, 0.5**exponent)
    steepest = abs(exponent) * max(base.bound ** (exponent - 1), 0.5 ** (exponent - 1))
    m.add(m.b.pow(base.value, exponent), largest, steepest * base.error)


@rule("eq", "ne", "lt", "le", "gt", "ge")
def comparison(m: Maker, op: str) -> None:
    x = m.pick("fiub" if op in ("eq", "ne") else "fiu", exact=True, special=True)
    if x is None:
        return
    m.add(getattr(m.b, op)(x.value, m.partner(x, exact=True, special=True).value), 1)


@rule("logical_and", "logical_or", "logical_xor", "logical_not")
def logical(m: Maker, op: str) -> None:
    x = m.pick("b")
    if x is None:
        return
    rest = [] if op == "logical_not" else [m.partner(x).value]
    m.add(getattr(m.b, op)(x.value, *rest), 1)


@rule("bit_and", "bit_or", "bit_xor", "bit_not", "shift_left", "shift_right")
def bits(m: Maker, op: str) -> None:
    x = m.pick("iu")
    if x is None:
        return
    if op == "bit_not":
        m.add(m.b.bit_not(x.value), math.inf)
    elif op.startswith("shift"):
        by = m.fresh(x.dtype.name, m.partner_shape(x.shape), 0, x.dtype.bits - 1)
        m.add(getattr(m.b, op)(x.value, by.value), math.inf)
    else:
        m.add(getattr(m.b, op)(x.value, m.partner(x).value), math.inf)


@rule("is_nan", "is_inf")
def classify(m: Maker, op: str) -> None:
    x = m.pick("f", special=True)
    if x is not None:
        m.add(getattr(m.b, op)(x.value), 1)


@rule("where")
def where(m: Maker) -> None:
    x = m.pick("fiubc", special=True)
    if x is None:
        return
    y = m.partner(x, special=True)
    shape = x.shape if x.rank >= y.rank else y.shape
    condition = m.pick("b", where=lambda c: m.broadcasts(c.shape, x.shape) and m.broadcasts(c.shape, y.shape))
    if condition is None:
        condition = m.fresh("bool", m.partner_shape(shape))
        if not (m.broadcasts(condition.shape, x.shape) and m.broadcasts(condition.shape, y.shape)):
            return
    bound, error = max(x.bound, y.bound), max(x.error, y.error)
    m.add(m.b.where(condition.value, x.value, y.value), bound, error, least_grid(x, y), x.special or y.special)


@rule("clamp")
def clamp(m: Maker) -> None:
    x = m.pick("fiu")
    if x is not None:
        low = 0 if x.dtype.kind == "u" else -1
        m.add(m.b.clamp(x.value, m.b.constant(low, x.dtype), m.b.constant(2, x.dtype)), 2, x.error, x.grid)


@rule("cast")
def cast(m: Maker) -> None:
    target = m.choose(m.dtypes)
    kind = dtype(target)
    x = m.pick("fiub" + ("c" if kind.kind == "c" else ""), exact=kind.kind in "iub")
    if x is None:
        return
    if kind.kind in "iu" and x.dtype.kind == "f" and x.bound > kind.max:
        return  # saturation upwards has tests of its own
    m.add(m.b.cast(x.value, dtype=target), x.bound, x.error, x.grid if kind.kind in "fc" else 1.0)


@rule("bitcast")
def bitcast(m: Maker) -> None:
    x = m.pick("iu")
    if x is not None:
        other = ("u" if x.dtype.kind == "i" else "i") + x.dtype.name[1:]
        m.add(m.b.bitcast(x.value, dtype=other), math.inf)


@rule("real", "imag", "conj")
def complex_parts(m: Maker, op: str) -> None:
    x = m.pick("c")
    if x is not None:
        m.add(getattr(m.b, op)(x.value), x.bound, x.error, x.grid)


@rule("complex")
def make_complex(m: Maker) -> None:
    x = m.pick("f", where=lambda i: i.dtype.name in ("f32", "f64"))
    if x is not None:
        y = m.partner(x)
        m.add(m.b.complex(x.value, y.value), x.bound + y.bound, x.error + y.error, least_grid(x, y))


# ---- reductions ----------------------------------------------------------------------------------------------------


def _axes(m: Maker, x: Item) -> tuple[dict[str, Any], list[Dim]]:
    axes = m.subset(range(x.rank))
    named = [a - x.rank if m.integer(0, 4) == 0 else a for a in axes]
    reduced = [x.shape[a] for a in axes] if axes else list(x.shape)
    return {"axes": named, "keepdims": m.flip()}, reduced


@rule("reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min", "logsumexp")
def reduction(m: Maker, op: str) -> None:
    picky = op in ("reduce_max", "reduce_min")
    kinds = "f" if op in ("reduce_mean", "logsumexp") else "fiu"
    x = m.pick(kinds, special=picky)
    if x is None:
        return
    attrs, reduced = _axes(m, x)
    if op in ("reduce_mean", "reduce_max", "reduce_min", "logsumexp") and not m.not_empty(*reduced):
        return
    n = m.most(*reduced)
    if op == "reduce_prod":
        if n > 6:
            return
        bound = max(x.bound, 1.0) ** n
        grid = None if x.grid is None or x.grid > 1 else x.grid**n
        m.add(m.b.reduce_prod(x.value, **attrs), bound, n * x.error * max(x.bound, 1.0) ** max(n - 1, 0), grid)
    elif op == "reduce_sum":
        rounding = 0 if x.dtype.kind != "f" else n * n * x.bound * 2.0 ** (1 - _precision(x))
        m.add(m.b.reduce_sum(x.value, **attrs), *_summed(m, x, n * x.bound, n * x.error, x.grid, rounding))
    elif picky:
        m.add(getattr(m.b, op)(x.value, **attrs), x.bound, x.error, x.grid, x.special)
    else:
        bound = x.bound + (math.log(n + 1) if op == "logsumexp" else 0)
        m.add(getattr(m.b, op)(x.value, **attrs), bound, x.error + n * x.bound * 2.0 ** (1 - _precision(x)))


def _precision(x: Item) -> int:
    from tests.support.random_graphs import PRECISION

    return PRECISION.get(x.dtype.name, 53)


def _summed(
    m: Maker, x: Item, bound: float, error: float, grid: float | None, rounding: float
) -> tuple[float, float, float | None]:
    """Bound, error and grid of a sum: exact on the grid, else with rounding of every partial sum."""
    if error == 0 and grid is not None and (x.dtype.kind != "f" or bound / grid <= 2.0 ** _precision(x)):
        return bound, 0.0, grid
    return bound, error + rounding, None


@rule("reduce_any", "reduce_all")
def reduce_bool(m: Maker, op: str) -> None:
    x = m.pick("b")
    if x is not None:
        m.add(getattr(m.b, op)(x.value, **_axes(m, x)[0]), 1)


@rule("argmax", "argmin")
def position(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=True, rank=(1, 4))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    if m.not_empty(x.shape[axis]):
        value = getattr(m.b, op)(x.value, axis=axis, keepdims=m.flip(), last=m.flip())
        m.add(value, m.most(x.shape[axis]))


@rule("cumsum", "cumprod")
def cumulative(m: Maker, op: str) -> None:
    x = m.pick("fiu", rank=(1, 4), where=lambda i: i.dtype.name not in ("f16", "bf16"))
    if x is None:
        return
    axis = m.integer(-1, x.rank - 1)
    n = m.most(x.shape[axis])
    attrs = {"axis": axis, "exclusive": m.flip(), "reverse": m.flip()}
    if op == "cumprod":
        if n <= 6:
            error = n * x.error * max(x.bound, 1.0) ** max(n - 1, 0)
            grid = None if x.grid is None or x.grid > 1 else x.grid**n
            m.add(m.b.cumprod(x.value, **attrs), max(x.bound, 1.0) ** n, error, grid)
        return
    rounding = n * n * x.bound * 2.0 ** (1 - _precision(x))
    m.add(m.b.cumsum(x.value, **attrs), *_summed(m, x, n * x.bound, n * x.error, x.grid, rounding))


# ---- views ---------------------------------------------------------------------------------------------------------


def like(m: Maker, value: Value, x: Item) -> Item | None:
    """Enters a result with the elements of x."""
    return m.add(value, x.bound, x.error, x.grid, x.special)


def any_item(m: Maker, rank: tuple[int, int] = (0, 5), kinds: str = "fiubc", **more: Any) -> Item | None:
    return m.pick(kinds, special=True, rank=rank, **more)


@rule("reshape")
def reshape(m: Maker) -> None:
    x = any_item(m)
    if x is None:
        return
    shape = list(x.shape)
    form = m.integer(0, 3)
    if form == 0 and len(shape) >= 2:
        at = m.integer(0, len(shape) - 2)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif form == 1 and len(shape) < 5:
        shape.insert(m.integer(0, len(shape)), 1)
    elif form == 2 and 1 in shape:
        shape.remove(1)
    elif form == 3 and len(shape) < 5:
        splits = [i for i, d in enumerate(shape) if isinstance(d, int) and d in (4, 6)]
        if splits:
            at = m.choose(splits)
            shape[at : at + 1] = [shape[at] // 2, 2]
    like(m, m.b.reshape(x.value, shape=shape), x)


@rule("transpose")
def transpose(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is not None:
        perm = list(range(x.rank))
        for i in range(x.rank - 1, 0, -1):
            j = m.integer(0, i)
            perm[i], perm[j] = perm[j], perm[i]
        like(m, m.b.transpose(x.value, perm=perm), x)


@rule("broadcast_to")
def broadcast_to(m: Maker) -> None:
    x = any_item(m, (0, 3))
    if x is not None:
        shape = tuple(m.choose(m.palette) if d == 1 else d for d in x.shape)
        if m.flip():
            shape = (m.choose(m.palette), *shape)
        like(m, m.b.broadcast_to(x.value, shape=shape), x)


@rule("slice")
def slice_(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is None:
        return
    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    for d in x.shape:
        if isinstance(d, SymExpr):  # all of it, forwards or backwards
            backwards = m.flip() and m.not_empty(d)
            starts.append(d - 1 if backwards else 0)
            sizes.append(d)
            steps.append(-1 if backwards else 1)
            continue
        step = m.choose([1, 1, 2, -1, -2])
        size = m.integer(0, -(-d // abs(step)))
        reach = (size - 1) * abs(step)
        low = m.integer(0, d - 1 - reach) if size else 0
        starts.append(low if step > 0 else low + reach)
        sizes.append(size)
        steps.append(step)
    like(m, m.b.slice(x.value, starts=starts, sizes=sizes, steps=steps), x)


@rule("flip")
def flip(m: Maker) -> None:
    x = any_item(m, (1, 5))
    if x is not None:
        like(m, m.b.flip(x.value, axes=m.subset(range(x.rank), 1)), x)


@rule("pad")
def pad(m: Maker) -> None:
    x = any_item(m, (1, 4))
    if x is None:
        return
    mode = m.choose(["constant", "constant", "reflect", "edge", "wrap"])
    low, high = [], []
    for d in x.shape:
        n = d if isinstance(d, int) else 0
        most = {"constant": 2, "reflect": max(n - 1, 0), "edge": 2 if n else 0, "wrap": n}[mode]
        crop = -1 if mode == "constant" and n >= 3 else 0
        low.append(m.integer(crop, min(most, 2)))
        high.append(m.integer(crop, min(most, 2)))
    fill = m.b.constant(False if x.dtype.kind == "b" else 1, x.dtype)
    grid = least_grid(x, Item(x.value, 1, grid=1.0))
    m.add(m.b.pad(x.value, fill, low=low, high=high, mode=mode), max(x.bound, 1), x.error, grid, x.special)


@rule("concat")
def concat(m: Maker) -> None:
    x = any_item(m, (1, 4))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    parts = [x]
    for _ in range(m.integer(1, 2)):
        other = any_item(
            m, (x.rank, x.rank), dtype=x.dtype.name,
            where=lambda o: all(a == b for i, (a, b) in enumerate(zip(o.shape, x.shape)) if i != axis),
        )  # fmt: skip
        parts.append(x if other is None else other)
    value = m.b.concat(*(p.value for p in parts), axis=axis - x.rank if m.flip() else axis)
    bound, error = max(p.bound for p in parts), max(p.error for p in parts)
    m.add(value, bound, error, least_grid(*parts), any(p.special for p in parts))


@rule("split")
def split(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: any(isinstance(d, int) for d in i.shape))
    if x is None:
        return
    axis = m.choose([i for i, d in enumerate(x.shape) if isinstance(d, int)])
    first = m.integer(0, x.shape[axis])
    sizes = [first, x.shape[axis] - first] if m.flip() else [first, 0, x.shape[axis] - first]
    for value in m.b.split(x.value, axis=axis, sizes=sizes):
        like(m, value, x)


@rule("tile")
def tile(m: Maker) -> None:
    x = any_item(m, (1, 3))
    if x is not None:
        repeats = [m.choose([1, 2, m.choose(m.palette)]) for _ in x.shape]
        if m.most(*x.shape, *repeats) < 3000:
            like(m, m.b.tile(x.value, repeats=repeats), x)


@rule("depth_to_space", "space_to_depth")
def blocks(m: Maker, op: str) -> None:
    kind = m.choose([d for d in m.dtypes if d != "bool"])
    n: Dim = m.choose(m.palette)
    if op == "depth_to_space":
        x = m.fresh(kind, (n, 4, m.integer(1, 3), m.integer(1, 2)))
        like(m, m.b.depth_to_space(x.value, block=2, mode=m.choose(["DCR", "CRD"])), x)
    else:
        x = m.fresh(kind, (n, m.integer(1, 2), 4, 2))
        like(m, m.b.space_to_depth(x.value, block=2), x)


@rule("iota", "eye")
def generated(m: Maker, op: str) -> None:
    kind = m.choose([d for d in m.dtypes if dtype(d).kind in "fiu"] or ["f32"])
    if op == "eye":
        shape = tuple(m.choose(m.palette) for _ in range(2))
        m.add(m.b.eye(shape=shape, dtype=kind, k=m.integer(-1, 1)), 1, 0.0, 1.0)
        return
    shape = m.shape(1, 3)
    axis = m.integer(0, len(shape) - 1)
    m.add(m.b.iota(shape=shape, axis=axis, dtype=kind), m.most(shape[axis]), 0.0, 1.0)


@rule("triangle")
def triangle(m: Maker) -> None:
    x = any_item(m, (2, 4))
    if x is not None:
        k = m.fresh("i64", (), -2, 2)
        like(m, m.b.triangle(x.value, k.value, upper=m.flip()), x)


@rule("one_hot")
def one_hot(m: Maker) -> None:
    kind = m.choose([d for d in m.dtypes if dtype(d).kind in "fiu"] or ["f32"])
    indices = m.fresh(m.choose(["i64", "i32"]), m.shape(0, 2), -3, 5)
    on, off = m.b.constant(2, kind), m.b.constant(1, kind)
    m.add(m.b.one_hot(indices.value, on, off, depth=m.integer(1, 4), axis=m.choose([-1, 0])), 2, 0.0, 1.0)


@rule("random_uniform", "random_normal", "random_bits")
def random_numbers(m: Maker, op: str) -> None:
    attrs: dict[str, Any] = {"shape": m.shape(0, 3), "seed": m.integer(0, 99), "stream": m.integer(0, 2)}
    if op == "random_bits":
        m.add(m.b.random_bits(**attrs), math.inf)
        return
    kind = m.some_dtype("f")
    if kind in ("f32", "f64"):
        bound = 1.0 if op == "random_uniform" else 9.0
        m.add(getattr(m.b, op)(dtype=kind, **attrs), bound, 1e-6 if op == "random_normal" else 0.0)


# ---- gather, scatter, order ----------------------------------------------------------------------------------------


def _indices(m: Maker, shape: tuple[Dim, ...], size: int, *, unique: bool = False) -> Item:
    """Positions within an axis; negative ones count from the end."""
    kind = m.choose(["i64", "i32"])
    if not unique:
        return m.fresh(kind, shape, -size, size - 1)
    count = int(np.prod([int(d) for d in shape])) if shape else 1  # type: ignore[arg-type]
    order = np.random.default_rng(m.integer(0, 99)).permutation(size)[:count]
    return Item(m.b.constant(order.reshape([int(d) for d in shape]), kind), size)  # type: ignore[arg-type]


def _fixed_axes(x: Item) -> list[int]:
    return [i for i, d in enumerate(x.shape) if isinstance(d, int) and d > 0]


@rule("gather")
def gather(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: bool(_fixed_axes(i)))
    if x is not None:
        axis = m.choose(_fixed_axes(x))
        indices = _indices(m, m.shape(0, 2), int(x.shape[axis]))
        if m.most(*x.shape, *indices.shape) < 3000:
            like(m, m.b.gather(x.value, indices.value, axis=axis), x)


@rule("gather_elements")
def gather_elements(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: bool(_fixed_axes(i)))
    if x is not None:
        axis = m.choose(_fixed_axes(x))
        shape = (*x.shape[:axis], m.integer(1, 3), *x.shape[axis + 1 :])
        like(m, m.b.gather_elements(x.value, _indices(m, shape, int(x.shape[axis])).value, axis=axis), x)


@rule("gather_nd")
def gather_nd(m: Maker) -> None:
    x = any_item(m, (1, 4), where=lambda i: 0 in _fixed_axes(i))
    if x is not None:
        shape = (*m.shape(0, 2), 1)
        like(m, m.b.gather_nd(x.value, _indices(m, shape, int(x.shape[0])).value), x)


@rule("scatter_elements", "scatter_nd")
def scatter(m: Maker, op: str) -> None:
    x = m.pick("fiu", rank=(1, 3), where=lambda i: m.static(i) and len(_fixed_axes(i)) == i.rank)
    if x is None:
        return
    axis = m.integer(0, x.rank - 1) if op == "scatter_elements" else 0
    count = m.integer(1, int(x.shape[axis]))
    reduction = m.choose(["none", "none", "add", "max", "min"])
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    updates = m.fresh(x.dtype.name, shape)
    if op == "scatter_elements":
        # each line along the axis gets the same distinct positions, so the order of writing does not matter
        row = _indices(m, (count,), int(x.shape[axis]), unique=True)
        place = [1] * x.rank
        place[axis] = count
        indices = m.b.broadcast_to(m.b.reshape(row.value, shape=place), shape=shape)
        value = m.b.scatter_elements(x.value, indices, updates.value, axis=axis, reduction=reduction)
    else:
        row = _indices(m, (count, 1), int(x.shape[0]), unique=True)
        value = m.b.scatter_nd(x.value, row.value, updates.value, reduction=reduction)
    bound = x.bound + updates.bound
    m.add(value, bound, x.error, least_grid(x, updates))


@rule("dynamic_slice")
def dynamic_slice(m: Maker) -> None:
    x = any_item(m, (1, 3))
    if x is not None:
        sizes = [m.integer(0, d) if isinstance(d, int) else d for d in x.shape]
        starts = m.fresh("i64", (x.rank,), -1, 5)
        like(m, m.b.dynamic_slice(x.value, starts.value, sizes=sizes), x)


@rule("dynamic_update_slice")
def dynamic_update_slice(m: Maker) -> None:
    x = m.pick("fiu", rank=(1, 3))
    if x is not None:
        sizes = [m.integer(0, d) if isinstance(d, int) else d for d in x.shape]
        update = m.fresh(x.dtype.name, sizes)
        starts = m.fresh("i64", (x.rank,), -1, 5)
        value = m.b.dynamic_update_slice(x.value, update.value, starts.value)
        m.add(value, max(x.bound, update.bound), x.error, least_grid(x, update))


@rule("reverse_sequence")
def reverse_sequence(m: Maker) -> None:
    x = any_item(m, (2, 4), where=lambda i: isinstance(i.shape[1], int) and i.shape[1] > 0)
    if x is not None:
        lengths = m.fresh("i64", (x.shape[0],), 1, int(x.shape[1]))
        like(m, m.b.reverse_sequence(x.value, lengths.value, batch_axis=0, time_axis=1), x)


@rule("sort", "topk")
def order(m: Maker, op: str) -> None:
    x = m.pick("fiu", exact=True, rank=(1, 3))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    d = x.shape[axis]
    if op == "sort":
        values, indices = m.b.sort(x.value, axis=axis, descending=m.flip())
    else:
        k = m.integer(0, d) if isinstance(d, int) else d
        values, indices = m.b.topk(x.value, k=k, axis=axis, largest=m.flip())
    like(m, values, x)
    m.add(indices, m.most(d))


@rule("nonzero", data_dependent=True)
def nonzero(m: Maker) -> None:
    x = m.pick("fiub", exact=True)
    if x is not None:
        m.end(m.b.nonzero(x.value))


@rule("unique", data_dependent=True)
def unique(m: Maker) -> None:
    x = m.pick("iu", exact=True, rank=(1, 1))
    if x is not None:
        for value in m.b.unique(x.value, sorted=m.flip()):
            m.end(value)


@rule("compress", data_dependent=True)
def compress(m: Maker) -> None:
    x = any_item(m, (1, 3), kinds="fiu")
    if x is not None and not x.special:
        axis = m.integer(0, x.rank - 1)
        m.end(m.b.compress(x.value, m.fresh("bool", (x.shape[axis],)).value, axis=axis), x.error)


# ---- contractions and windows --------------------------------------------------------------------------------------


def _product(m: Maker, x: Item, w: Item, n: int, value: Callable[[], Value], extra: float = 0.0) -> Item | None:
    """Enters a sum of n products."""
    bound = n * x.bound * w.bound + extra
    grid = None if x.grid is None or w.grid is None else x.grid * w.grid
    error = n * (x.error * w.bound + w.error * x.bound)
    rounding = (n + 1) * bound * 2.0 ** (1 - _precision(x))
    return m.add(value(), *_summed(m, x, bound, error, grid, rounding))


@rule("matmul")
def matmul(m: Maker) -> None:
    x = m.pick("fiuc", rank=(2, 4))
    if x is None:
        return
    batch = m.partner_shape(x.shape[:-2])[-2:]
    w = m.fresh(x.dtype.name, (*batch, x.shape[-1], m.choose(m.palette)), -2, 2, 0.25)
    _product(m, x, w, max(m.most(x.shape[-1]), 1), lambda: m.b.matmul(x.value, w.value))


def _spatial(m: Maker, kinds: str, **more: Any) -> Item:
    """An image-like value: batch, channels, then one to three axes."""
    x = m.pick(kinds, rank=(3, 5), where=lambda i: m.static(i) and all(d > 0 for d in i.shape[1:]), **more)
    if x is not None and m.flip():
        return x
    kind = m.some_dtype(kinds) or "f32"
    sizes = [m.integer(1, 6) for _ in range(m.integer(1, 3))]
    item = m.fresh(kind, (m.choose(m.palette), m.choose([1, 2, 4]), *sizes), -2, 2, 0.25, constant=False)
    m.pool.append(item)
    return item


def _window(m: Maker, x: Item, dilated: bool = True) -> dict[str, Any] | None:
    spatial = [int(d) for d in x.shape[2:]]  # type: ignore[arg-type]
    n = len(spatial)
    kernel = [m.integer(1, 3) for _ in range(n)]
    dilations = [m.integer(1, 2) if dilated and m.integer(0, 3) == 0 else 1 for _ in range(n)]
    low = [m.integer(0, k - 1) for k in kernel]
    high = [m.integer(0, k - 1) for k in kernel]
    for s, k, d, a, b in zip(spatial, kernel, dilations, low, high):
        if s + a + b < (k - 1) * d + 1:
            return None
    return {
        "kernel": kernel, "strides": [m.integer(1, 2) for _ in range(n)], "dilations": dilations,
        "pads_low": low, "pads_high": high,
    }  # fmt: skip


@rule("conv", "conv_transpose")
def convolution(m: Maker, op: str) -> None:
    x = _spatial(m, "fi")
    window = _window(m, x)
    if window is None:
        return
    kernel = window.pop("kernel")
    channels = int(x.shape[1])  # type: ignore[arg-type]
    groups = m.choose([g for g in (1, 2, channels) if channels % g == 0])
    n = math.prod(kernel) * channels // groups
    if op == "conv":
        result = groups * m.integer(1, 2)
        w = m.fresh(x.dtype.name, (result, channels // groups, *kernel), -2, 2, 0.25)
    else:
        result = groups * m.integer(1, 2)
        w = m.fresh(x.dtype.name, (channels, result // groups, *kernel), -2, 2, 0.25)
        output = [
            (s - 1) * t + (k - 1) * d + 1 - a - b
            for s, k, t, d, a, b in zip(
                x.shape[2:], kernel, window["strides"], window["dilations"], window["pads_low"], window["pads_high"]
            )
        ]
        if min(output) < 1:
            return
        window["output_padding"] = [m.integer(0, s - 1) for s in window["strides"]]
    extra = [m.fresh(x.dtype.name, (result,), -2, 2, 0.25)] if m.flip() else []
    operands = [x.value, w.value, *(e.value for e in extra)]
    _product(m, x, w, n, lambda: getattr(m.b, op)(*operands, groups=groups, **window), 2.0 if extra else 0.0)


@rule("max_pool", "max_pool_indices", "avg_pool", "lp_pool")
def pool(m: Maker, op: str) -> None:
    x = _spatial(m, "fiu" if op == "max_pool" else "f", exact=op == "max_pool_indices")
    if op == "max_pool_indices" and not x.exact:
        return
    window = _window(m, x)
    if window is None:
        return
    n = math.prod(window["kernel"])
    if op == "max_pool":
        like(m, m.b.max_pool(x.value, **window), x)
    elif op == "max_pool_indices":
        values, indices = m.b.max_pool_indices(x.value, **window)
        like(m, values, x)
        m.add(indices, math.inf)
    elif op == "avg_pool":
        value = m.b.avg_pool(x.value, count_include_pad=m.flip(), **window)
        m.add(value, x.bound, x.error + n * x.bound * 2.0 ** (1 - _precision(x)))
    elif x.exact:
        # the root of a small sum of squares magnifies errors: exact operands only
        p = m.choose([1, 2])
        value = m.b.lp_pool(x.value, p=p, **window)
        m.add(value, n * x.bound, 2 * n * x.bound * 2.0 ** (1 - _precision(x)))


@rule("resize")
def resize(m: Maker) -> None:
    kind = m.choose(["f32", "f64"])
    x = m.fresh(kind, (m.integer(1, 2), 1, m.integer(2, 4), m.integer(2, 4)), -2, 2, 0.25)
    factors = [m.choose([0.5, 1.0, 2.0]) for _ in range(2)]
    shape = [*x.shape[:2], *(max(int(int(d) * f), 1) for d, f in zip(x.shape[2:], factors))]
    mode = m.choose(["nearest", "linear", "cubic"])
    coordinate = m.choose(["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"])
    scales = [b / a for a, b in zip(x.shape, shape)]  # type: ignore[operator]
    if mode == "nearest" and any(s not in (0.5, 1.0, 2.0) for s in scales):
        return
    if mode == "nearest" and coordinate == "align_corners":
        return  # positions such as 1/3 * 3 may round to either side
    value = m.b.resize(x.value, shape=shape, scales=scales, mode=mode, coordinate=coordinate)
    grid = x.grid if mode == "nearest" else None
    m.add(value, 3 * x.bound, 0.0 if mode == "nearest" else 16 * x.bound * 2.0 ** (1 - _precision(x)), grid)


# ---- normalisation -------------------------------------------------------------------------------------------------


@rule("softmax", "log_softmax")
def softmax(m: Maker, op: str) -> None:
    x = m.pick("f", rank=(1, 4))
    if x is None:
        return
    axis = m.integer(-1, x.rank - 1)
    n = m.most(x.shape[axis])
    if m.not_empty(x.shape[axis]):
        epsilon = 2.0 ** (1 - _precision(x))
        if op == "softmax":
            m.add(m.b.softmax(x.value, axis=axis), 1.0, 2 * x.error + (n + 2 * x.bound) * epsilon)
        else:
            bound = 2 * x.bound + math.log(n + 1)
            m.add(m.b.log_softmax(x.value, axis=axis), bound, 2 * x.error + (n + 4 * x.bound) * epsilon)


@rule("layer_norm", "rms_norm", "instance_norm", "group_norm", "batch_norm", "lrn")
def normalisation(m: Maker, op: str) -> None:
    kind = m.some_dtype("f")
    if kind not in ("f32", "f64"):
        return
    epsilon = 2.0 ** (1 - dtype_bits(kind))
    if op in ("layer_norm", "rms_norm"):
        x = m.pick("f", dtype=kind, rank=(1, 4))
        if x is None or not m.not_empty(x.shape[-1]):
            return
        shape: tuple[Dim, ...] = x.shape[-1:]
        axis = -1
    else:
        x = _spatial(m, "f", dtype=kind)
        if x.dtype.name != kind or not m.not_empty(*x.shape[1:]):
            return
        shape = x.shape[1:2]
    scale = m.fresh(kind, shape, 0.5, 2, 0.25)
    bias = m.fresh(kind, shape, -2, 2, 0.25)
    # the smallest standard deviation is sqrt(0.25): the errors grow at most by a small factor times the range
    bound = 4.0 * (x.bound + 2)
    error = 16 * (1 + x.bound) ** 2 * (x.error + 64 * epsilon * (1 + x.bound))
    if op == "layer_norm":
        extra = [bias.value] if m.flip() else []
        value = m.b.layer_norm(x.value, scale.value, *extra, axis=axis, epsilon=0.25)
    elif op == "rms_norm":
        value = m.b.rms_norm(x.value, scale.value, axis=axis, epsilon=0.25)
    elif op == "instance_norm":
        value = m.b.instance_norm(x.value, scale.value, bias.value, epsilon=0.25)
    elif op == "group_norm":
        channels = int(x.shape[1])  # type: ignore[arg-type]
        groups = m.choose([g for g in (1, 2) if channels % g == 0])
        value = m.b.group_norm(x.value, scale.value, bias.value, groups=groups, epsilon=0.25)
    elif op == "batch_norm":
        mean = m.fresh(kind, shape, -2, 2, 0.25)
        variance = m.fresh(kind, shape, 0, 4, 0.25)
        value = m.b.batch_norm(x.value, scale.value, bias.value, mean.value, variance.value, epsilon=0.25)
    else:
        value = m.b.lrn(x.value, size=m.choose([1, 3]), alpha=0.5, beta=0.75, bias=1.0)
    m.add(value, bound, error)


def dtype_bits(kind: str) -> int:
    from tests.support.random_graphs import PRECISION

    return PRECISION[kind]


@rule("attention")
def attention(m: Maker) -> None:
    kind = m.choose(["f32", "f64"])
    b, h, s, t, d = m.choose(m.palette), m.integer(1, 2), m.integer(1, 4), m.integer(1, 4), m.integer(1, 4)
    q = m.fresh(kind, (b, h, s, d), -2, 2, 0.25)
    k = m.fresh(kind, (b, h, t, d), -2, 2, 0.25)
    v = m.fresh(kind, (b, h, t, d), -2, 2, 0.25)
    value = m.b.attention(q.value, k.value, v.value, scale=0.5, causal=m.flip() and s == t)
    m.add(value, 2.0, 64 * 2.0 ** (1 - dtype_bits(kind)))


@rule("quantize", "dequantize")
def quantization(m: Maker, op: str) -> None:
    kind = m.choose(["i8", "u8"])
    zero = m.b.constant(m.integer(0, 3), kind)
    scale = m.b.constant(m.choose([0.25, 0.5, 1.0]), "f32")
    if op == "quantize":
        x = m.pick("f", exact=True, dtype="f32")
        if x is not None:
            m.add(m.b.quantize(x.value, scale, zero), 255)
        return
    q = m.pick("iu", dtype=kind)
    if q is not None:
        m.add(m.b.dequantize(q.value, scale, zero), q.bound + 3, 0.0, 0.25)


@rule("lstm", "gru", "rnn")
def recurrent(m: Maker, op: str) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[op]
    kind = m.choose(["f32", "f64"])
    direction = m.choose(["forward", "reverse", "bidirectional"])
    d = 2 if direction == "bidirectional" else 1
    t, n, i, h = m.integer(1, 4), m.choose(m.palette), m.integer(1, 3), m.integer(1, 3)
    shapes: list[tuple[Dim, ...]] = [(t, n, i), (d, gates * h, i), (d, gates * h, h), (d, 2 * gates * h), (d, n, h)]
    if op == "lstm":
        shapes.append((d, n, h))
        shapes.append((d, 3 * h))
    operands = [m.fresh(kind, shape, -1, 1, 0.25).value for shape in shapes]
    operands.append(m.fresh("i64", (n,), 1, t).value)
    attrs: dict[str, Any] = {"direction": direction}
    record = registry.get(op)
    functions = {"lstm": ["sigmoid", "tanh", "tanh"], "gru": ["sigmoid", "tanh"], "rnn": ["tanh"]}[op]
    if (spec := record.attr("activations")) is not None and not isinstance(spec.default, tuple):
        attrs["activations"] = functions * d
    if op == "gru" and m.flip():
        attrs["linear_before_reset"] = True
    results = getattr(m.b, op)(*operands, **attrs)
    for result in results:
        m.add(result, 2.0 if op != "lstm" else 8.0, 200 * 2.0 ** (1 - dtype_bits(kind)))


# ---- structure -----------------------------------------------------------------------------------------------------


@rule("dims")
def dims(m: Maker) -> None:
    values = m.shape(1, 3)
    m.add(m.b.dims(values=values), max(m.most(d) for d in values))


@rule("fused")
def fused(m: Maker) -> None:
    x = m.pick("fiu", rank=(0, 4))
    if x is None:
        return
    y = m.partner(x)
    body = Graph("group", parent=m.graph)
    p, q = body.add_input("p", x.value.type), body.add_input("q", y.value.type)
    b = Builder(body)
    total = b.add(p, q)
    body.output(b.neg(total) if x.dtype.kind != "u" else total, total)
    node = m.b.call("fused", x.value, y.value, regions=[body])
    for value in node:
        m.add(value, x.bound + y.bound, x.error + y.error, least_grid(x, y))


def _region(m: Maker, types: list[Any]) -> tuple[Graph, Builder, list[Value]]:
    body = Graph("body", parent=m.graph)
    return body, Builder(body), [body.add_input(f"v{i}", t) for i, t in enumerate(types)]


@rule("if")
def branch(m: Maker) -> None:
    x = m.pick("fi", rank=(0, 4))
    if x is None:
        return
    y = m.fresh(x.dtype.name, x.shape)
    regions = []
    for op in ("add", "sub"):
        body, b, (p, q) = _region(m, [x.value.type, y.value.type])
        body.output(getattr(b, op)(p, q), p)
        regions.append(body)
    condition = m.fresh("bool", ())
    first, second = m.b.if_(condition.value, x.value, y.value, regions=regions)
    m.add(first, x.bound + y.bound, x.error, least_grid(x, y))
    m.add(second, x.bound, x.error, x.grid)


@rule("loop", data_dependent=True)
def loop(m: Maker) -> None:
    x = m.pick("fi", rank=(0, 3))
    if x is None:
        return
    step = m.fresh(x.dtype.name, ())
    stop = m.flip()
    i64, boolean = m.b.constant(0).type, m.b.constant(True).type
    body, b, (iteration, condition, p, q) = _region(m, [i64, boolean, x.value.type, step.value.type])
    again = b.lt(iteration, b.constant(1)) if stop else condition
    body.output(again, b.add(p, q), p)
    trip = m.fresh("i64", (), 0, 3)
    symbols = [m.graph.fresh_symbol()]
    last, stacked = m.b.loop(trip.value, True, x.value, step.value, carried=1, symbols=symbols, regions=[body])
    grid = least_grid(x, step)
    item = m.add(last, x.bound + 3 * step.bound, x.error, grid)
    m.end(stacked, item.error if item is not None else math.inf)


@rule("scan")
def scan(m: Maker) -> None:
    x = m.pick("fi", rank=(1, 3))
    if x is None:
        return
    axis = m.integer(0, x.rank - 1)
    start = m.fresh(x.dtype.name, (*x.shape[:axis], *x.shape[axis + 1 :]))
    body, b, (p, q) = _region(m, [start.value.type, start.value.type])
    total = b.add(p, q)
    body.output(total, p)
    attrs = {"in_axes": [axis], "out_axes": [axis], "in_reverse": [m.integer(0, 1)], "out_reverse": [m.integer(0, 1)]}
    last, stacked = m.b.scan(start.value, x.value, carried=1, scanned=1, regions=[body], **attrs)
    n = m.most(x.shape[axis])
    rounding = n * n * (x.bound + start.bound) * 2.0 ** (1 - _precision(x))
    found = _summed(m, x, n * x.bound + start.bound, n * x.error, least_grid(x, start), rounding)
    m.add(last, *found)
    m.add(stacked, *found)
