"""The measuring itself: every candidate gets its rounds, warm-up is not counted, and the order turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import __main__ as bench_main
from bench.interleaved import interleaved, median


def test_candidates_take_turns_and_warm_up_is_left_out() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warm_up=1)
    assert calls == list("abbaabbaab")
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_median_of_nothing_is_not_a_number() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([]) != median([])


def test_an_unknown_measurement_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main.main(["no_such_thing"]) == 2
    assert "start_up" in capsys.readouterr().err


def test_every_stored_result_has_rows_of_equal_keys(repository: Path) -> None:
    for path in sorted((repository / "bench" / "results").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert report["title"] and report["machine"], path.name
        keys = {tuple(row) for row in report["rows"]}
        assert len(keys) == 1, f"{path.name}: rows have different columns"
