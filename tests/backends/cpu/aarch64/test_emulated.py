"""AArch64 code computes what the interpreter does."""

from __future__ import annotations

import pytest

import dhc
from tests.backends.cpu.aarch64.emulator import EMULATOR, run_emulated
from tests.backends.cpu.differential.models import MODELS, inputs_of
from tests.backends.cpu.differential.running import assert_close

pytestmark = pytest.mark.skipif(EMULATOR is None, reason="no qemu-aarch64: install the package qemu-user")


# The other models call C's mathematics or have sizes that depend on data: the emulated program has neither.
@pytest.mark.parametrize("name", ["convolutions", "dense", "attention", "reductions"])
def test_emulated(name: str) -> None:
    graph = MODELS[name]()
    inputs = inputs_of(graph)
    found = run_emulated(dhc.compile(graph, cpu="aarch64"), inputs)
    for wanted, got in zip(graph.evaluate(**inputs), found, strict=True):
        assert_close(wanted, got, roundings=400, what=graph.name)
