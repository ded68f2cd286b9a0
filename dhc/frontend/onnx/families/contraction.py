"""Matrix products and convolutions."""

from __future__ import annotations

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.families.windows import window_attributes
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir import symbols
from dhc.ir.dtypes import DType, i32
from dhc.ir.graph import Value
from dhc.ir.symbols import Dim


@onnx_op("MatMul")
def matmul(n: NodeContext) -> Value:
    """NumPy's matmul: vectors are rows on the left, columns on the right."""
    return multiply(n, n.value(0), n.value(1))


def multiply(n: NodeContext, a: Value, b: Value, out: DType | None = None) -> Value:
    """Matrix product of any ranks from 1 up."""
    if a.type.rank == 0 or b.type.rank == 0:
        n.invalid("operands need at least one axis")
    left_vector, right_vector = a.type.rank == 1, b.type.rank == 1
    if left_vector:
        a = n.b.reshape(a, shape=(1, *a.shape))
    if right_vector:
        b = n.b.reshape(b, shape=(*b.shape, 1))
    product: Value = n.b.matmul(a, b) if out is None else n.b.matmul(a, b, out=out)
    shape = list(product.shape)
    if right_vector:
        del shape[-1]
    if left_vector:
        del shape[-1 if right_vector else -2]
    return n.b.reshape(product, shape=tuple(shape)) if left_vector or right_vector else product


@onnx_op("Gemm")
def gemm(n: NodeContext) -> Value:
    """Alpha * A' * B' + beta * C."""
    a, b = n.value(0), n.value(1)
    if n.attr("transA", 0):
        a = n.b.transpose(a, perm=[1, 0])
    if n.attr("transB", 0):
        b = n.b.transpose(b, perm=[1, 0])
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    product: Value = n.b.matmul(a, b)
    if alpha != 1.0:
        product = n.b.mul(product, n.b.like(alpha, product))
    c = n.optional(2)
    if c is None or beta == 0.0:
        return product
    if beta != 1.0:
        c = n.b.mul(c, n.b.like(beta, c))
    return n.b.add(product, c)


def convolution_attributes(n: NodeContext, x: Value, w: Value) -> dict[str, object]:
    """Attributes of the op `conv`."""
    spatial = w.shape[2:]
    if x.type.rank != w.type.rank or x.type.rank < 3:
        n.invalid(f"operand {x.type} and weights {w.type} do not fit a convolution")
    if any(not isinstance(k, int) for k in spatial):
        n.unsupported("the kernel size must be known when the model is compiled")
    declared = n.attr("kernel_shape")
    if declared is not None and tuple(declared) != tuple(spatial):
        n.invalid(f"kernel_shape {declared} is not the weights' {list(spatial)}")
    a = window_attributes(n, tuple(spatial), x.shape[2:])
    return {
        "strides": a.strides,
        "dilations": a.dilations,
        "pads_low": a.low,
        "pads_high": a.high,
        "groups": n.attr("group", 1),
    }


@onnx_op("Conv")
def convolution(n: NodeContext) -> Value:
    """Convolution in 1 to 3 dimensions."""
    x, w = n.value(0), n.value(1)
    attrs = convolution_attributes(n, x, w)
    bias = n.optional(2)
    return n.b.call("conv", x, w, *([] if bias is None else [bias]), attrs=attrs)


@onnx_op("ConvTranspose")
def transposed_convolution(n: NodeContext) -> Value:
    """The gradient of a convolution as an op."""
    x, w = n.value(0), n.value(1)
    rank = x.type.rank - 2
    if x.type.rank != w.type.rank or rank < 1 or any(not isinstance(k, int) for k in w.shape[2:]):
        n.invalid(f"operand {x.type} and weights {w.type} do not fit a transposed convolution")
    strides = tuple(n.attr("strides") or (1,) * rank)
    dilations = tuple(n.attr("dilations") or (1,) * rank)
    output_padding = tuple(n.attr("output_padding") or (0,) * rank)
    pads = tuple(n.attr("pads") or (0,) * (2 * rank))
    low: list[Dim] = list(pads[:rank])
    high: list[Dim] = list(pads[rank:])
    mode, shape = n.attr("auto_pad", "NOTSET"), n.attr("output_shape")
    if shape is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(shape[-rank:]) if shape is not None else [s * t for s, t in zip(x.shape[2:], strides)]
        for axis in range(rank):
            extent = (int(w.shape[2 + axis]) - 1) * dilations[axis] + 1
            full = strides[axis] * (x.shape[2 + axis] - 1) + output_padding[axis] + extent
            total = full - wanted[axis]
            if shape is None:
                if isinstance(total, int) and total < 0:  # the result is to be larger than without padding
                    output_padding = (*output_padding[:axis], output_padding[axis] - total, *output_padding[axis + 1 :])
                total = symbols.maximum(total, 0)
            half = symbols.floordiv(total, 2)
            low[axis], high[axis] = (half, total - half) if mode == "SAME_UPPER" else (total - half, half)
    elif mode == "VALID":
        low, high = [0] * rank, [0] * rank
    attrs = {
        "strides": strides,
        "dilations": dilations,
        "pads_low": tuple(low),
        "pads_high": tuple(high),
        "output_padding": output_padding,
        "groups": n.attr("group", 1),
    }
    bias = n.optional(2)
    return n.b.call("conv_transpose", x, w, *([] if bias is None else [bias]), attrs=attrs)


def without_zero_point(n: NodeContext, x: Value, zero: Value | None) -> Value:
    """An integer tensor minus its zero point, as i32 (exact)."""
    wide: Value = n.b.cast(x, dtype=i32)
    if zero is None:
        return wide
    return n.b.sub(wide, n.b.cast(zero, dtype=i32))


@onnx_op("MatMulInteger")
def matmul_integer(n: NodeContext) -> Value:
    """Integer product with i32 sums; zero points per tensor, per row of A, per column of B."""
    a, b = n.value(0), n.value(1)
    a_zero, b_zero = n.optional(2), n.optional(3)
    if a_zero is not None and a_zero.type.rank == 1 and a_zero.shape[0] != 1:
        a_zero = n.b.reshape(a_zero, shape=(*a_zero.shape, 1))
    return multiply(n, without_zero_point(n, a, a_zero), without_zero_point(n, b, b_zero))


@onnx_op("ConvInteger")
def convolution_integer(n: NodeContext) -> Value:
    """Integer convolution with i32 sums; padding stands for the zero point."""
    x, w = n.value(0), n.value(1)
    attrs = convolution_attributes(n, x, w)
    w_zero = n.optional(3)
    if w_zero is not None and w_zero.type.rank == 1 and w_zero.shape[0] != 1:
        w_zero = n.b.reshape(w_zero, shape=(*w_zero.shape, *(1,) * (w.type.rank - 1)))
    return n.b.call("conv", without_zero_point(n, x, n.optional(2)), without_zero_point(n, w, w_zero), attrs=attrs)
