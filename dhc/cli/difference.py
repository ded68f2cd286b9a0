"""How far two answers are apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tolerance:
    """``max |a - b| <= absolute + relative * max |b|`` counts as equal."""

    relative: float = 1e-4
    absolute: float = 1e-6


@dataclass(frozen=True)
class Difference:
    """Two arrays compared.

    Attributes:
        name: the tensor.
        node: where it is made in the model.
        max_abs: largest absolute difference.
        max_rel: largest difference relative to the element of the second array (where that is not 0).
        sqnr: signal to noise in dB, the second array being the signal; infinite where both are equal.
        scale: largest absolute value of the second array.
        ok: within the tolerance.
        note: what else differs: shape, element type, NaN.
    """

    name: str
    node: str
    max_abs: float
    max_rel: float
    sqnr: float
    scale: float
    ok: bool
    note: str = ""

    def data(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def difference(name: str, node: str, a: Array, b: Array, tolerance: Tolerance) -> Difference:
    """Compares an array with the one that is taken as right."""
    a, b = np.asarray(a), np.asarray(b)
    infinite = math.inf
    if a.shape != b.shape:
        note = f"shape {list(a.shape)} and {list(b.shape)}"
        return Difference(name, node, infinite, infinite, -infinite, infinite, False, note)
    note = "" if a.dtype == b.dtype else f"dtype {a.dtype} and {b.dtype}"
    if a.size == 0:
        return Difference(name, node, 0.0, 0.0, infinite, 0.0, not note, note)
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    with np.errstate(all="ignore"):
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        distance = np.where(same, 0.0, np.abs(x - y))
        lost = np.isnan(distance)  # NaN on one side alone, or infinities of different signs
        distance = np.where(lost, infinite, distance)
        magnitude = np.where(np.isfinite(y), np.abs(y), 0.0)
        relative = np.where(distance == 0, 0.0, distance / np.where(magnitude == 0, np.nan, magnitude))
        noise, signal = float(np.sum(distance**2)), float(np.sum(magnitude**2))
    max_abs, scale = float(distance.max()), float(magnitude.max())
    finite = relative[~np.isnan(relative)]
    max_rel = float(finite.max()) if finite.size else 0.0
    sqnr = (
        infinite
        if noise == 0
        else -infinite
        if signal == 0
        else 10 * math.log10(signal / noise)
        if noise < infinite
        else -infinite
    )
    if np.any(lost):
        note = (note + "; " if note else "") + f"{int(np.count_nonzero(lost))} not finite on one side"
    ok = max_abs <= tolerance.absolute + tolerance.relative * scale and not note
    return Difference(name, node, max_abs, max_rel, sqnr, scale, ok, note)
