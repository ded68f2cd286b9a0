"""What the recurrent ops share: directions, activations, shapes, and gradients through a `scan` of primitive ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType, f32, f64, i64
from dhc.ir.graph import Graph, Node, Value
from dhc.ir.inference import require_equal, require_rank
from dhc.ir.op import Attr, Call, Cost, Operand
from dhc.ir.ops.matmul import moved_bytes
from dhc.ir.symbols import Dim, Shape
from dhc.ir.types import TensorType

DTYPES = frozenset({f32, f64})
DIRECTIONS = ("forward", "reverse", "bidirectional")


class Activation(NamedTuple):
    """One activation of one direction: `code` is its position in ACTIVATIONS."""

    name: str
    code: int
    alpha: float
    beta: float


# Name -> default alpha, default beta. The position in this table is the code that compiled kernels switch on.
ACTIVATIONS: dict[str, tuple[float, float]] = {
    "Sigmoid": (0.0, 0.0),
    "Tanh": (0.0, 0.0),
    "Relu": (0.0, 0.0),
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
    "Softsign": (0.0, 0.0),
    "Softplus": (0.0, 0.0),
}

TAKES: tuple[Callable[[str], bool], Callable[[str], bool]] = (
    lambda name: name in ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"),
    lambda name: name in ("Affine", "ScaledTanh", "HardSigmoid"),
)
"""Which activations take an alpha and which a beta."""

ATTRS = (
    Attr("direction", "str", "forward", "order in which steps run", DIRECTIONS),
    Attr("activations", "strs", (), "names for each direction in turn; none: the usual ones"),
    Attr("alphas", "floats", (), "alpha of each activation, or of those that take one, in order; none: the usual ones"),
    Attr("betas", "floats", (), "beta of each activation, or of those that take one, in order; none: the usual ones"),
    Attr("clip", "float", 0.0, "bound of what activations of gates take; 0: no bound"),
)

LENGTHS = Operand("lengths", frozenset({i64}))


def directions(call: Call) -> int:
    """Number of directions, 1 or 2."""
    return 2 if call.attrs.direction == "bidirectional" else 1


def is_backward(call: Call, direction: int) -> bool:
    """True when a direction runs from the last step to the first."""
    return direction == 1 or call.attrs.direction == "reverse"


def activations(call: Call, usual: Sequence[str]) -> list[list[Activation]]:
    """The activations of each direction, defaults filled in.

    Raises:
        ShapeError: a name is unknown or a list has the wrong length.
    """
    a = call.attrs
    count = len(usual) * directions(call)
    names = list(a.activations) or list(usual) * directions(call)
    if len(names) != count:
        call.fail(f"needs {count} activations, got {len(names)}")
    known = {name.casefold(): name for name in ACTIVATIONS}
    for name in names:
        if name.casefold() not in known:
            call.fail(f"unknown activation {name!r}", hint=f"known: {', '.join(ACTIVATIONS)}")
    names = [known[name.casefold()] for name in names]
    alphas = _parameters(call, "alphas", names, 0)
    betas = _parameters(call, "betas", names, 1)
    codes = list(ACTIVATIONS)
    found = [Activation(name, codes.index(name), *both) for name, *both in zip(names, alphas, betas)]
    return [found[i : i + len(usual)] for i in range(0, count, len(usual))]


def _parameters(call: Call, what: str, names: Sequence[str], position: int) -> list[float]:
    """Alpha or beta of each activation: one is given for each, or (as in ONNX) only for those that take one."""
    given = list(call.attrs[what])
    takers = [i for i, name in enumerate(names) if TAKES[position](name)]
    if len(given) not in (0, len(names)) and len(given) > len(takers):
        call.fail(f"{what} needs {len(names)} numbers, or up to {len(takers)}, got {len(given)}")
    values = [ACTIVATIONS[name][position] for name in names]
    for place, value in zip(range(len(names)) if len(given) == len(names) else takers, given):
        values[place] = value
    return values


def activation_numbers(call: Call, usual: Sequence[str]) -> list[float]:
    """Code, alpha and beta of each activation of both directions, as the kernels take them."""
    sets = activations(call, usual)
    numbers: list[float] = []
    for each in (sets[0], sets[-1]):
        for activation in each:
            numbers += [activation.code, activation.alpha, activation.beta]
    return numbers


def check_shapes(call: Call, gates: int, biases: int, usual: Sequence[str]) -> tuple[Dim, Dim, Dim]:
    """Checks the operands x, w, r, b, h0 and lengths; returns steps, batch and hidden size.

    Raises:
        ShapeError: ranks or sizes do not fit.
    """
    activations(call, usual)
    names = [o.name for o in call.op.operands]
    x, _, r = call.types[:3]
    for name, rank in (("x", 3), ("w", 3), ("r", 3), ("b", 2), ("h0", 3), ("lengths", 1)):
        require_rank(call, names.index(name), rank)
    steps, batch, features = x.shape
    hidden = r.shape[2]
    count = directions(call)
    expected: dict[str, Shape] = {
        "w": (count, hidden * gates, features),
        "r": (count, hidden * gates, hidden),
        "b": (count, hidden * biases),
        "h0": (count, batch, hidden),
        "c0": (count, batch, hidden),
        "p": (count, hidden * 3),
        "lengths": (batch,),
    }
    for name, shape in expected.items():
        if name in names:
            index = names.index(name)
            require_rank(call, index, len(shape))
            for axis, (have, want) in enumerate(zip(call.types[index].shape, shape)):
                require_equal(call, have, want, f"axis {axis} of {name}")
    if call.attrs.clip < 0:
        call.fail(f"clip = {call.attrs.clip} is negative")
    return steps, batch, hidden


def result_types(call: Call, gates: int, biases: int, usual: Sequence[str], states: int) -> list[TensorType]:
    """y[T, D, B, H] and the last states [D, B, H]."""
    steps, batch, hidden = check_shapes(call, gates, biases, usual)
    dtype, count = call.types[0].dtype, directions(call)
    last = TensorType(dtype, (count, batch, hidden))
    return [TensorType(dtype, (steps, count, batch, hidden)), *[last] * states]


def work_items(call: Call) -> Dim:
    """Directions times batch: each runs through all steps on its own."""
    batch: Dim = call.types[0].shape[1]
    return batch * directions(call)


def recurrent_cost(call: Call) -> Cost:
    """Two operations for each weight, step and batch item."""
    steps, batch, _ = call.types[0].shape
    return Cost((call.types[1].numel + call.types[2].numel) * steps * batch * 2, moved_bytes(call))


def activated(v: Any, code: Any, alpha: Any, beta: Any) -> Any:
    """An activation of one number, by its position in ACTIVATIONS; part of the compiled kernels."""
    if code == 0:
        if v >= 0:
            v = 1.0 / (1.0 + math.exp(-v))
        else:
            e = math.exp(v)
            v = e / (1.0 + e)
    elif code == 1:
        v = math.tanh(v)
    elif code == 2:
        v = max(v, 0.0)
    elif code == 3:
        v = alpha * v + beta
    elif code == 4:
        if v < 0:
            v = alpha * v
    elif code == 5:
        if not v > alpha:
            v = 0.0
    elif code == 6:
        v = alpha * math.tanh(beta * v)
    elif code == 7:
        v = min(max(alpha * v + beta, 0.0), 1.0)
    elif code == 8:
        if v < 0:
            v = alpha * math.expm1(v)
    elif code == 9:
        v = v / (1.0 + abs(v))
    else:
        v = max(v, 0.0) + math.log1p(math.exp(-abs(v)))
    return v


# ---- reference -------------------------------------------------------------------------------------------------------


def apply(activation: Activation, x: np.ndarray) -> Any:
    """An activation on an array, in its dtype."""
    alpha, beta = x.dtype.type(activation.alpha), x.dtype.type(activation.beta)
    one = x.dtype.type(1)
    functions: dict[str, Callable[[], Any]] = {
        "Sigmoid": lambda: one / (one + np.exp(-x)),
        "Tanh": lambda: np.tanh(x),
        "Relu": lambda: np.maximum(x, 0),
        "Affine": lambda: alpha * x + beta,
        "LeakyRelu": lambda: np.where(x < 0, alpha * x, x),
        "ThresholdedRelu": lambda: np.where(x > alpha, x, x.dtype.type(0)),
        "ScaledTanh": lambda: alpha * np.tanh(beta * x),
        "HardSigmoid": lambda: np.clip(alpha * x + beta, 0, 1),
        "Elu": lambda: np.where(x < 0, alpha * np.expm1(x), x),
        "Softsign": lambda: x / (one + np.abs(x)),
        "Softplus": lambda: np.logaddexp(x, x.dtype.type(0)),
    }
    return functions[activation.name]()


def clipped(call: Call, x: np.ndarray) -> np.ndarray:
    """The argument of a gate's activation within the bound."""
    bound = x.dtype.type(call.attrs.clip)
    return np.clip(x, -bound, bound) if bound else x


