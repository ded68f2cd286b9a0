"""The kernels that resize maps against the interpreter: modes, coordinate rules, sizes, threads, instruction sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.sampling.resize import Pattern, ResizeSpec, emit_resize
from dhc.ir import Builder, Graph, Value
from dhc.ir.symbols import sym
from tests.support.threads import check_artifact

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def _graph(shape: tuple[Any, ...], out: tuple[Any, ...], tail: Any = None, **attrs: Any) -> Graph:
    graph = Graph()
    x = graph.input("x", "f32", shape)
    b = Builder(graph)
    y = b.resize(x, shape=out, **attrs)
    graph.output(y if tail is None else tail(b, y))
    return graph


def _check(graph: Graph, shape: tuple[int, ...], kernel: str = "resize_", threads: tuple[int, ...] = (1, 2, 7)) -> None:
    x = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
    artifact = dhc.compile(graph)
    symbols = [item["symbol"] for item in artifact.plan["program"]["items"]]
    assert len(symbols) == 1 and symbols[0].startswith(kernel)
    (wanted,) = graph.evaluate(x)
    check_artifact(artifact, {"x": x}, wanted, rtol=1e-5, atol=1e-5, threads=threads)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_resize(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    mode = data.draw(st.sampled_from(["nearest", "linear", "linear", "cubic"]))
    widths = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33, 50]))
    before = [data.draw(st.integers(1, 7)) for _ in range(rank - 1)] + [data.draw(widths)]
    after = [
        data.draw(st.one_of(st.sampled_from([d, 2 * d, 2 * d, 3 * d, 4 * d, 8 * d]), st.integers(1, 40)))
        for d in before
    ]
    if before == after:
        after[-1] += 1
    planes = (data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3)))
    attrs = {
        "mode": mode,
        "coordinate": data.draw(st.sampled_from(COORDINATES)),
        "nearest": data.draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])),
        "exclude_outside": data.draw(st.booleans()),
    }
    graph = _graph((*planes, *before), (*planes, *after), **attrs)
    _check(graph, (*planes, *before))


def test_doubling_repeats_one_pattern() -> None:
    """Whole factors take the path without tables in x; aligned corners and other factors do not."""
    from dhc.backends.cpu.sampling.planned import _tables
    from dhc.ir.op import Call
    from dhc.ir.ops.resize_axis import resized_axes

    for coordinate, after, repeats in (
        ("half_pixel", 40, True),
        ("align_corners", 40, False),
        ("half_pixel", 35, False),
    ):
        graph = _graph((1, 1, 20), (1, 1, after), mode="linear", coordinate=coordinate)
        call = Call.of(graph.nodes[-1])
        (axis,) = resized_axes(call)
        tables = _tables(call, axis)
        assert tables is not None and (tables.factor == 2) == repeats


TAILS: dict[str, Any] = {
    "residual and activation": lambda b, y: b.relu(b.add(y, _constant(b, 2, 3, 10, 34))),
    "scale per channel": lambda b, y: b.mul(y, _constant(b, 1, 3, 1, 1)),
    "gate": lambda b, y: b.mul(b.sigmoid(y), y),
}


def _constant(b: Builder, *shape: int) -> Value:
    return b.constant(np.random.default_rng(7).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("name", TAILS)
def test_what_follows_is_part_of_the_kernel(name: str, mode: str) -> None:
    _check(_graph((2, 3, 5, 17), (2, 3, 10, 34), TAILS[name], mode=mode), (2, 3, 5, 17))


def test_batch_may_be_symbolic() -> None:
    _check(_graph(("N", 3, 8, 8), (sym("N"), 3, 16, 16), mode="linear"), (2, 3, 8, 8))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinate", ["half_pixel", "pytorch_half_pixel", "asymmetric"])
def test_space_may_be_symbolic(mode: str, coordinate: str) -> None:
    """Whole factors of two, with sizes that only the run knows; one element and several blocks of columns too."""
    n, d, h, w = (sym(name) for name in "NDHW")
    for factors in ((1, 2), (2, 4), (8, 8)):
        shape = (n, 2, factors[0] * h, factors[1] * w)
        graph = _graph(("N", 2, "H", "W"), shape, mode=mode, coordinate=coordinate)
        for size in ((2, 2, 3, 19), (1, 2, 1, 1), (1, 2, 35, 1100)):
            _check(graph, size, threads=(1, 3))
    graph = _graph(("N", 2, "D", "H", "W"), (n, 2, 2 * d, 2 * h, 2 * w), mode=mode, coordinate=coordinate)
    _check(graph, (1, 2, 3, 5, 9), threads=(1, 3))


def test_rows_of_several_blocks() -> None:
    """A block of columns ends in the middle of rows, with neighbours of the pattern on both sides."""
    _check(_graph((1, 1, 3, 1300), (1, 1, 6, 2600), mode="linear"), (1, 1, 3, 1300))
    _check(_graph((1, 1, 3, 1300), (1, 1, 7, 1300), mode="cubic"), (1, 1, 3, 1300))


@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "linear", "antialias": True},
        {"mode": "linear", "coordinate": "tf_crop_and_resize", "roi": (0.0,) * 4 + (1.0,) * 4},
    ],
)
def test_others_run_as_loops(attrs: dict[str, Any]) -> None:
    _check(_graph((1, 2, 9, 8), (1, 2, 4, 5), **attrs), (1, 2, 9, 8), kernel="dhc_")


def test_infinities_and_nan_stay_where_they_are() -> None:
    graph = _graph((1, 1, 4, 20), (1, 1, 8, 40), mode="nearest", coordinate="asymmetric", nearest="floor")
    x = np.arange(80, dtype=np.float32).reshape(1, 1, 4, 20)
    x[0, 0, 1, 3], x[0, 0, 2, 19] = np.nan, np.inf
    (found,) = dhc.compile(graph).session(threads=1).run({"x": x}).values()
    np.testing.assert_array_equal(found, graph.evaluate(x)[0])


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize("pattern", [None, Pattern(2, ((-1, 0), (0, 1)))])
def test_every_target_compiles(name: str, pattern: Pattern | None) -> None:
    target = targets.target(name)
    code = emit_resize(ResizeSpec((2, 2, 2), (2, 0), pattern), target, 40)
    assert len(targets.compile_ir(code.ir, target)) > 0
