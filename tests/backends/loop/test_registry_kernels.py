"""Every op that is defined by scalar expressions: its compiled kernel against its reference, for every element type."""

import numpy as np
import pytest

from dhc.backends.loop.lower import lower_group
from dhc.ir import registry
from dhc.ir.kinds import Contract, Elementwise, Map, Reduce
from tests.backends.loop.harness import run_kernel
from tests.ir.op_examples import examples_for
from tests.ir.test_definitions import INTEGER_STEPS, assert_close

OPS = [
    op for op in registry.all_ops()
    if isinstance(op.kind, (Elementwise, Map, Reduce, Contract)) and examples_for(op)
]  # fmt: skip


def check(example):
    graph = example.graph()
    lowered = lower_group(graph.nodes, graph.inputs, graph.outputs, example.op.name)
    expected = graph.evaluate(*example.arrays)
    results = []
    for nthreads in (1, 3):
        status, found = run_kernel(lowered, [np.array(a) for a in example.arrays], {}, graph.outputs, nthreads)
        assert status == 0, example
        results.append(found)
    for value, got, want in zip(graph.outputs, results[0], expected):
        assert_close(got, want, value.type.dtype, example, INTEGER_STEPS.get(example.op.name, 0))
    for one, three in zip(*results):
        assert one.tobytes() == three.tobytes(), f"{example}: three threads differ from one"


def sample(op):
    """An example for each combination of element types, not always the same one."""
    examples = examples_for(op)
    by_dtypes = {}
    for example in examples:
        by_dtypes.setdefault(example.dtypes, []).append(example)
    return [group[number % len(group)] for number, group in enumerate(by_dtypes.values())][:24]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_kernel_gives_the_reference(op):
    for example in sample(op):
        check(example)


@pytest.mark.nightly
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_all_examples(op):
    for example in examples_for(op):
        check(example)
