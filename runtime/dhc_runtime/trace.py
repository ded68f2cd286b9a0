"""Times of single steps, as a list and as a trace for Perfetto or Chrome."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple

__all__ = ["StepTime", "chrome_trace"]


class StepTime(NamedTuple):
    """One executed step.

    Attributes:
        node: the place in the user's model.
        op: the operation.
        symbol: the compiled function.
        microseconds: how long it took.
        start: when it began, in microseconds since the run began.
    """

    node: str
    op: str
    symbol: str
    microseconds: float
    start: float


def chrome_trace(steps: Iterable[StepTime], threads: int) -> Dict[str, Any]:
    """The steps in the trace event format, which https://ui.perfetto.dev and chrome://tracing open.

    Args:
        steps: the steps of one run.
        threads: how many threads worked on each.
    """
    events: List[Dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "dhc"}}]
    for step in steps:
        events.append(
            {
                "name": step.op or step.symbol,
                "cat": "step",
                "ph": "X",
                "ts": step.start,
                "dur": step.microseconds,
                "pid": 1,
                "tid": 0,
                "args": {"node": step.node, "symbol": step.symbol, "threads": threads},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
