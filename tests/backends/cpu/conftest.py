"""Small graphs run on all threads here: the runtime would otherwise keep them on one, and tests would see nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dhc_runtime import native_segment


@pytest.fixture(autouse=True, scope="session")
def _every_segment_is_shared_among_threads() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(native_segment, "SERIAL_NANOSECONDS", 0)
    yield
    patch.undo()
