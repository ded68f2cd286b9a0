"""Runs on several threads, whose results must not depend on their number."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np


def run_kernel(kernel: Any, bound: Any, nthreads: int) -> None:
    """Runs a loaded kernel on bound arguments, as the runtime does; every thread must succeed."""
    status: list[int | None] = [None] * nthreads

    def work(tid: int) -> None:
        status[tid] = kernel.run(bound, tid, nthreads)

    if nthreads == 1:
        work(0)
    else:
        threads = [threading.Thread(target=work, args=(tid,)) for tid in range(nthreads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert status == [0] * nthreads


def check_artifact(
    artifact: Any,
    inputs: dict[str, np.ndarray],
    wanted: np.ndarray,
    rtol: float,
    atol: float,
    threads: tuple[int, ...] = (1, 2, 7),
) -> None:
    """The only output is close to what is wanted, and bit-equal for any number of threads."""
    first: bytes | None = None
    for count in threads:
        with artifact.session(threads=count) as session:
            (found,) = session.run(inputs).values()
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
        assert first in (None, found.tobytes()), f"{count} threads change the result"
        first = found.tobytes()
