"""What all tests share: real data when it is there, fixed random numbers, and skips that are counted by reason."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# One machine must fail where another fails: examples come from the test's own source, never from the clock, and
# a slow machine is no failure. The nightly profile searches further, with fresh seeds that hypothesis prints.
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "nightly",
    derandomize=False,
    deadline=None,
    max_examples=1000,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("DHC_HYPOTHESIS_PROFILE", "ci"))


def pytest_configure() -> None:
    """A shell that starts the suite in the background makes it, and every child of a test, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_data_folder() -> Path:
    """The folder with real models and images: ``DHC_SHARED_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("DHC_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data, or a skip that says how to get it."""
    folder = shared_data_folder()
    if not folder.is_dir():
        pytest.skip("no real data: put it at ../shared/data or set DHC_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many tests were skipped for which reason, so that a silent loss of coverage shows."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = report.longrepr
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if not reasons:
        return
    terminalreporter.section("skips by reason")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.write_line(f"{count:5d}  {reason}")
