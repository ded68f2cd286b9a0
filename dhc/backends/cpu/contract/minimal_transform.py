"""The small transforms of minimal filtering: ``m`` outputs of a window of ``k`` taps by ``m + k - 1`` products.

In one dimension the outputs are ``A^T [(G g) * (B^T d)]`` for the taps ``g`` and ``m + k - 1`` inputs ``d``: polynomial
products, evaluated at points and at infinity (A. Toom 1963, S. Cook 1966; S. Winograd, Arithmetic Complexity of
Computations, 1980). In two dimensions each transform is applied to both axes. The matrix of the inputs depends on the
size ``m + k - 1`` alone.

The points are 0, pairs ``+-p``, which share their products, and a single one where the size is odd; size 1 is a single
tap, of which nothing is transformed. They are those that magnify errors least among multiples of 1/8, whose matrices
are nearly free of rounding; of the size 6 two pairs with a product of 1 (see :mod:`.winograd_transform`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.llvm.builder import Function, Value

if TYPE_CHECKING:
    import numpy as np

_PAIRS: dict[int, tuple[float, ...]] = {
    1: (),
    4: (1.0,),
    6: (math.sqrt(0.5), math.sqrt(2.0)),
    7: (0.875, 1.875),
    8: (0.5, 1.0, 2.0),
    10: (0.5, 0.875, 1.125, 2.25),
}
_SINGLE = {7: 0.375}
SIZES = tuple(_PAIRS)
"""Numbers of inputs that there are transforms for."""


def _points(size: int) -> list[float]:
    """All points but infinity, in the order of the matrices' rows."""
    single = [_SINGLE[size]] if size in _SINGLE else []
    return [0.0, *(sign * p for p in _PAIRS[size] for sign in (1.0, -1.0)), *single]


def _coefficients(roots: Sequence[float]) -> list[float]:
    """Coefficients of the product of ``x - root``, lowest first; the last is 1."""
    found = [1.0]
    for root in roots:
        found = [low - root * high for low, high in zip([0.0, *found], [*found, 0.0], strict=True)]
    return [_clean(value) for value in found]


def _clean(value: float) -> float:
    """Products of square roots that should be short numbers."""
    near = round(value * 4096) / 4096  # squares of eighths have 12 bits behind the point
    return near if abs(value - near) < 1e-13 else value


