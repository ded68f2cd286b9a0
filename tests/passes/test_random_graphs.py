"""Every pass on random graphs: results, text form, verifier, and a second run that finds nothing to do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from dhc.passes import Pass, find_pass
from dhc.passes.pipelines import clean_up, standard_pipeline
from tests.passes.keeping import EXACT, check_idempotent, check_pass
from tests.support.random_graphs import random_graphs

NAMES = ("canonicalize", "cse", "dce", "decompose", "fold", "fold_batch_norm", "fuse", "memory", "sink")


def made(name: str) -> Pass:
    return find_pass(name)()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300)
@given(case=random_graphs())
def test_one_pass_keeps_the_meaning(name, case):
    check_pass(case, [made(name)], exact=name in EXACT)
    check_idempotent(case, made(name))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(case=random_graphs(special=True))
def test_one_pass_keeps_special_values(name, case):
    check_pass(case, [made(name)], exact=name in EXACT)


@settings(max_examples=300)
@given(case=random_graphs(max_nodes=14))
def test_the_standard_pipeline_keeps_the_meaning(case):
    check_pass(case, standard_pipeline("cpu"), exact=False)


@settings(max_examples=200)
@given(case=random_graphs(max_nodes=14))
def test_cleaning_up_changes_no_bit(case):
    check_pass(case, clean_up(), exact=True)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(case=random_graphs(max_nodes=20))
def test_a_second_run_finds_nothing(name, case):
    check_idempotent(case, made(name))


@settings(max_examples=60)
@given(case=random_graphs(max_nodes=10))
def test_the_standard_pipeline_runs_on_its_own_result(case):
    check_pass(case, [*standard_pipeline("cpu"), *standard_pipeline("cpu")], exact=False)
