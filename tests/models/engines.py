"""The two engines that are compared: compiled artifacts in the runtime, and onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import dhc_runtime

import dhc

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest output."""


def compiled(model: Path | bytes, folder: Path, threads: int = 2, **shapes: Any) -> dhc_runtime.Session:
    """A model imported, compiled for this CPU, saved, and loaded from the file."""
    name = model.stem if isinstance(model, Path) else "model"
    path = folder / f"{name}.dhc"
    dhc.compile(dhc.load_onnx(model, **shapes), targets=["cpu"]).save(path)
    return dhc_runtime.load(path, threads=threads)


def outputs_of(session: Any, x: np.ndarray) -> list[np.ndarray]:
    """All outputs of a session of either engine for its only input."""
    if isinstance(session, dhc_runtime.Session):
        return list(session.run({session.inputs[0].name: x}).values())
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def relative_difference(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value wanted."""
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    assert np.isfinite(wanted).all(), "the reference has values without meaning"
    largest = float(np.abs(wanted).max())
    assert largest > 0, "a reference of zeros proves nothing"
    return float(np.abs(actual.astype(np.float64) - wanted).max()) / largest


def assert_agree_quantized(actual: np.ndarray, wanted: np.ndarray) -> None:
    """Probabilities of an int8 model: equal up to sums that lie on a rounding boundary and may go either way.

    Such a sum moves an output by one of its 255 steps, and what follows it by a few; almost all elements are equal.
    """
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    difference = np.abs(actual.astype(np.float64) - wanted)
    assert float(difference.max()) <= 0.1
    assert float((difference > 1.01 / 255).mean()) <= 0.002


def assert_agree(actual: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Every output within the tolerance."""
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted):
        assert relative_difference(a, w) <= TOLERANCE