Step = Callable[[int, np.ndarray, list[np.ndarray]], list[np.ndarray]]


def run_reference(
    call: Call, x: np.ndarray, starts: Sequence[np.ndarray], lengths: np.ndarray, step: Step
) -> tuple[np.ndarray, ...]:
    """Runs all directions: ``step(direction, x[t], states) -> new states``; the first state is the output.

    Items whose length is over keep their states and give zeros.
    """
    steps = x.shape[0]
    if ((lengths < 0) | (lengths > steps)).any():
        raise IndexError("a sequence length is out of range")
    y = np.zeros((steps, *starts[0].shape), x.dtype)
    last = [start.copy() for start in starts]
    for direction in range(directions(call)):
        states = [start[direction] for start in starts]
        times = range(steps)
        for t in reversed(times) if is_backward(call, direction) else times:
            active = (t < lengths)[:, None]
            new = step(direction, x[t], states)
            states = [np.where(active, n, o) for n, o in zip(new, states)]
            y[t, direction] = np.where(active, states[0], 0)
        for target, state in zip(last, states):
            target[direction] = state
    return (y, *last)


# ---- gradient: the same as a scan of primitive ops -------------------------------------------------------------------


def build_activation(b: Builder, activation: Activation, x: Value) -> Value:
    """An activation as primitive ops."""
    name, _, alpha, beta = activation
    plain = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softsign": "softsign", "Softplus": "softplus"}
    if name in plain:
        result: Value = b.call(plain[name], x)
        return result
    parametrised: dict[str, Callable[[], Value]] = {
        "Affine": lambda: b.add(b.mul(x, b.like(alpha, x)), b.like(beta, x)),
        "LeakyRelu": lambda: b.leaky_relu(x, alpha=alpha),
        "ThresholdedRelu": lambda: b.thresholded_relu(x, alpha=alpha),
        "ScaledTanh": lambda: b.mul(b.tanh(b.mul(x, b.like(beta, x))), b.like(alpha, x)),
        "HardSigmoid": lambda: b.hard_sigmoid(x, alpha=alpha, beta=beta),
        "Elu": lambda: b.elu(x, alpha=alpha),
    }
    return parametrised[name]()


