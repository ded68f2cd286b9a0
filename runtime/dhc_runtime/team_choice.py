"""Whether helpers are worth calling: on CPUs that other programs use too, one thread may be the faster."""

from __future__ import annotations

__all__ = ["TeamChoice"]

_HELD_UP = 0.2
_STRIKES = 3
_LEAST, _MOST = 8, 512


class TeamChoice:
    """Decides for each run of one step list whether the calling thread runs it alone, from how long runs take.

    A helper that shares its CPU holds up the run whenever the system takes it off in the midst of a share. Where the
    calling thread has had to sleep for a good part of several runs, it tries some runs alone, and stays alone for a
    while where that is faster; then the helpers get another chance. Nothing of this happens on CPUs that are free, and
    results do not depend on it.

    Attributes:
        alone: whether the next run is for the calling thread alone.
    """

    __slots__ = ("_alone_seconds", "_left", "_pause", "_stay", "_strikes", "_team_seconds", "_trial", "alone")

    def __init__(self) -> None:
        self.alone = False
        self._strikes = 0
        self._trial = False
        self._left = 0
        self._stay = _LEAST
        self._pause = _LEAST
        self._team_seconds = 0.0
        self._alone_seconds = 0.0

    def report(self, seconds: float, waited: float) -> None:
        """Takes in how long a run took.

        Args:
            seconds: the whole run.
            waited: for how long of it the calling thread slept; 0 for a run alone.
        """
        if self.alone:
            self._after_alone(seconds)
        elif waited <= _HELD_UP * seconds:
            if self._strikes > 0:
                self._strikes -= 1
        else:
            if self._strikes <= 0:
                self._team_seconds = 0.0
            self._strikes += 1
            if self._strikes > 0:
                self._team_seconds += seconds
            if self._strikes >= _STRIKES:
                self.alone = self._trial = True
                self._left, self._alone_seconds = _STRIKES, 0.0

    def _after_alone(self, seconds: float) -> None:
        self._left -= 1
        if self._trial:
            self._alone_seconds += seconds
        if self._left > 0:
            return
        if not self._trial:
            self.alone, self._strikes = False, 0
            return
        self._trial = False
        if self._alone_seconds < self._team_seconds:
            self._left, self._stay = self._stay, min(2 * self._stay, _MOST)
            self._pause = _LEAST
        else:
            # Waiting was no loss: it takes more of it until the next trial.
            self.alone, self._strikes = False, -self._pause
            self._pause, self._stay = min(2 * self._pause, _MOST), _LEAST
