"""The small transforms of Winograd's minimal filtering, ``m`` x ``m`` outputs of a 3x3 window at a time.

In one dimension ``m`` outputs of a 3-tap filter are ``A^T [(G g) * (B^T d)]`` for the taps ``g`` and ``m + 2`` inputs
``d``: polynomial products, evaluated at ``m + 1`` points and at infinity. In two dimensions each transform is applied
to both axes. S. Winograd, Arithmetic Complexity of Computations (1980); A. Lavin, S. Gray, Fast Algorithms for
Convolutional Neural Networks (2016).

The points are symmetric (0, +-a, +-b), so that a pair shares its products. For ``m = 4`` they are 0, +-sqrt(1/2),
+-sqrt(2): with a * b = 1 the entries of the matrices lie nearer to 1 than for the usual 0, +-1, +-2, and rounding
errors are a quarter of theirs. For ``m = 6`` they are 0, +-1/2, +-1, +-2, which magnify errors least: ten times as much
as those of ``m = 4``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dhc.backends.cpu.llvm.builder import Function, Value

if TYPE_CHECKING:
    import numpy as np

TILES = (2, 4, 6)
"""Sizes of output tiles that there are transforms for."""

_POINTS = {2: (1.0,), 4: (math.sqrt(0.5), math.sqrt(2.0)), 6: (0.5, 1.0, 2.0)}
_TAPS = 3


def matrices(m: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``A^T`` [m, m + 2], ``G`` [m + 2, 3] and ``B^T`` [m + 2, m + 2] in float64."""
    import numpy as np

    points = [0.0] + [sign * p for p in _POINTS[m] for sign in (1.0, -1.0)]
    size = m + 2
    outputs, taps, inputs = np.zeros((m, size)), np.zeros((size, _TAPS)), np.zeros((size, size))
    for row, p in enumerate(points):
        others = [q for q in points if q != p]
        outputs[:, row] = [p**i for i in range(m)]
        taps[row] = [p**i / math.prod(p - q for q in others) for i in range(_TAPS)]
        inputs[row, : size - 1] = np.poly(others)[::-1]
    outputs[m - 1, -1] = 1.0
    taps[-1, -1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    return outputs, taps, inputs


def transformed_weights(m: int, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``G g G^T`` of weights ``[3, 3, ...]``: ``[(m + 2)^2, ...]``, computed in float64 and rounded once.

    Element by element in a fixed order: a library's matrix product would differ in last bits from machine to machine,
    and with it the artifact.
    """
    import numpy as np

    taps = matrices(m)[1]

    def along(axis: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        rows = []
        for coefficients in taps:
            total = None
            for coefficient, values in zip(coefficients, axis, strict=True):
                if coefficient:
                    term = values * coefficient
                    total = term if total is None else np.add(total, term, out=total)
            assert total is not None
            rows.append(total)
        return rows

    wide = weights.astype(np.float64)
    result = np.empty(((m + 2) ** 2, *weights.shape[2:]), weights.dtype)
    for i, row in enumerate(along(list(wide))):
        for j, values in enumerate(along(list(row))):
            result[i * (m + 2) + j] = values
    return result


def amplification(m: int) -> float:
    """How much more than a plain sum the transforms can magnify a rounding error, relative to ``max|d| * sum|g|``.

    The largest ``|A^T| (|G| |g| * |B^T| |d|)`` for ``|d| <= 1`` and ``sum|g| = 1``, squared for two dimensions; it does
    not depend on data. 6 x 6 tiles: 1565, 4 x 4: 157, 2 x 2: 16. Errors of typical data are far below the bound.
    """
    outputs, taps, inputs = (abs(matrix) for matrix in matrices(m))
    return float((outputs @ (taps * inputs.sum(axis=1)[:, None])).max()) ** 2


def error_bound(m: int, terms: int) -> float:
    """Bound of a result's error in float32 relative to ``max|input| * sum|weights|`` of its output channel.

    Args:
        m: size of the output tiles.
        terms: length of the sums in the transformed domain: input channels of a group, times taps in z.
    """
    # A sum of n products has at most n roundings; a transform of one dimension at most 4 (5 for 6 outputs), and there
    # are 2 of the inputs and 2 of the outputs; the transformed weights are rounded once; bias and store twice more.
    return amplification(m) * (terms + 4 * (4 if m < 6 else 5) + 3) * 2.0**-24


def emit_inputs(f: Function, m: int, values: Sequence[Value]) -> list[Value]:
    """Writes ``B^T`` times ``m + 2`` vectors: the transform of inputs along one axis."""
    type_ = values[0].type

    def times(value: Value, factor: float, addend: Value) -> Value:
        if factor in (1.0, -1.0):
            return f.binary("fadd", addend, value) if factor > 0 else f.binary("fsub", addend, value)
        return f.fma(value, f.constant(factor, type_), addend)

    def combined(coefficients: Sequence[float], terms: Sequence[Value]) -> Value:
        """The sum of coefficients times every other value; the last coefficient is 1."""
        total = terms[2 * len(coefficients) - 2]
        for coefficient, value in zip(coefficients[:-1], terms[::2], strict=False):
            total = times(value, coefficient, total)
        return total

    squares = [p * p for p in _POINTS[m]]
    middle = []
    for p in _POINTS[m]:
        # Even and odd parts of the rows of +-p: what the other pairs' points leave.
        others = _with_roots([square for square in squares if square != p * p])
        even, odd = combined(others, values[2:]), combined(others, values[1:])
        middle += [times(odd, sign * p, even) for sign in (1.0, -1.0)]
    every = _with_roots(squares)
    return [combined(every, values), *middle, combined(every, values[1:])]


def emit_outputs(f: Function, m: int, values: Sequence[Value]) -> list[Value]:
    """Writes ``A^T`` times ``m + 2`` vectors: the transform of products along one axis."""
    type_ = values[0].type
    sums, differences = [], []
    for i in range(1, m, 2):
        sums.append(f.binary("fadd", values[i], values[i + 1]))
        differences.append(f.binary("fsub", values[i], values[i + 1]))
    results = []
    for power in range(m):
        parts = differences if power % 2 else sums
        total = values[0] if power == 0 else None
        for p, part in zip(_POINTS[m], parts, strict=True):
            factor = _clean(p**power)
            if total is None:
                total = part if factor == 1.0 else f.binary("fmul", part, f.constant(factor, type_))
            elif factor == 1.0:
                total = f.binary("fadd", total, part)
            else:
                total = f.fma(part, f.constant(factor, type_), total)
        assert total is not None
        results.append(f.binary("fadd", total, values[-1]) if power == m - 1 else total)
    return results


def _with_roots(roots: Sequence[float]) -> list[float]:
    """Coefficients of the polynomial with these roots, that of the highest power (1) last."""
    coefficients = [1.0]
    for root in roots:
        shifted = [0.0, *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, 0.0], strict=True)]
    return [_clean(coefficient) for coefficient in coefficients]


def _clean(value: float) -> float:
    """Products of square roots that should be whole numbers."""
    return round(value) if abs(value - round(value)) < 1e-12 else value
