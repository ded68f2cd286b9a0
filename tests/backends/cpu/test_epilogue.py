"""Element-wise ops behind a contraction run inside its kernel, with the interpreter's results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dhc
from dhc.backends.cpu.contraction import plan_contraction
from dhc.backends.cpu.target import host_target
from dhc.ir import Builder, Graph, Value

Tail = Callable[[Builder, Value, Callable[..., Value]], Value]

TAILS: dict[str, Tail] = {
    **{
        name: lambda b, y, constant, name=name: b.call(name, y)
        for name in ("relu", "elu", "selu", "sigmoid", "silu", "gelu", "tanh", "softplus", "mish", "hard_swish")
    },
    "scale and shift per channel": lambda b, y, c: b.add(b.mul(b.relu(y), c(1, 5, 1, 1)), c(5, 1, 1)),
    "residual": lambda b, y, c: b.add(b.relu(y), c(2, 5, 9, 10)),
    "gate": lambda b, y, c: b.mul(b.sigmoid(y), c(1, 5, 1, 1)),
    "value used twice": lambda b, y, c: b.mul(y, b.sigmoid(y)),
    "hard swish in parts": lambda b, y, c: b.mul(y, b.mul(b.clamp(b.add(y, 3.0), b.like(0, y), b.like(6, y)), 1 / 6)),
    "gelu in parts": lambda b, y, c: b.mul(b.mul(y, b.add(b.erf(b.mul(y, 0.5**0.5)), 1.0)), 0.5),
    "condition": lambda b, y, c: b.where(b.lt(y, 0.0), b.mul(y, c(5, 1, 1)), y),
    "activation, residual, activation": lambda b, y, c: b.silu(b.add(b.mul(y, b.sigmoid(y)), c(2, 5, 9, 10))),
    "scalar": lambda b, y, c: b.clamp(b.mul(y, 0.5), b.like(-1, y), b.like(1, y)),
}


def _graph(tail: Tail) -> Graph:
    rng = np.random.default_rng(1)
    graph = Graph()
    x = graph.input("x", "f32", (2, 3, 9, 10))
    b = Builder(graph)
    weights = b.constant(rng.standard_normal((5, 3, 3, 3)).astype(np.float32))
    y = b.conv(x, weights, pads_low=[1, 1], pads_high=[1, 1])
    graph.output(tail(b, y, lambda *shape: b.constant(rng.standard_normal(shape).astype(np.float32))))
    return graph


def _image() -> np.ndarray:
    image = np.random.default_rng(0).standard_normal((2, 3, 9, 10)).astype(np.float32)
    image[0, 0, 0, 0], image[1, 0, 4, 4] = np.nan, np.inf
    return image


@pytest.mark.parametrize("name", TAILS)
def test_epilogue_is_part_of_the_kernel(name: str) -> None:
    """One step, and NaN, infinities and numbers where the interpreter has them."""
    graph = _graph(TAILS[name])
    artifact = dhc.compile(graph)
    assert artifact.report.backend["steps"] == 1
    (found,) = artifact.session(threads=1).run({"x": _image()}).values()
    (wanted,) = graph.evaluate(_image())
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_has_no_vector_form_gets_a_kernel_of_its_own() -> None:
    """sin is called from the C library: the convolution and what follows are two steps with the same result."""
    graph = _graph(lambda b, y, c: b.sin(b.mul(y, 0.5)))
    artifact = dhc.compile(graph)
    assert artifact.report.backend["steps"] == 2
    image = np.nan_to_num(_image(), nan=0.5, posinf=1.0)
    (found,) = artifact.session(threads=1).run({"x": image}).values()
    np.testing.assert_allclose(found, graph.evaluate(image)[0], rtol=1e-4, atol=1e-5)


def test_a_value_that_the_rest_needs_again_ends_the_kernel() -> None:
    """y * sin(y): sin has no vector form, so the kernel ends with y, not inside of the expression."""
    graph = _graph(lambda b, y, c: b.mul(b.sigmoid(y), b.sin(b.relu(y))))
    artifact = dhc.compile(graph)
    assert artifact.report.backend["steps"] == 2
    image = np.nan_to_num(_image(), nan=0.5, posinf=1.0)
    (found,) = artifact.session(threads=1).run({"x": image}).values()
    np.testing.assert_allclose(found, graph.evaluate(image)[0], rtol=1e-4, atol=1e-5)


def test_ways_that_do_not_meet_stay_outside() -> None:
    """Both the convolution's result and its activation are returned: two steps."""
    rng = np.random.default_rng(1)
    graph = Graph()
    x = graph.input("x", "f32", (2, 3, 9, 10))
    b = Builder(graph)
    y = b.conv(x, b.constant(rng.standard_normal((5, 3, 3, 3)).astype(np.float32)))
    graph.output(b.sigmoid(y), b.tanh(y))
    artifact = dhc.compile(graph)
    image = np.nan_to_num(_image(), nan=0.5, posinf=1.0)
    found = artifact.session(threads=1).run({"x": image}).values()
    for one, wanted in zip(found, graph.evaluate(image), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("second", ["erf", "tanh", "sigmoid", "exp", "elu", "selu"])
@pytest.mark.parametrize("first", ["elu", "selu", "softplus", "tanh"])
def test_functions_of_functions_keep_their_own_values(first: str, second: str) -> None:
    from dhc.ir.dtypes import f32
    from dhc.ir.types import TensorType

    rng = np.random.default_rng(3)
    graph = Graph("g")
    b = Builder(graph)
    x = graph.add_input("x", TensorType(f32, (6, 5)))
    w = b.constant(rng.standard_normal((5, 7)).astype(np.float32))
    graph.output(b.call(second, b.call(first, b.matmul(x, w))))
    given = rng.standard_normal((6, 5)).astype(np.float32)
    (wanted,) = graph.evaluate(given)
    (found,) = dhc.compile(graph).session().run({"x": given}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_zeros_of_both_signs_are_two_numbers() -> None:
    """Equal subexpressions are written once: 0.0 and -0.0 compare equal but are not the same."""
    graph = Graph()
    b = Builder(graph)
    y = b.matmul(graph.input("x", "f32", (1, 2)), b.constant(np.eye(2, dtype=np.float32)))
    graph.output(b.add(b.mul(b.maximum(y, 0.0), -0.0), -0.0))
    (found,) = dhc.compile(graph).session(threads=1).run(np.array([[1, -2]], np.float32)).values()
    assert np.signbit(found).all()


def test_a_step_has_each_parameter_of_its_kernel_once() -> None:
    graph = Graph()
    b = Builder(graph)
    weights = b.constant(np.ones((8, 8, 3, 3), np.float32))
    result = b.conv(graph.input("x", "f32", (1, 8, 9, 10)), weights)
    graph.output(result)
    (step,) = dhc.compile(graph).plan["program"]["items"]
    planned = plan_contraction(result.producer, [], host_target())
    assert planned is not None and planned.code.name == step["symbol"] and planned.code.constants
    assert step["params"] == [*planned.params, *planned.code.constants]
    assert len(planned.params) == len(planned.code.params)
