"""Matrix products, convolutions, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dhc.ir import Value
from tests.support.random_graphs import Item, Maker
from tests.support.random_ops.reduction import precision, summed
from tests.support.random_ops.rule import rule
from tests.support.random_ops.view import like


def _product(m: Maker, x: Item, w: Item, n: int, value: Callable[[], Value], extra: float = 0.0) -> Item | None:
    """Enters a sum of n products."""
    bound = n * x.bound * w.bound + extra
    grid = None if x.grid is None or w.grid is None else x.grid * w.grid
    error = n * (x.error * w.bound + w.error * x.bound)
    rounding = (n + 1) * bound * 2.0 ** (1 - precision(x))
    return m.add(value(), *summed(m, x, bound, error, grid, rounding))


@rule("matmul")
def matmul(m: Maker) -> None:
    x = m.pick("fiuc", rank=(2, 4))
    if x is None:
        return
    batch = m.partner_shape(x.shape[:-2])[-2:]
    w = m.fresh(x.dtype.name, (*batch, x.shape[-1], m.choose(m.palette)), -2, 2, 0.25)
    _product(m, x, w, max(m.most(x.shape[-1]), 1), lambda: m.b.matmul(x.value, w.value))


def image_like(m: Maker, kinds: str, **more: Any) -> Item:
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
    x = image_like(m, "fi")
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
    x = image_like(m, "fiu" if op == "max_pool" else "f", exact=op == "max_pool_indices")
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
        m.add(value, x.bound, x.error + n * x.bound * 2.0 ** (1 - precision(x)))
    elif x.exact:
        # the root of a small sum of squares magnifies errors: exact operands only
        p = m.choose([1, 2])
        value = m.b.lp_pool(x.value, p=p, **window)
        m.add(value, n * x.bound, 2 * n * x.bound * 2.0 ** (1 - precision(x)))


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
    m.add(value, 3 * x.bound, 0.0 if mode == "nearest" else 16 * x.bound * 2.0 ** (1 - precision(x)), grid)
