"""Compiled models are shared by the tests of this folder: each is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dhc_runtime

from tests.models.engines import compiled

Compiled = Callable[[str], dhc_runtime.Session]


@pytest.fixture(scope="session")
def compiled_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Gives the session of a model of the shared data by its name."""
    folder = tmp_path_factory.mktemp("compiled")
    sessions: dict[str, dhc_runtime.Session] = {}

    def get(name: str) -> dhc_runtime.Session:
        if name not in sessions:
            sessions[name] = compiled(shared_data / "models" / f"{name}.onnx", folder)
        return sessions[name]

    return get
