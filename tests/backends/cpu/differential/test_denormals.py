"""Numbers below the normal range: kept by default, as in the interpreter; flushed on request, in every thread."""

from __future__ import annotations

import numpy as np
import pytest

from dhc_runtime import native_segment
from dhc_runtime.errors import UsageError

import dhc
from dhc.ir import Builder, Graph


def halved() -> Graph:
    """Element-wise and summing, in kernels of both kinds of generator."""
    graph = Graph("halved")
    b = Builder(graph)
    x = graph.input("x", "f32", (64, 48))
    product = b.matmul(x, b.constant(np.eye(48, dtype=np.float32) / 2, "f32"))
    graph.output(b.mul(x, b.constant(0.5, "f32")), product)
    return graph


SMALLEST = np.float32(2.0**-126)
"""The smallest normal number."""


@pytest.mark.parametrize("threads", [1, 3])
def test_denormals(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_segment, "SERIAL_NANOSECONDS", 0)
    artifact = dhc.compile(halved())
    x = np.full((64, 48), SMALLEST, np.float32)
    tiny = np.full((64, 48), SMALLEST / 2, np.float32)
    with artifact.session(threads=threads) as keeping, artifact.session(threads=threads, denormals="flush") as flushing:
        for session, half in ((keeping, SMALLEST / 2), (flushing, 0), (keeping, SMALLEST / 2)):
            for found in session.run({"x": x}).values():
                assert np.array_equal(found, np.full((64, 48), half, np.float32))
        assert all((found == SMALLEST / 4).all() for found in keeping.run({"x": tiny}).values()), "read as zero"
        assert not any(found.any() for found in flushing.run({"x": tiny}).values())
    assert np.float32(SMALLEST) * np.float32(0.5) != 0, "the calling thread has its own rules back"


def test_a_word_that_is_neither() -> None:
    with pytest.raises(UsageError, match="'keep' or 'flush'"):
        dhc.compile(halved()).session(denormals="no")
