"""The measured limits: plausible figures, and the steps by which caches are told from memory."""

from __future__ import annotations

import platform

import pytest

from dhc.backends.cpu import limits


@pytest.mark.parametrize("threads", [1, 2])
def test_measured_limits_are_positive_and_finite(threads: int, monkeypatch) -> None:
    monkeypatch.setattr(limits, "_CALLS", 4)
    assert 0.01 < limits.peak_gflops.__wrapped__(threads) < 1e6
    assert 0.01 < limits.read_gigabytes.__wrapped__(1 << 16, threads) < 1e6


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs code for x86-64")
def test_the_kernel_of_the_peak_is_written_for_the_named_target(monkeypatch) -> None:
    monkeypatch.setattr(limits, "_CALLS", 1)
    seen = []
    compiled = limits.targets.compile_ir
    monkeypatch.setattr(limits.targets, "compile_ir", lambda text, cpu: seen.append(text) or compiled(text, cpu))
    limits.peak_gflops.__wrapped__(1, "x86-64")
    assert "<4 x float>" in seen[0] and "<16 x float>" not in seen[0]


def test_reading_is_measured_at_the_next_larger_size(monkeypatch) -> None:
    monkeypatch.setattr(limits, "read_gigabytes", lambda size, threads: (size, threads))
    assert limits.reading_speed(1, 1) == (1 << 18, 1)
    assert limits.reading_speed((1 << 18) + 1, 2) == (1 << 20, 2)
    assert limits.reading_speed(1 << 40, 1) == (1 << 28, 1)
