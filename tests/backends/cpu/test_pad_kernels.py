"""The kernel that pads maps against the interpreter: modes, widths, sizes, threads, instruction sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dhc
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.sampling.pad import emit_pad
from dhc.ir import Builder, Graph

MODES = ("constant", "reflect", "edge", "wrap")


def _check(shape: tuple[Any, ...], low: tuple[int, ...], high: tuple[int, ...], mode: str, **sizes: int) -> Any:
    graph = Graph()
    x = graph.input("x", "f32", shape)
    b = Builder(graph)
    graph.output(b.pad(x, b.constant(np.float32(-1.5)), low=low, high=high, mode=mode))
    known = [sizes.get(d, d) for d in shape]
    given_x = np.random.default_rng(0).standard_normal(known).astype(np.float32)
    artifact = dhc.compile(graph)
    (item,) = artifact.plan["program"]["items"]
    (wanted,) = graph.evaluate(given_x)
    for threads in (1, 2, 7):
        with artifact.session(threads=threads) as session:
            (found,) = session.run({"x": given_x}).values()
        np.testing.assert_array_equal(found, wanted)
    return item["symbol"]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_pads(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(MODES))
    rank = data.draw(st.integers(1, 3))
    planes = (data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3)))
    sizes = st.integers(0 if mode == "constant" else 1, 6)
    space = [data.draw(sizes) for _ in range(rank - 1)]
    space.append(data.draw(st.one_of(sizes, st.sampled_from([15, 16, 17, 33]))))
    low, high = ((0, 0, *(data.draw(st.integers(0, 9)) for _ in range(rank))) for _ in range(2))
    if not any((*low, *high)):
        low = (*low[:-1], 1)
    assert _check((*planes, *space), low, high, mode).startswith("pad_")


@pytest.mark.parametrize("mode", MODES)
def test_sizes_may_be_symbolic(mode: str) -> None:
    symbol = _check(("N", 3, "H", "W"), (0, 0, 2, 1), (0, 0, 1, 2), mode, N=2, H=5, W=19)
    assert symbol.startswith("pad_")


@pytest.mark.parametrize(("low", "high"), [((0, 1, 0, 0), (0, 0, 0, 2)), ((0, 0, -1, 2), (0, 0, 2, 0))])
def test_other_pads_run_as_loops(low: tuple[int, ...], high: tuple[int, ...]) -> None:
    assert _check((2, 3, 4, 5), low, high, "constant").startswith("dhc_")


@pytest.mark.parametrize("name", ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize("mode", MODES)
def test_every_target_compiles(name: str, mode: str) -> None:
    target = targets.target(name)
    assert len(targets.compile_ir(emit_pad(mode, target).ir, target)) > 0