def build_clip(b: Builder, call: Call, x: Value) -> Value:
    """The bound on what a gate's activation takes."""
    if not call.attrs.clip:
        return x
    bound = call.attrs.clip
    result: Value = b.maximum(b.minimum(x, b.like(bound, x)), b.like(-bound, x))
    return result


def part(b: Builder, x: Value, axis: int, start: Dim, size: Dim) -> Value:
    """Elements ``start .. start + size`` along one axis."""
    rank = x.type.rank
    starts = tuple(start if i == axis else 0 for i in range(rank))
    sizes = tuple(size if i == axis else d for i, d in enumerate(x.shape))
    result: Value = b.slice(x, starts=starts, sizes=sizes, steps=(1,) * rank)
    return result


def row(b: Builder, x: Value, direction: int) -> Value:
    """``x[direction]``."""
    result: Value = b.reshape(part(b, x, 0, direction, 1), shape=x.shape[1:])
    return result


BuildStep = Callable[[Builder, Value, list[Value], list[Value]], list[Value]]


def build_direction(
    b: Builder,
    call: Call,
    direction: int,
    projected: Value,
    starts: Sequence[Value],
    captures: Sequence[Value],
    lengths: Value,
    step: BuildStep,
) -> list[Value]:
    """One direction as a `scan`.

    Args:
        b: where to write.
        call: the recurrent call.
        direction: 0 or 1.
        projected: what each step takes, ``[T, B, features]``.
        starts: initial states ``[B, H]``.
        captures: further tensors every step takes.
        lengths: valid steps of each item, ``i64[B]``.
        step: ``(builder, element, states, captures) -> new states``; the first state is the output.

    Returns:
        y ``[T, B, H]``, then the last states ``[B, H]``.
    """
    steps, batch = projected.shape[:2]
    count = len(starts)
    body = Graph("step", parent=b.graph)
    states = [body.add_input(f"state{i}", v.type) for i, v in enumerate(starts)]
    element = body.add_input("element", TensorType(projected.dtype, projected.shape[1:]))
    time = body.add_input("time", TensorType(i64, ()))
    inner = [body.add_input(f"capture{i}", v.type) for i, v in enumerate(captures)]
    valid = body.add_input("lengths", lengths.type)
    inside = Builder(body, b.location)
    new = step(inside, element, states, inner)
    active = inside.reshape(inside.lt(time, valid), shape=(batch, 1))
    kept = [inside.where(active, n, o) for n, o in zip(new, states)]
    shown = inside.where(active, kept[0], inside.like(0, kept[0]))
    body.output(*kept, shown)
    times = b.iota(shape=(steps,), axis=0, dtype=i64)
    backward = int(is_backward(call, direction))
    results = b.call(
        "scan", *starts, projected, times, *captures, lengths,
        attrs={"carried": count, "scanned": 2, "in_axes": (0, 0), "out_axes": (0,),
               "in_reverse": (backward, backward), "out_reverse": (backward,)},
        regions=[body],
    )  # fmt: skip
    return [results[count], *results[:count]]