def matrices(m: int, k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``A^T`` [m, n], ``G`` [n, k] and ``B^T`` [n, n] in float64, where ``n = m + k - 1``."""
    import numpy as np

    size = m + k - 1
    if size == 1:
        return np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1))
    points = _points(size)
    outputs, taps, inputs = np.zeros((m, size)), np.zeros((size, k)), np.zeros((size, size))
    for row, p in enumerate(points):
        others = [q for q in points if q != p]
        outputs[:, row] = [p**i for i in range(m)]
        taps[row] = [p**i / math.prod(p - q for q in others) for i in range(k)]
        inputs[row, : size - 1] = np.poly(others)[::-1]
    outputs[m - 1, -1] = 1.0
    taps[-1, -1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    return outputs, taps, inputs


def transformed_weights(
    weights: np.ndarray[Any, Any], rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray[Any, Any]:
    """``G_y g G_x^T`` of weights ``[ky, kx, ...]``: ``[n_y * n_x, ...]``, computed in float64 and rounded once.

    Element by element in a fixed order: a library's matrix product would differ in last bits from machine to machine,
    and with it the artifact.

    Args:
        weights: the taps first.
        rows: ``(m, k)`` of the y axis.
        columns: of the x axis.
    """
    import numpy as np

    def along(matrix: np.ndarray[Any, Any], axis: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        found = []
        for coefficients in matrix:
            total = np.zeros_like(axis[0])
            for coefficient, values in zip(coefficients, axis, strict=True):
                if coefficient:
                    total += values * coefficient
            found.append(total)
        return found

    of_y, of_x = matrices(*rows)[1], matrices(*columns)[1]
    result = np.empty((len(of_y) * len(of_x), *weights.shape[2:]), weights.dtype)
    for i, row in enumerate(along(of_y, list(weights.astype(np.float64)))):
        for j, values in enumerate(along(of_x, list(row))):
            result[i * len(of_x) + j] = values
    return result


def amplification(m: int, k: int) -> float:
    """How much more than a plain sum the transforms of one axis can magnify a rounding error.

    Relative to ``max|d| * sum|g|``: the largest ``|A^T| (|G| |g| * |B^T| |d|)`` for ``|d| <= 1`` and ``sum|g| = 1``. It
    depends on ``m + k`` alone: 4, 12.5, 28, 40 and 136 for 4, 6, 7, 8 and 10 inputs.
    """
    outputs, taps, inputs = (abs(matrix) for matrix in matrices(m, k))
    return float((outputs @ (taps * inputs.sum(axis=1)[:, None])).max())


def error_bound(rows: tuple[int, int], columns: tuple[int, int], terms: int) -> float:
    """Bound of a result's error in float32 relative to ``max|input| * sum|weights|`` of its output channel.

    Args:
        rows: ``(m, k)`` of the y axis.
        columns: of the x axis.
        terms: length of the sums in the transformed domain.
    """
    # A sum of n products has at most n roundings; the transforms of an axis have at most one for each two inputs (for
    # each where their number is odd) and two for what joins pairs, of the inputs as of the outputs; the transformed
    # weights are rounded once; bias and store twice more.
    sizes = [m + k - 1 for m, k in (rows, columns) if m + k > 2]
    steps = sum(2 * (size // (1 if size in _SINGLE else 2) + 2) for size in sizes)
    return amplification(*rows) * amplification(*columns) * (terms + steps + 3) * 2.0**-24


def _times(f: Function, value: Value, factor: float, addend: Value) -> Value:
    if factor in (1.0, -1.0):
        return f.binary("fadd", addend, value) if factor > 0 else f.binary("fsub", addend, value)
    return f.fma(value, f.constant(factor, value.type), addend)


def _combined(f: Function, values: Sequence[Value], factors: Sequence[float]) -> Value:
    """The sum of values times factors, of which the last is 1."""
    total = values[-1]
    for value, factor in zip(values[:-1], factors[:-1], strict=True):
        if factor:
            total = _times(f, value, factor, total)
    return total


def emit_inputs(f: Function, values: Sequence[Value]) -> list[Value]:
    """Writes ``B^T`` times as many vectors as the size: the transform of inputs along one axis."""
    size = len(values)
    if size == 1:
        return list(values)
    points = _points(size)
    rows = {0.0: _combined(f, values[: size - 1], _coefficients(points[1:]))}
    for p in _PAIRS[size]:
        # The polynomial of the other points, times x + p and x - p.
        others = _coefficients([q for q in points if abs(q) != p])
        low, high = _combined(f, values[: size - 2], others), _combined(f, values[1 : size - 1], others)
        rows[p], rows[-p] = (_times(f, low, sign * p, high) for sign in (1.0, -1.0))
    if size in _SINGLE:
        rows[_SINGLE[size]] = _combined(f, values[: size - 1], _coefficients(points[:-1]))
    return [*(rows[p] for p in points), _combined(f, values, _coefficients(points))]


def emit_outputs(f: Function, m: int, values: Sequence[Value]) -> list[Value]:
    """Writes ``A^T`` times as many vectors as the size: the transform of products along one axis to ``m`` outputs."""
    size, type_ = len(values), values[0].type
    if size == 1:
        return list(values)
    pairs = [(values[2 * i + 1], values[2 * i + 2]) for i in range(len(_PAIRS[size]))]
    sums = [f.binary("fadd", *pair) for pair in pairs]
    differences = [f.binary("fsub", *pair) for pair in pairs] if m > 1 else []
    results = []
    for power in range(m):
        parts = list(zip(_PAIRS[size], differences if power % 2 else sums, strict=True))
        if size in _SINGLE:
            parts.append((_SINGLE[size], values[-2]))
        total = values[0] if power == 0 else None
        for p, part in parts:
            factor = _clean(p**power)
            if total is not None:
                total = _times(f, part, factor, total)
            else:
                total = part if factor == 1.0 else f.binary("fmul", part, f.constant(factor, type_))
        assert total is not None
        results.append(f.binary("fadd", total, values[-1]) if power == m - 1 else total)
    return results
