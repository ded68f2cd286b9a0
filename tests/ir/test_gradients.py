"""Every gradient rule against central differences, in 64-bit floats, through the reference interpreter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dhc.errors import DhcError, TypeMismatchError
from dhc.ir import registry
from dhc.ir.autodiff import carries_gradient, gradient
from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType, f32, f64
from dhc.ir.graph import Graph
from dhc.ir.location import Location
from dhc.ir.op import NotDifferentiable, OpDef
from tests.ir.op_examples import REGION_OPS, Example, examples_for, generator

STEP = {"f64": 1e-6, "f32": 4e-3}
TOLERANCE = {"f64": 2e-6, "f32": 2e-2}
MOST_ELEMENTS = 4000


def directional_error(graph: Graph, arrays: Sequence[np.ndarray], dtype: DType, rng: np.random.Generator) -> float:
    """Largest relative difference of <gradient, direction> and the central difference, over float inputs.

    Directions are random, so an error in one element shows in each of them.
    """
    carried = [n for n, v in enumerate(graph.outputs) if carries_gradient(v)]
    results = graph.evaluate(*arrays)
    cotangents = [rng.uniform(0.5, 1.5, results[n].shape).astype(results[n].dtype) for n in carried]
    gradients = gradient(graph).evaluate(*arrays, *cotangents)

    def loss(moved: Sequence[np.ndarray]) -> float:
        found = graph.evaluate(*moved)
        wide = [np.sum(c * found[n], dtype=np.complex128) for n, c in zip(carried, cotangents)]
        return float(np.real(sum(wide)))

    worst, number = 0.0, 0
    for position, value in enumerate(graph.inputs):
        if not carries_gradient(value):
            continue
        g = gradients[number]
        number += 1
        assert g.dtype == arrays[position].dtype and g.shape == arrays[position].shape
        for _ in range(2):
            direction = rng.choice([-1.0, 1.0], value.shape) * rng.uniform(0.5, 1.5, value.shape)
            step = STEP[dtype.name]
            sides = []
            for sign in (1, -1):
                moved = list(arrays)
                moved[position] = (arrays[position] + sign * step * direction).astype(arrays[position].dtype)
                sides.append(loss(moved))
            expected = (sides[0] - sides[1]) / (2 * step)
            actual = float(np.sum(g.astype(np.float64) * direction))
            scale = max(1.0, abs(expected), float(np.sum(np.abs(g), dtype=np.float64)) / max(1.0, g.size**0.5))
            worst = max(worst, abs(actual - expected) / scale)
    return worst


def _jittered(example: Example) -> tuple[np.ndarray, ...]:
    """Moves floats off whole numbers and ties, where rules choose one of several slopes."""
    rng = generator(example.op, "jitter" + example.label)
    return tuple(
        np.asarray(a + rng.uniform(0.011, 0.031, a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a
        for a in example.arrays
    )


def gradient_examples(op: OpDef) -> Iterator[tuple[Example, DType]]:
    """Finite examples whose floats are all of one wide type."""
    chosen = [e for e in examples_for(op) if e.finite and sum(a.size for a in e.arrays) <= MOST_ELEMENTS]
    for wanted in (f64, f32):
        found = [e for e in chosen if {d for d in e.dtypes if d.is_float} == {wanted}]
        if found:
            yield from ((e, wanted) for e in found)
            return


def differentiable(op: OpDef) -> bool:
    """True for ops whose results may depend smoothly on an operand."""
    takes = any(d.is_float for o in op.operands for d in o.dtypes)
    return takes and not isinstance(op.grad, NotDifferentiable) and op.name not in REGION_OPS


DIFFERENTIABLE = [op for op in registry.all_ops() if differentiable(op)]


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_gradient_against_central_differences(op: OpDef) -> None:
    tried = 0
    for example, dtype in gradient_examples(op):
        graph = example.graph()
        carried = [v.dtype for v in graph.outputs if carries_gradient(v)]
        if not carried or any(d.bits < (dtype.bits if d.is_float else 2 * dtype.bits) for d in carried):
            continue  # rounded to a narrower type, the result is a staircase
        arrays = _jittered(example)
        error = directional_error(graph, arrays, dtype, generator(op, "directions"))
        assert error <= TOLERANCE[dtype.name], f"{example}: relative error {error}"
        tried += 1
    assert tried, f"{op.name} is differentiable but has no example with wide floats: give OpDef.examples"


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_gradients_keep_the_element_type_and_shape(op: OpDef) -> None:
    """For every example, also half floats and empty tensors; the numbers are not judged here."""
    seen: set[tuple[Any, ...]] = set()
    for example in examples_for(op):
        carriers = tuple(d for d in example.dtypes if d.kind in "f")
        key = (carriers, any(a.size == 0 for a in example.arrays), len(example.arrays))
        if not carriers or key in seen:
            continue
        seen.add(key)
        graph = example.graph()
        results = [r for v, r in zip(graph.outputs, graph.evaluate(*example.arrays)) if carries_gradient(v)]
        if not results:
            continue
        slopes = gradient(graph)
        for slope, name in zip(slopes.evaluate(*example.arrays, *map(np.ones_like, results)), slopes.output_names):
            array = example.arrays[int(name.removeprefix("grad_x"))]
            assert slope.dtype == array.dtype and slope.shape == array.shape, example


@pytest.mark.parametrize("op", registry.all_ops(), ids=lambda op: op.name)
def test_every_op_says_whether_it_has_a_gradient(op: OpDef) -> None:
    from dhc.ir.kinds import Composite

    assert op.grad is not None or isinstance(op.kind, Composite)
    if isinstance(op.grad, NotDifferentiable):
        assert op.grad.reason


def test_the_comparison_notices_a_wrong_rule() -> None:
    right = registry.get("sin")
    wrong = replace(right, grad=lambda b, node, g: (b.mul(g, b.cos(b.mul(node.operands[0], 1.001))),))
    errors = []
    for op in (right, wrong):
        graph = Graph()
        x = graph.input("x", "f64", (4,))
        graph.output(Builder(graph).call(op, x))
        errors.append(directional_error(graph, [np.array([0.3, 1.0, 2.0, -0.4])], f64, np.random.default_rng(0)))
    assert errors[0] < 1e-8 < TOLERANCE["f64"] < errors[1]


# ---- rules at the points where several slopes are right --------------------------------------------------------------


def _slopes(name: str, *arrays: Any, **attrs: Any) -> list[np.ndarray]:
    graph = Graph()
    inputs = [graph.input(f"x{i}", "f64", np.shape(a)) for i, a in enumerate(arrays)]
    result = Builder(graph).call(name, *inputs, attrs=attrs)
    graph.output(result)
    operands = [np.asarray(a, np.float64) for a in arrays]
    return gradient(graph).evaluate(*operands, np.ones(result.shape))


def test_relu_is_flat_at_zero() -> None:
    np.testing.assert_array_equal(_slopes("relu", [-1.0, -0.0, 0.0, 1.0])[0], [0, 0, 0, 1])


def test_ties_of_maximum_and_minimum_go_to_the_first_operand() -> None:
    for name in ("maximum", "minimum"):
        first, second = _slopes(name, [2.0, 1.0], [2.0, 1.0])
        np.testing.assert_array_equal(first, [1, 1])
        np.testing.assert_array_equal(second, [0, 0])


def test_ties_of_reduce_max_share_evenly() -> None:
    np.testing.assert_array_equal(_slopes("reduce_max", [1.0, 3.0, 3.0, 2.0])[0], [0, 0.5, 0.5, 0])


def test_clamp_gives_the_gradient_to_what_it_returns() -> None:
    x, low, high = _slopes("clamp", [-2.0, 0.5, 9.0, 1.0], [0.0] * 4, [1.0] * 4)
    np.testing.assert_array_equal(x, [0, 1, 0, 1])
    np.testing.assert_array_equal(low, [1, 0, 0, 0])
    np.testing.assert_array_equal(high, [0, 0, 1, 0])


def test_half_floats_do_not_count_elements() -> None:
    graph = Graph()
    graph.output(Builder(graph).reduce_mean(graph.input("x", "f16", (70_000,))))
    (slope,) = gradient(graph).evaluate(np.zeros(70_000, np.float16), np.float16(7000))
    np.testing.assert_array_equal(slope, np.full(70_000, 0.1, np.float16))


@pytest.mark.parametrize("zeros", [(), (1,), (0, 2)])
def test_products_with_zeros(zeros: tuple[int, ...]) -> None:
    x = np.array([1.5, -2.0, 3.0, 0.5])
    x[list(zeros)] = 0
    expected = [np.prod(np.delete(x, i)) for i in range(4)]
    np.testing.assert_allclose(_slopes("reduce_prod", x)[0], expected)
    prefix = [sum(np.prod(np.delete(x[: i + 1], k)) for i in range(k, 4)) for k in range(4)]
    np.testing.assert_allclose(_slopes("cumprod", x, axis=0)[0], prefix)


def test_power_at_zero() -> None:
    base, exponent = _slopes("pow", [0.0, 0.0, 2.0], [2.0, 1.0, 0.0])
    np.testing.assert_allclose(base, [0, 1, 0])
    np.testing.assert_allclose(exponent, [0, 0, np.log(2)])


# ---- graphs ----------------------------------------------------------------------------------------------------------


def _network() -> Graph:
    graph = Graph("network")
    x, w = graph.input("x", "f64", ("N", 3)), graph.input("w", "f64", (3, 2))
    offset = graph.input("offset", "f64", (2,))
    b = Builder(graph)
    hidden = b.tanh(b.add(b.matmul(x, w), offset))
    graph.output(b.reduce_mean(b.mul(hidden, hidden), axes=(0,)), b.add(hidden, 1.0), names=("mean", "hidden"))
    return graph


def test_a_value_with_several_uses_sums_its_cotangents() -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=s) for s in ((5, 3), (3, 2), (2,))]
    graph = _network()
    slopes = gradient(graph, with_outputs=True)
    cotangents = [rng.normal(size=2), rng.normal(size=(5, 2))]
    *outputs, dx, dw, doffset = slopes.evaluate(*arrays, *cotangents)
    assert slopes.output_names == ["mean", "hidden", "grad_x", "grad_w", "grad_offset"]
    np.testing.assert_array_equal(outputs[0], graph.evaluate(*arrays)[0])

    def loss(*moved: np.ndarray) -> float:
        return float(sum(np.sum(c * r) for c, r in zip(cotangents, graph.evaluate(*moved))))

    for position, slope in enumerate((dx, dw, doffset)):
        for index in np.ndindex(slope.shape):
            sides = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[position][index] += sign * 1e-6
                sides.append(loss(*moved))
            assert slope[index] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_gradients_can_be_differentiated_again() -> None:
    graph = Graph()
    x = graph.input("x", "f64", (3,))
    graph.output(Builder(graph).tanh(x), names=("y",))
    once = gradient(graph)
    twice = gradient(once, wrt=["x"])
    at = np.array([-0.5, 0.1, 1.2])
    (second,) = twice.evaluate(at, np.ones(3), np.ones(3))
    np.testing.assert_allclose(second, -2 * np.tanh(at) / np.cosh(at) ** 2, rtol=1e-12)


def test_only_the_inputs_asked_for() -> None:
    graph = _network()
    slopes = gradient(graph, wrt=["offset"])
    assert slopes.output_names == ["grad_offset"]
    assert [v.name for v in slopes.inputs] == ["x", "w", "offset", "d_mean", "d_hidden"]
    assert len(gradient(graph).nodes) > len(slopes.nodes)


def test_an_input_without_influence_gets_zeros() -> None:
    graph = Graph()
    graph.input("unused", "f32", (2,))
    x = graph.input("x", "f32", (2,))
    graph.output(Builder(graph).neg(x))
    unused, used = gradient(graph).evaluate(*[np.ones(2, np.float32)] * 3)
    np.testing.assert_array_equal(unused, [0, 0])
    np.testing.assert_array_equal(used, [-1, -1])


def test_sizes_that_may_or_may_not_be_one() -> None:
    """N against M: only run time knows which operand is repeated."""
    graph = Graph()
    x, y = graph.input("x", "f64", ("N",)), graph.input("y", "f64", ("M",))
    graph.output(Builder(graph).mul(x, y))
    slopes = gradient(graph)
    dx, dy = slopes.evaluate(np.array([2.0]), np.array([3.0, 4.0]), np.array([1.0, 10.0]))
    np.testing.assert_array_equal(dx, [43])
    np.testing.assert_array_equal(dy, [2, 20])
    dx, dy = slopes.evaluate(np.array([2.0, 5.0]), np.array([3.0, 4.0]), np.array([1.0, 10.0]))
    np.testing.assert_array_equal(dx, [3, 40])
    np.testing.assert_array_equal(dy, [2, 50])


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("reduce_sum", {"axes": (0,)}), ("reduce_mean", {}), ("reduce_max", {"axes": (0,), "keepdims": True}),
        ("reduce_prod", {"axes": (0, 1)}), ("logsumexp", {"axes": (-2,)}), ("cumsum", {"axis": 0, "reverse": True}),
        ("cumprod", {"axis": 0, "exclusive": True}),
    ],
)  # fmt: skip
def test_gradients_of_reductions_over_symbolic_sizes(name: str, attrs: dict[str, Any]) -> None:
    graph = Graph()
    result = Builder(graph).call(name, graph.input("x", "f64", ("N", "M")), attrs=attrs)
    graph.output(result)
    slopes = gradient(graph)
    rng = np.random.default_rng(5)
    for shape in ((4, 3), (1, 2)):
        x = rng.uniform(0.5, 2, shape)
        direction, (at,) = rng.normal(size=shape), graph.evaluate(x)
        cotangent = rng.normal(size=at.shape)
        (slope,) = slopes.evaluate(x, cotangent)
        sides = [np.sum(cotangent * graph.evaluate(x + step * direction)[0]) for step in (1e-6, -1e-6)]
        assert np.sum(slope * direction) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6, abs=1e-7)


def test_integer_paths_carry_nothing() -> None:
    graph = Graph()
    x = graph.input("x", "f64", (3,))
    b = Builder(graph)
    counted = b.cast(b.cast(x, dtype="i64"), dtype="f64")
    graph.output(b.add(x, counted))
    (slope,) = gradient(graph).evaluate(np.array([1.5, 2.5, -0.5]), np.ones(3))
    np.testing.assert_array_equal(slope, [1, 1, 1])


def test_an_op_without_gradient_is_named_with_its_place() -> None:
    graph = Graph()
    x = graph.input("x", "f32", (3,))
    b = Builder(graph, Location(source="model.onnx", node="bits_1", op="BitCast"))
    graph.output(b.bitcast(b.bitcast(x, dtype="i32"), dtype="f32"))
    # Through the integer nothing flows; the bits themselves as floats would need a rule.
    np.testing.assert_array_equal(gradient(graph).evaluate(*[np.ones(3, np.float32)] * 2)[0], [0, 0, 0])
    graph = Graph()
    x = graph.input("x", "f32", (3,))
    b = Builder(graph, Location(source="model.onnx", node="bits_1", op="BitCast"))
    graph.output(b.bitcast(x, dtype="f32"))
    with pytest.raises(DhcError, match=r"bitcast is not differentiable: .*bits_1.*model\.onnx"):
        gradient(graph)


def test_unknown_and_integer_inputs_are_refused() -> None:
    graph = Graph()
    graph.input("count", "i64", ())
    x = graph.input("x", "f32", ())
    graph.output(Builder(graph).neg(x))
    with pytest.raises(TypeMismatchError, match="no input 'z'"):
        gradient(graph, wrt=["z"])
    with pytest.raises(TypeMismatchError, match="cannot differentiate by input 'count'"):
        gradient(graph, wrt=["count"])


def test_fused_groups_are_differentiated_inside() -> None:
    graph = Graph()
    x = graph.input("x", "f64", (4,))
    body = Graph("group", parent=graph)
    left, right = body.input("left", "f64", (4,)), body.input("right", "f64", (4,))
    inner = Builder(body)
    body.output(inner.mul(inner.exp(left), right))
    # The same value in both places: its two cotangents add up.
    graph.output(Builder(graph).call("fused", x, x, regions=[body]))
    error = directional_error(graph, [np.array([0.3, -0.2, 1.0, 0.0])], f64, np.random.default_rng(0))
    assert error < 1e-8


def test_complex_numbers_by_the_holomorphic_convention() -> None:
    graph = Graph()
    re, im = graph.input("re", "f64", (3,)), graph.input("im", "f64", (3,))
    b = Builder(graph)
    z = b.complex(re, im)
    square = b.mul(z, z)
    graph.output(b.real(square), b.imag(square), b.imag(b.conj(z)))
    arrays = [np.array([0.5, -1.0, 2.0]), np.array([1.5, 0.3, -0.7])]
    assert directional_error(graph, arrays, f64, np.random.default_rng(1)) < 1e-8
    refused = Graph()
    x = refused.input("x", "c64", (2,))
    refused.output(Builder(refused).abs(x))
    with pytest.raises(DhcError, match="no gradient for complex numbers"):
        gradient(refused)
