"""Damaged model files give an error or a result: no crash, no hang over a second of CPU, no memory over the budget."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.nightly.mutation import Report, mutant, originals, run_mutants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and timers of Linux processes")
NIGHTLY = 100_000


def _check(report: Report, count: int) -> None:
    print(f"{count / max(report.seconds, 1e-9):.0f} mutants/s: {dict(report.outcomes.most_common())}")
    assert not report.findings, "\n".join(f"mutant({i}): {what}" for i, what in report.findings[:10])
    assert sum(report.outcomes.values()) == count


@pytest.mark.slow
def test_some_mutants() -> None:
    _check(run_mutants(300), 300)


@pytest.mark.nightly
def test_a_hundred_thousand_mutants() -> None:
    report = run_mutants(NIGHTLY, workers=min(os.cpu_count() or 1, 2))
    _check(report, NIGHTLY)
    # Mutants that all fail in the first line of the reader would show nothing.
    assert sum(n for name, n in report.outcomes.items() if "result" in name) > NIGHTLY // 10


def test_mutants_depend_on_their_number_alone_and_differ() -> None:
    made = [mutant(i) for i in range(200)]
    assert made == [mutant(i) for i in range(200)]
    assert len(set(made)) > 150
    assert sum(m in originals() for m in made) < 40


def _killer(index: int) -> bytes:
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return b"\x00"


def test_a_dead_worker_is_a_finding_and_the_rest_goes_on() -> None:
    report = run_mutants(6, make=_killer)
    assert report.findings == [(3, "the process died with -9")]


def test_an_endless_import_and_a_foreign_error_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes, index: int) -> str:
        if index == 1:
            while True:
                pass
        if index == 2:
            raise KeyError("foreign")
        return "result"

    monkeypatch.setattr("tests.nightly.mutation.attempt", slow)
    findings = dict(run_mutants(4, make=mutant).findings)
    assert sorted(findings) == [1, 2]
    assert "more than a second" in findings[1]
    assert "KeyError" in findings[2]
