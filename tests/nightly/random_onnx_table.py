"""The operators of random ONNX models: how to make a node of each that fits what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from tests.nightly.random_onnx import Growing, node


class Entry(NamedTuple):
    """A way to make nodes.

    Attributes:
        make: raises LookupError when nothing fits.
        since: first opset that has the operator.
        batched: valid with a symbolic first axis (it reads that axis neither as a number nor mixes along it).
    """

    make: Callable[[Growing], Any]
    since: int = 13
    batched: bool = True


OPERATORS: dict[str, Entry] = {}
DISCONTINUOUS = {
    "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual",
    "Cast", "Round", "Sign", "ThresholdedRelu", "TopK", "Mod", "Shrink", "Div", "Reciprocal", "Log", "Tan", "Acos",
    "Atanh", "Asin", "Acosh", "Not", "NonZero", "QuantizeLinear", "MeanVarianceNormalization", "ReduceLogSum",
    "InstanceNormalization", "LayerNormalization", "LpNormalization", "RMSNormalization", "GroupNormalization",
}  # fmt: skip


def entry(name: str, since: int = 13, batched: bool = True) -> Callable[[Any], Any]:
    def add(make: Callable[[Growing], Any]) -> Callable[[Growing], Any]:
        OPERATORS[name] = Entry(make, since, batched)
        return make

    return add


def _unary(op: str, kinds: str, since: int, **ranges: tuple[float, float]) -> None:
    def make(g: Growing) -> Any:
        attributes = {k: round(g.rng.uniform(*r), 3) for k, r in ranges.items() if g.rng.random() < 0.7}
        return node(op, [g.pick(kinds)], **attributes)

    OPERATORS[op] = Entry(make, since)


for _op in ("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor",
            "HardSwish", "Identity", "Log", "Reciprocal", "Relu", "Round", "Sigmoid", "Sin", "Sinh", "Softplus",
            "Softsign", "Sqrt", "Tan", "Tanh", "Mish", "Gelu", "IsNaN", "IsInf"):  # fmt: skip
    _unary(_op, "f", {"HardSwish": 14, "Mish": 18, "Gelu": 20}.get(_op, 13))
for _op in ("Abs", "Neg", "Sign"):
    _unary(_op, "fi", 13)
_unary("Not", "b", 13)
_unary("BitwiseNot", "i", 18)
_unary("Elu", "f", 13, alpha=(0.2, 2))
_unary("Celu", "f", 13, alpha=(0.2, 2))
_unary("Selu", "f", 13, alpha=(0.5, 2), gamma=(0.5, 2))
_unary("LeakyRelu", "f", 13, alpha=(-0.5, 0.9))
_unary("HardSigmoid", "f", 13, alpha=(0.1, 0.9), beta=(0.1, 0.9))
_unary("ThresholdedRelu", "f", 13, alpha=(0.1, 1))
_unary("Shrink", "f", 13, bias=(0, 0.5), lambd=(0.1, 0.9))


def _partner(g: Growing, name: str) -> str:
    """A second operand that broadcasts with the first: another value of its type or a constant."""
    a = g.values[name]
    if g.rng.random() < 0.6:
        try:
            return g.pick(a.dtype.kind, test=lambda b: b.dtype == a.dtype and _fits(g, a.shape, b.shape))
        except LookupError:
            pass
    shape = [1 if g.rng.random() < 0.4 else d for d in a.shape[g.rng.randrange(a.ndim + 1) :]]
    if name in g.batched and len(shape) == a.ndim:
        shape[0] = 1
    if a.dtype.kind == "f":
        return g.normal(shape, a)
    drawn = g.numbers.integers(0, 2, shape) if a.dtype.kind == "b" else g.numbers.integers(1, 6, shape)
    return g.constant(drawn.astype(a.dtype))


def _fits(g: Growing, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    if g.symbolic and len(a) != len(b):
        return False
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b)))


def _binary(op: str, kinds: str, since: int = 13, **attributes: Any) -> None:
    def make(g: Growing) -> Any:
        a = g.pick(kinds)
        b = _partner(g, a)
        if op in ("Mod", "Div") and g.values[a].dtype.kind == "i":
            # Only divisors that are not zero, and no signs: rounding of negative quotients is undefined in ONNX.
            divisor = {**g.values, **dict(g.pending)}[b]
            if divisor.min() < 1 or g.values[a].min() < 0:
                raise LookupError("division by zero")
            return node(op, [a, b], **attributes)
        return node(op, [a, b] if g.rng.random() < 0.7 else [b, a], **attributes)

    OPERATORS[op] = Entry(make, since)


for _op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"):
    _binary(_op, "fi")
for _op in ("And", "Or", "Xor"):
    _binary(_op, "b")
for _op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    _binary(_op, "i", 18)
_binary("PRelu", "f")
_binary("Mod", "i")


@entry("Pow")
def power(g: Growing) -> Any:
    return node("Pow", [g.pick("f"), g.constant(np.float32(g.rng.choice((1, 2, 3))))])


@entry("Sum")
def variadic(g: Growing) -> Any:
    a = g.pick("f")
    return node(g.rng.choice(("Sum", "Mean", "Max", "Min")), [a, _partner(g, a), a][: g.rng.randint(1, 3)])


@entry("Where")
def where(g: Growing) -> Any:
    condition = g.pick("b")
    shape = g.values[condition].shape
    a = g.pick("fi", test=lambda v: _fits(g, shape, v.shape))
    return node("Where", [condition, a, _partner(g, a)])


@entry("Clip")
def clip(g: Growing) -> Any:
    a = g.pick("f")
    low, high = (g.constant(np.asarray(v, g.values[a].dtype)) for v in (-0.7, 0.9))
    return node("Clip", g.rng.choice(([a, low, high], [a, low], [a, "", high])))


@entry("Cast")
def cast(g: Growing) -> Any:
    to = g.rng.choice(("float32", "float64", "int64", "int32", "bool"))
    return node("Cast", [g.pick("fib")], to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


@entry("CastLike", since=15)
def cast_like(g: Growing) -> Any:
    return node("CastLike", [g.pick("ib"), g.pick("f")])


def _reduce(op: str, kinds: str = "f") -> None:
    def make(g: Growing) -> Any:
        a = g.pick(kinds, 1)
        rank = g.values[a].ndim
        axes = sorted({g.axis(g.values[a], a) % rank for _ in range(g.rng.randint(1, 2))})
        if g.rng.random() < 0.3:
            axes = [x - rank for x in axes]
        keep = {"keepdims": g.rng.randint(0, 1)} if g.rng.random() < 0.8 else {}
        if not g.symbolic and g.rng.random() < 0.2:
            return node(op, [a], **keep)
        if op == "ReduceSum" or g.opset >= 18:
            return node(op, [a, g.ints(*axes)], **keep)
        return node(op, [a], axes=axes, **keep)

    OPERATORS[op] = Entry(make)


for _op in ("ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "ReduceLogSum"):
    _reduce(_op)
for _op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
    _reduce(_op, "fi")


@entry("ArgMax")
def arg(g: Growing) -> Any:
    a = g.pick("f", 1)
    return node(g.rng.choice(("ArgMax", "ArgMin")), [a], axis=g.axis(g.values[a], a), keepdims=g.rng.randint(0, 1))


@entry("Softmax")
def softmax(g: Growing) -> Any:
    a = g.pick("f", 1)
    return node(g.rng.choice(("Softmax", "LogSoftmax", "Hardmax")), [a], axis=g.axis(g.values[a], a))


@entry("CumSum")
def cumsum(g: Growing) -> Any:
    a = g.pick("f", 1)
    axis = g.constant(np.asarray(g.axis(g.values[a], a), np.int64))
    return node("CumSum", [a, axis], exclusive=g.rng.randint(0, 1), reverse=g.rng.randint(0, 1))


@entry("LpNormalization")
def lp_norm(g: Growing) -> Any:
    a = g.pick("f", 1)
    return node("LpNormalization", [a], axis=g.axis(g.values[a], a), p=2)


@entry("LayerNormalization", since=17)
def layer_norm(g: Growing) -> Any:
    a = g.pick("f", 2)
    v = g.values[a]
    axis = g.axis(v, a)
    op = "RMSNormalization" if g.opset >= 23 and g.rng.random() < 0.5 else "LayerNormalization"
    tail = v.shape[axis % v.ndim :]
    return node(op, [a, g.normal(tail, v), *([g.normal(tail, v)] if op[0] == "L" else [])], axis=axis)


@entry("InstanceNormalization")
def instance_norm(g: Growing) -> Any:
    a = g.pick("f", 3)
    v = g.values[a]
    return node("InstanceNormalization", [a, g.normal([v.shape[1]], v), g.normal([v.shape[1]], v)], epsilon=1e-3)


@entry("BatchNormalization", since=15)
def batch_norm(g: Growing) -> Any:
    a = g.pick("f", 2)
    v = g.values[a]
    c = v.shape[1]
    variance = g.constant((g.numbers.random(c) + 0.5).astype(v.dtype))
    return node("BatchNormalization", [a, g.normal([c], v), g.normal([c], v), g.normal([c], v), variance])


@entry("LRN")
def lrn(g: Growing) -> Any:
    # The reference evaluator, which judges float64, mistakes the batch for the channels.
    a = g.pick("f", 4, 4, lambda v: v.dtype == np.float32)
    return node("LRN", [a], size=g.rng.choice((1, 3)), alpha=0.1)


@entry("MatMul")
def matmul(g: Growing) -> Any:
    a = g.pick("f", 2)
    v = g.values[a]
    if g.rng.random() < 0.4:
        return node("MatMul", [a, g.pick("f", 2, test=lambda b: b.ndim == v.ndim and b.shape[-2] == v.shape[-1])])
    return node("MatMul", [a, g.normal([v.shape[-1], g.rng.randint(1, 4)], v)])


@entry("Gemm")
def gemm(g: Growing) -> Any:
    a = g.pick("f", 2, 2)
    v = g.values[a]
    across = int(not g.symbolic and g.rng.random() < 0.4)
    k, n, flip = v.shape[0 if across else 1], g.rng.randint(1, 4), g.rng.randint(0, 1)
    operands = [a, g.normal([n, k] if flip else [k, n], v), g.normal(g.rng.choice(([n], [1, n], [1])), v)]
    return node("Gemm", operands[: g.rng.randint(2, 3)], alpha=0.5, beta=1.5, transA=across, transB=flip)


@entry("Conv")
def conv(g: Growing) -> Any:
    a = g.pick("f", 3)
    v = g.values[a]
    rank, channels = v.ndim - 2, v.shape[1]
    groups = channels if g.rng.random() < 0.3 else 1
    cout = groups * g.rng.randint(1, 3)
    kernel = [g.rng.randint(1, min(3, d)) for d in v.shape[2:]]
    attributes: dict[str, Any] = {"group": groups, "strides": [g.rng.randint(1, 2) for _ in range(rank)]}
    if g.rng.random() < 0.3:
        attributes["auto_pad"] = g.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
    else:
        attributes["pads"] = [g.rng.randint(0, 1) for _ in range(2 * rank)]
    operands = [a, g.normal([cout, channels // groups, *kernel], v)]
    return node("Conv", operands + ([g.normal([cout], v)] if g.rng.random() < 0.5 else []), **attributes)


@entry("ConvTranspose")
def conv_transpose(g: Growing) -> Any:
    a = g.pick("f", 4, 4)
    v = g.values[a]
    strides = [g.rng.randint(1, 2) for _ in range(2)]
    weights = g.normal([v.shape[1], g.rng.randint(1, 3), 2, 3], v)
    return node("ConvTranspose", [a, weights], strides=strides, pads=[0, 1, 0, 1])


@entry("MaxPool")
def pool(g: Growing) -> Any:
    a = g.pick("f", 3, test=lambda v: min(v.shape[2:]) > 1)
    rank = g.values[a].ndim - 2
    op = g.rng.choice(("MaxPool", "AveragePool"))
    attributes: dict[str, Any] = {"kernel_shape": [2] * rank, "strides": [g.rng.randint(1, 2) for _ in range(rank)]}
    if g.rng.random() < 0.5:
        attributes["pads"] = [g.rng.randint(0, 1) for _ in range(2 * rank)]
    if op == "AveragePool" and g.rng.random() < 0.5:
        attributes["count_include_pad"] = 1
    return node(op, [a], **attributes)


@entry("GlobalAveragePool")
def global_pool(g: Growing) -> Any:
    return node(g.rng.choice(("GlobalAveragePool", "GlobalMaxPool")), [g.pick("f", 3)])


@entry("Transpose")
def transpose(g: Growing) -> Any:
    a = g.pick("fib", 1)
    first = [0] if a in g.batched else []
    rest = list(range(len(first), g.values[a].ndim))
    g.rng.shuffle(rest)
    return node("Transpose", [a], perm=first + rest)


@entry("Reshape")
def reshape(g: Growing) -> Any:
    a = g.pick("fib", 1)
    v = g.values[a]
    if a in g.batched:
        return node("Reshape", [a, g.ints(*g.rng.choice(([0, -1], [-1, int(np.prod(v.shape[1:]))], [0, 1, -1])))])
    return node("Reshape", [a, g.ints(*g.rng.choice(([-1], [1, -1], [v.shape[0], -1], [-1, v.shape[-1]])))])


@entry("Flatten")
def flatten(g: Growing) -> Any:
    a = g.pick("f", 1)
    return node("Flatten", [a], axis=1 if g.symbolic else g.rng.randint(0, g.values[a].ndim))


@entry("Unsqueeze")
def unsqueeze(g: Growing) -> Any:
    a = g.pick("fib", 1, 4)
    return node("Unsqueeze", [a, g.ints(g.rng.randint(1, g.values[a].ndim))])


@entry("Squeeze")
def squeeze(g: Growing) -> Any:
    a = g.pick("fib", 2, test=lambda v: 1 in v.shape[1:])
    return node("Squeeze", [a, g.ints(g.values[a].shape.index(1, 1))])


@entry("Expand", batched=False)
def expand(g: Growing) -> Any:
    a = g.pick("fib")
    return node("Expand", [a, g.ints(2, *[1 if g.rng.random() < 0.5 else d for d in g.values[a].shape])])


@entry("Tile")
def tile(g: Growing) -> Any:
    a = g.pick("fib", 1)
    repeats = [g.rng.randint(1, 2) for _ in g.values[a].shape]
    return node("Tile", [a, g.ints(*([1, *repeats[1:]] if a in g.batched else repeats))])


@entry("Slice")
def slice_(g: Growing) -> Any:
    a = g.pick("fib", 1)
    axis = g.axis(g.values[a], a)
    start, end, step = g.rng.choice(((0, 2, 1), (1, 2**31 - 1, 1), (-1, -(2**31), -1), (-2, 100, 1), (0, 100, 2)))
    return node("Slice", [a, g.ints(start), g.ints(end), g.ints(axis), g.ints(step)])


@entry("Pad")
def pad(g: Growing) -> Any:
    a = g.pick("f", 1)
    v = g.values[a]
    mode = g.rng.choice(("constant", "reflect", "edge"))
    widths = [g.rng.randint(0, 2 if mode == "constant" else 1) for _ in range(2 * v.ndim)]
    for axis, size in enumerate(v.shape):
        if (a in g.batched and axis == 0) or (mode == "reflect" and size < 2):
            widths[axis] = widths[axis + v.ndim] = 0
    value = [g.constant(np.asarray(0.5, v.dtype))] if mode == "constant" and g.rng.random() < 0.5 else []
    return node("Pad", [a, g.ints(*widths), *value], mode=mode)


@entry("Concat")
def concat(g: Growing) -> Any:
    a = g.pick("fi", 1)
    v = g.values[a]
    axis = g.axis(v, a)
    at = axis % v.ndim
    b = g.pick(v.dtype.kind, v.ndim, v.ndim, lambda w: w.dtype == v.dtype and w.shape[:at] + w.shape[at + 1 :]
               == v.shape[:at] + v.shape[at + 1 :])  # fmt: skip
    return node("Concat", [a, b], axis=axis)


@entry("Split")
def split(g: Growing) -> Any:
    a = g.pick("f", 2)
    v = g.values[a]
    axis = g.axis(v, a)
    size = v.shape[axis]
    if size < 2:
        raise LookupError
    return node("Split", [a, g.ints(1, size - 1)], 2, axis=axis)


@entry("Gather")
def gather(g: Growing) -> Any:
    a = g.pick("fi", 1)
    axis = g.axis(g.values[a], a)
    size = g.values[a].shape[axis]
    shape = g.rng.choice(((), (2,), (2, 2)))
    return node("Gather", [a, g.constant(g.numbers.integers(-size, size, shape))], axis=axis)


@entry("GatherElements", batched=False)
def gather_elements(g: Growing) -> Any:
    a = g.pick("fi", 1)
    v = g.values[a]
    axis = g.axis(v)
    if g.rng.random() < 0.5:
        return node("GatherElements", [a, g.constant(g.numbers.integers(0, v.shape[axis], v.shape))], axis=axis)
    shape = [d if i == axis % v.ndim else 1 for i, d in enumerate(v.shape)]
    index = np.arange(v.shape[axis])[::-1].reshape(shape).copy()
    return node("ScatterElements", [a, g.constant(index), g.constant(np.ones(shape, v.dtype))], axis=axis)


@entry("GatherND", batched=False)
def gather_nd(g: Growing) -> Any:
    a = g.pick("fi", 2)
    v = g.values[a]
    rows = [[g.rng.randrange(d) for d in v.shape[:2]] for _ in range(3)]
    return node("GatherND", [a, g.constant(np.array(rows, np.int64))])


@entry("TopK")
def top_k(g: Growing) -> Any:
    a = g.pick("f", 1)
    axis = g.axis(g.values[a], a)
    k = g.rng.randint(1, g.values[a].shape[axis])
    return node("TopK", [a, g.ints(k)], 2, axis=axis, largest=g.rng.randint(0, 1))


@entry("Trilu", since=14)
def trilu(g: Growing) -> Any:
    return node("Trilu", [g.pick("f", 3)], upper=g.rng.randint(0, 1))


@entry("OneHot")
def one_hot(g: Growing) -> Any:
    values = g.constant(np.array([-0.5, 2.0], np.float32))
    return node("OneHot", [g.pick("i", 1), g.constant(np.asarray(5, np.int64)), values])


@entry("DepthToSpace")
def depth_to_space(g: Growing) -> Any:
    a = g.pick("f", 4, 4, lambda v: v.shape[1] == 4 or (v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0))
    if g.values[a].shape[1] == 4:
        return node("DepthToSpace", [a], blocksize=2, mode=g.rng.choice(("DCR", "CRD")))
    return node("SpaceToDepth", [a], blocksize=2)


@entry("Resize")
def resize(g: Growing) -> Any:
    a = g.pick("f", 4, 4)
    mode = g.rng.choice(("nearest", "linear", "cubic"))
    where_ = g.rng.choice(("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"))
    attributes = {"mode": mode, "coordinate_transformation_mode": where_}
    if mode == "nearest":
        attributes |= {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return node("Resize", [a, "", g.constant(np.array([1, 1, 2, g.rng.choice((2, 3))], np.float32))], **attributes)


@entry("Einsum")
def einsum(g: Growing) -> Any:
    a = g.pick("f", 3, 3)
    v = g.values[a]
    return node("Einsum", [a, g.normal([v.shape[2], 2], v)], equation=g.rng.choice(("bij,jk->bik", "bij,jk->bk")))


@entry("Shape", batched=False)
def shape_of(g: Growing) -> Any:
    return node(g.rng.choice(("Shape", "Size")), [g.pick("fib", 1)])


@entry("ConstantOfShape", batched=False)
def filled(g: Growing) -> Any:
    shape = g.ints(*[g.rng.randint(1, 3) for _ in range(g.rng.randint(1, 3))])
    return node("ConstantOfShape", [shape], value=helper.make_tensor("value", 1, [1], [0.25]))