def stack_directions(b: Builder, per_direction: Sequence[Sequence[Value]]) -> list[Value]:
    """Joins the results of the directions: y to ``[T, D, B, H]``, states to ``[D, B, H]``."""
    joined: list[Value] = []
    for position, values in enumerate(zip(*per_direction)):
        axis = 1 if position == 0 else 0
        shape = values[0].shape
        lifted = [b.reshape(v, shape=(*shape[:axis], 1, *shape[axis:])) for v in values]
        joined.append(lifted[0] if len(lifted) == 1 else b.concat(*lifted, axis=axis))
    return joined


def project(b: Builder, x: Value, w: Value, bias: Value) -> Value:
    """``x w^T + bias`` for all steps at once: ``[T, B, features]``."""
    steps, batch, features = x.shape
    flat = b.reshape(x, shape=(steps * batch, features))
    product = b.add(b.matmul(flat, b.transpose(w, perm=[1, 0])), bias)
    result: Value = b.reshape(product, shape=(steps, batch, w.shape[0]))
    return result


Decomposition = Callable[[Builder, Sequence[Value], Call], list[Value]]


def gradient_through(decompose: Decomposition) -> Callable[..., Sequence[Value | None]]:
    """The gradient rule of an op that equals what `decompose` writes."""

    def rule(b: Builder, node: Node, *cotangents: Value) -> Sequence[Value | None]:
        from dhc.ir.autodiff import region_gradient

        region = Graph(f"{node.op.name}_steps", parent=b.graph)
        inputs = [region.add_input(o.name, v.type) for o, v in zip(node.op.operands, node.operands)]
        region.output(*decompose(Builder(region, node.location), inputs, Call.of(node)))
        result: Sequence[Value | None] = region_gradient(b, region, node.operands, cotangents)
        return result

    return rule


def operands(*names: str) -> tuple[Operand, ...]:
    """Operands of one floating dtype, then the lengths."""
    first, *rest = names
    return (Operand(first, DTYPES), *(Operand(n, DTYPES, same=first) for n in rest), LENGTHS)


def example_arrays(
    seed: int, gates: int, biases: int, sizes: tuple[int, int, int, int], count: int, dtype: DType = f32
) -> list[np.ndarray]:
    """x, w, r, b, h0 for (steps, batch, features, hidden) and `count` directions."""
    rng = np.random.default_rng(seed)
    steps, batch, features, hidden = sizes
    shapes = [
        (steps, batch, features),
        (count, gates * hidden, features),
        (count, gates * hidden, hidden),
        (count, biases * hidden),
        (count, batch, hidden),
    ]
    return [(rng.standard_normal(s) / math.sqrt(max(s[-1], 1))).astype(dtype.numpy) for s in shapes]
