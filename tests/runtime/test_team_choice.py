"""Whether a run is for all threads or for the calling one alone."""

from __future__ import annotations

from dhc_runtime.team_choice import TeamChoice


def runs(choice: TeamChoice, count: int, team: float, waited: float, alone: float) -> int:
    """Reports so many runs of these lengths; gives how many were alone."""
    lonely = 0
    for _ in range(count):
        lonely += choice.alone
        choice.report(alone if choice.alone else team, 0.0 if choice.alone else waited)
    return lonely


def test_helpers_that_hold_nobody_up_always_help() -> None:
    assert runs(TeamChoice(), 1000, team=0.010, waited=0.001, alone=0.001) == 0


def test_helpers_that_hold_runs_up_are_left_out_and_asked_again_ever_more_seldom() -> None:
    choice = TeamChoice()
    assert runs(choice, 3, team=0.010, waited=0.006, alone=0.007) == 0
    assert choice.alone
    assert runs(choice, 3 + 8, team=0.010, waited=0.006, alone=0.007) == 11
    assert not choice.alone
    assert runs(choice, 10_000, team=0.010, waited=0.006, alone=0.007) > 9_800


def test_waiting_that_alone_would_take_longer_is_borne() -> None:
    assert 3 <= runs(TeamChoice(), 1000, team=0.010, waited=0.004, alone=0.013) < 30


def test_helpers_help_again_when_the_others_have_gone() -> None:
    choice = TeamChoice()
    runs(choice, 200, team=0.010, waited=0.006, alone=0.007)
    assert runs(choice, 2000, team=0.004, waited=0.0, alone=0.007) < 600
    assert not choice.alone
