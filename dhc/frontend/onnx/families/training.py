"""Training (domain ai.onnx.preview.training): gradients, and optimizers, one step for any number of tensors."""

from __future__ import annotations

from collections.abc import Iterator

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.autodiff import carries_gradient, region_gradient
from dhc.ir.copying import copy_node
from dhc.ir.graph import Graph, Node, Value

_DOMAIN = "ai.onnx.preview.training"


def _groups(n: NodeContext, each: int) -> Iterator[list[Value]]:
    """The operands of every optimized tensor: tensor, gradient and states."""
    rest = n.values()[2:]
    if not rest or len(rest) % each:
        n.invalid(f"{len(rest)} tensors do not make groups of {each}")
    count = len(rest) // each
    for i in range(count):
        yield [rest[i + part * count] for part in range(each)]


def _scalar(n: NodeContext, index: int) -> Value:
    value = n.value(index)
    result: Value = value if value.type.rank == 0 else n.b.reshape(value, shape=())
    return result


def _as(n: NodeContext, value: Value, like: Value) -> Value:
    result: Value = value if value.dtype == like.dtype else n.b.cast(value, dtype=like.dtype)
    return result


def _regularized(n: NodeContext, x: Value, g: Value) -> Value:
    """The gradient of the loss plus that of the squared norm's share of it."""
    weight = n.attr("norm_coefficient", 0.0)
    return n.b.add(n.b.mul(x, n.b.like(weight, x)), g) if weight else g


def _joined(columns: list[tuple[Value, ...]]) -> list[Value]:
    """Results come kind by kind, not tensor by tensor."""
    return [value for kind in zip(*columns) for value in kind]


@onnx_op("Adagrad", domain=_DOMAIN)
def adagrad(n: NodeContext) -> list[Value]:
    """Steps shrink with the sum of squared gradients."""
    b, made = n.b, []
    rate, count = _scalar(n, 0), _scalar(n, 1)
    for x, g, squares in _groups(n, 3):
        decay = b.add(b.mul(_as(n, count, x), b.like(n.attr("decay_factor", 0.0), x)), b.like(1, x))
        gradient = _regularized(n, x, g)
        total = b.add(squares, b.mul(gradient, gradient))
        scale = b.add(b.sqrt(total), b.like(n.attr("epsilon", 1e-6), x))
        step = b.div(b.mul(b.div(_as(n, rate, x), decay), gradient), scale)
        made.append((b.sub(x, step), total))
    return _joined(made)


@onnx_op("Adam", domain=_DOMAIN)
def adam(n: NodeContext) -> list[Value]:
    """Running means of the gradient and of its square."""
    b, made = n.b, []
    rate, count = _scalar(n, 0), _scalar(n, 1)
    alpha, beta = n.attr("alpha", 0.9), n.attr("beta", 0.999)
    started = b.gt(count, b.like(0, count))
    for x, g, mean, square in _groups(n, 4):
        gradient = _regularized(n, x, g)
        first = b.add(b.mul(mean, b.like(alpha, x)), b.mul(gradient, b.like(1 - alpha, x)))
        second = b.add(b.mul(square, b.like(beta, x)), b.mul(b.mul(gradient, gradient), b.like(1 - beta, x)))
        power, one = _as(n, count, x), b.like(1, x)
        unbiased = b.div(b.sqrt(b.sub(one, b.pow(b.like(beta, x), power))), b.sub(one, b.pow(b.like(alpha, x), power)))
        size = _as(n, rate, x)
        size = b.where(started, b.mul(size, unbiased), size)
        scale = b.add(b.sqrt(second), b.like(n.attr("epsilon", 1e-6), x))
        moved = b.sub(x, b.div(b.mul(size, first), scale))
        after = n.attr("norm_coefficient_post", 0.0)
        made.append((b.mul(moved, b.like(1 - after, x)) if after else moved, first, second))
    return _joined(made)


@onnx_op("Momentum", domain=_DOMAIN)
def momentum(n: NodeContext) -> list[Value]:
    """Steps along a decaying sum of gradients, or Nesterov's look ahead."""
    b, made = n.b, []
    rate, count = _scalar(n, 0), _scalar(n, 1)
    alpha, beta, mode = n.require_attr("alpha"), n.require_attr("beta"), n.require_attr("mode")
    if mode not in ("standard", "nesterov"):
        n.invalid(f"mode {mode!r} is neither standard nor nesterov")
    started = b.gt(count, b.like(0, count))
    for x, g, velocity in _groups(n, 3):
        gradient = _regularized(n, x, g)
        weight = b.where(started, b.like(beta, x), b.like(1, x))
        new = b.add(b.mul(velocity, b.like(alpha, x)), b.mul(gradient, weight))
        direction = b.add(gradient, b.mul(new, b.like(alpha, x))) if mode == "nesterov" else new
        made.append((b.sub(x, b.mul(_as(n, rate, x), direction)), new))
    return _joined(made)


@onnx_op("Gradient", domain=_DOMAIN)
def gradient(n: NodeContext) -> list[Value]:
    """Gradients of one value by others, where these have the values of the operands."""
    names = [*n.require_attr("xs"), *n.attr("zs", [])]
    if len(names) != len(n):
        n.invalid(f"xs and zs name {len(names)} values, {len(n)} are given")
    places = [_named(n, name) for name in names]
    y, given = _named(n, n.require_attr("y")), n.values()
    wanted = len(n.require_attr("xs"))
    for value in (y, *places[:wanted]):
        if not carries_gradient(value):
            n.invalid(f"{value.type} has no gradient")
    for name, place, value in zip(names, places, given):
        if value.dtype != place.dtype or value.type.rank != place.type.rank:
            n.invalid(f"{name!r} is {place.type}, the value given for it {value.type}")
    function, others = _function(n, places, y)
    seed = n.b.full(y.shape, 1, y.dtype)
    found = region_gradient(n.b, function, [*given, *others], [seed])
    return [n.b.zeros_like(v) if g is None else g for v, g in zip(given[:wanted], found)]


def _named(n: NodeContext, name: str) -> Value:
    """A value of the graph that an attribute names."""
    found = n.scope.find(name)
    if found is None:
        n.invalid(f"{name!r} is not defined before it is used")
    if not isinstance(found, Value):
        n.scope.names[name] = found = n.materialize(found, name)
    return found


def _function(n: NodeContext, places: list[Value], y: Value) -> tuple[Graph, list[Value]]:
    """What computes `y` from the values at `places`, and the other values of the graph that it takes."""
    needed: set[Node] = set()
    others: dict[Value, None] = {}
    pending = [y]
    while pending:
        value = pending.pop()
        if value in places:
            continue
        if value.producer is None:
            others[value] = None
        elif value.producer not in needed:
            needed.add(value.producer)
            pending.extend(value.producer.operands)
    function = Graph("function", parent=n.scope.graph)
    mapping: dict[Value, Value] = {}
    for number, value in enumerate([*places, *others]):
        mapping[value] = function.add_input(f"x{number}", value.type)
    for node in n.scope.graph:
        if node in needed:
            copy_node(node, function, mapping)
    function.output(mapping[y])
    return function, list(others)
