"""Pooling."""

from __future__ import annotations

from typing import Any

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.families.windows import ceil_extra, window_attributes
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim


def _window(n: NodeContext) -> tuple[Value, dict[str, Any], tuple[Dim, ...]]:
    x = n.value(0)
    kernel = tuple(n.require_attr("kernel_shape"))
    if len(kernel) != x.type.rank - 2:
        n.invalid(f"kernel_shape {list(kernel)} does not fit a tensor of rank {x.type.rank}")
    w = window_attributes(n, kernel, x.shape[2:])
    extra = ceil_extra(n, w, x.shape[2:])
    attrs = {
        "kernel": w.kernel,
        "strides": w.strides,
        "dilations": w.dilations,
        "pads_low": w.low,
        "pads_high": tuple(h + e for h, e in zip(w.high, extra)),
    }
    return x, attrs, extra


@onnx_op("MaxPool")
def max_pool(n: NodeContext) -> Any:
    """Largest element of each window, and where it was."""
    x, attrs, _ = _window(n)
    if not n.wants(1):
        return n.b.call("max_pool", x, attrs=attrs)
    y, indices = n.b.call("max_pool_indices", x, attrs=attrs)
    return [y, _column_major(n, indices, x.shape) if n.attr("storage_order", 0) else indices]


def _column_major(n: NodeContext, indices: Value, shape: tuple[Dim, ...]) -> Value:
    """Flat row-major positions as column-major ones within each channel's image (``storage_order`` = 1)."""
    b = n.b
    spatial = shape[2:]
    image = symbols.product(spatial)

    offset = b.mul(b.div(indices, n.number(image)), n.number(image))
    rest = b.sub(indices, offset)
    position = offset
    for axis in range(len(spatial) - 1, -1, -1):
        coordinate = b.mod(rest, n.number(spatial[axis]))
        rest = b.div(rest, n.number(spatial[axis]))
        position = b.add(position, b.mul(coordinate, n.number(symbols.product(spatial[:axis]))))
    return position


@onnx_op("MaxUnpool")
def max_unpool(n: NodeContext) -> Value:
    """Puts each element where its maximum was, zeros elsewhere."""
    b, x = n.b, n.value(0)
    kernel = n.require_attr("kernel_shape")
    rank = len(kernel)
    strides, pads = n.attr("strides") or [1] * rank, n.attr("pads") or [0] * (2 * rank)
    usual = tuple(
        (size - 1) * stride - pads[axis] - pads[axis + rank] + k
        for axis, (size, stride, k) in enumerate(zip(x.shape[2:], strides, kernel))
    )
    shape = n.dims(2) if n.has(2) else (*x.shape[:2], *usual)
    # Positions count within the usual shape; a larger one holds it in its first corner.
    natural = (*x.shape[:2], *usual)
    zeros = b.full((symbols.product(natural),), 0, x.dtype)
    flat = [b.reshape(v, shape=(x.type.numel,)) for v in (n.value(1), x)]
    made = b.reshape(b.scatter_elements(zeros, *flat, axis=0), shape=natural)
    if shape == natural:
        return made
    extra = tuple(a - c for a, c in zip(shape, natural))
    return b.pad(made, b.like(0, x), low=(0,) * len(shape), high=extra)


@onnx_op("AveragePool")
def average_pool(n: NodeContext) -> Value:
    """Mean of each window."""
    x, attrs, extra = _window(n)
    attrs["count_include_pad"] = bool(n.attr("count_include_pad", 0))
    if any(not isinstance(e, int) for e in extra):
        if attrs["count_include_pad"]:
            n.unsupported("ceil_mode with count_include_pad needs known sizes", "fix the shapes of the inputs")
        extra = (0,) * len(extra)
    attrs["extra_high"] = extra
    return n.b.call("avg_pool", x, attrs=attrs)


@onnx_op("LpPool")
def lp_pool(n: NodeContext) -> Value:
    """p-norm of each window."""
    x, attrs, _ = _window(n)
    return n.b.call("lp_pool", x, attrs={**attrs, "p": n.attr("p", 2)})


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(n: NodeContext) -> Value:
    """One number per channel."""
    x = n.value(0)
    op = "reduce_mean" if n.proto.op_type == "GlobalAveragePool" else "reduce_max"
    axes = list(range(2, x.type.rank))
    return n.b.call(op, x, attrs={"axes": axes, "keepdims": True}) if axes else x


@onnx_op("GlobalLpPool")
def global_lp_pool(n: NodeContext) -> Value:
    """p-norm of each channel."""
    x = n.value(0)
    p = n.attr("p", 2)
    powered = n.b.pow(n.b.abs(x), n.b.like(p, x))
    total = n.b.reduce_sum(powered, axes=list(range(2, x.type.rank)), keepdims=True)
    return n.b.pow(total, n.b.like(1.0 / p, x))
