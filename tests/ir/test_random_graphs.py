"""The random graph generator itself, and the properties that every graph has: text, clone, comparison."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhc.errors import DhcError
from dhc.ir import registry
from dhc.ir.text import parse_graph, print_graph
from dhc.ir.verifier import verify
from tests.support.random_graphs import LARGEST, random_graphs
from tests.support.random_ops import RULES


@settings(max_examples=300)
@given(random_graphs())
def test_text_is_a_fixpoint_and_means_the_same(case):
    table: dict = {}
    for mode in ("full", "inline", "elide"):
        text = print_graph(case.graph, constants=mode, collect=table)
        parsed = parse_graph(text, constants=table)
        assert print_graph(parsed, constants=mode) == text
        verify(parsed)
    inputs = case.inputs()
    case.check(case.graph.evaluate(**inputs), parsed.evaluate(**inputs))


@settings(max_examples=100)
@given(random_graphs(special=True))
def test_special_values_run(case):
    inputs = case.inputs()
    case.check(case.graph.evaluate(**inputs), case.graph.clone().evaluate(**inputs))


@settings(max_examples=100)
@given(random_graphs())
def test_other_sizes_run(case):
    for extreme in (case.smallest, dict.fromkeys(case.sizes, LARGEST)):
        case.graph.evaluate(**case.inputs(extreme))


PIECES = [
    *"[]{}()%@\",:=-9<>#\\",
    "N", "f32", "seq<", "nan", "inf", "dense<", "graph", "loc(", "true", "->", "1e999", "0x", "*", "//",
    "99999999999", "sha256:", "quant(", "image(", "i4", "str", "bool", "c64", "axis", "return", "\0",
]  # fmt: skip


@settings(max_examples=60)
@given(random_graphs(), st.randoms(use_true_random=False))
def test_damaged_text_is_refused_or_read(case, random):
    """Whatever is deleted, inserted or doubled: a graph that prints and reads back, or an error of dhc."""
    text = print_graph(case.graph)
    for _ in range(15):
        damaged = text
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(damaged))
            change = random.choice(["delete", "insert", "insert", "double"])
            if change == "delete":
                damaged = damaged[:at] + damaged[at + random.randint(1, 8) :]
            elif change == "insert":
                damaged = damaged[:at] + random.choice(PIECES) + damaged[at:]
            else:
                start = random.randrange(len(damaged))
                damaged = damaged[:at] + damaged[start : start + 20] + damaged[at:]
        try:
            parsed = parse_graph(damaged)
        except DhcError as error:
            assert str(error)
            continue
        again = print_graph(parsed)
        assert print_graph(parse_graph(again)) == again


@pytest.mark.parametrize("name", sorted({r.name for r in RULES}))
def test_every_rule_works_alone(name):
    """With only this rule (and casts, to reach its dtypes), its op is really used and the graph runs."""
    if not registry.has(name.partition(":")[0]):
        pytest.skip("the op is not registered")
    used = Counter()

    @settings(max_examples=25)
    @given(random_graphs(only={name, "cast"}))
    def run(case):
        used.update(n.op.name for n in case.graph)
        case.graph.evaluate(**case.inputs())

    run()
    assert used[name.partition(":")[0]]
