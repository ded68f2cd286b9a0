"""Elementary functions against Python's `math`, roundings against its exact rules, activations against onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.ir.single_op import run_onnx, run_op

REAL = np.linspace(-4, 4, 41)
UNIT = np.linspace(-1, 1, 41)
POSITIVE = np.geomspace(1e-6, 1e6, 41)

FUNCTIONS: list[tuple[str, Callable[[float], float], np.ndarray]] = [
    ("exp", math.exp, REAL), ("expm1", math.expm1, REAL), ("log", math.log, POSITIVE), ("log1p", math.log1p, POSITIVE),
    ("sqrt", math.sqrt, POSITIVE), ("rsqrt", lambda x: 1 / math.sqrt(x), POSITIVE), ("sin", math.sin, REAL),
    ("cos", math.cos, REAL), ("tan", math.tan, REAL), ("asin", math.asin, UNIT), ("acos", math.acos, UNIT),
    ("atan", math.atan, REAL), ("sinh", math.sinh, REAL), ("cosh", math.cosh, REAL), ("tanh", math.tanh, REAL),
    ("asinh", math.asinh, REAL), ("acosh", math.acosh, POSITIVE + 1), ("atanh", math.atanh, UNIT * 0.99),
    ("erf", math.erf, REAL),
]  # fmt: skip


@pytest.mark.parametrize(("name", "truth", "at"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_functions(name: str, truth: Callable[[float], float], at: np.ndarray, dtype: type) -> None:
    small = dtype == np.float16 and at.max() > 1e5
    x = (np.linspace(1.5, 60, 41) if small else at).astype(dtype)
    got = run_op(name, x)
    assert got.dtype == dtype
    wanted = np.array([truth(float(v)) for v in x])
    tolerance = {np.float64: 4e-16, np.float32: 4e-7, np.float16: 5e-4}[dtype]
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=4 * tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "truth"), [("floor", math.floor), ("ceil", math.ceil), ("trunc", math.trunc), ("round", round)]
)
def test_roundings(name: str, truth: Callable[[float], int]) -> None:
    x = np.array([-2.5, -1.5, -0.5, -0.4, 0.0, 0.5, 1.5, 2.5, 3.49, 1e20])
    np.testing.assert_array_equal(run_op(name, x), [float(truth(v)) for v in x])
    np.testing.assert_array_equal(run_op(name, np.array([np.inf, -np.inf])), [np.inf, -np.inf])
    assert np.isnan(run_op(name, np.array([np.nan]))).all()


ACTIVATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("relu", "Relu", {}), ("leaky_relu", "LeakyRelu", {"alpha": 0.2}), ("elu", "Elu", {"alpha": 0.7}),
    ("selu", "Selu", {}), ("celu", "Celu", {"alpha": 1.5}), ("gelu", "Gelu", {}),
    ("gelu", "Gelu", {"approximate": "tanh"}), ("sigmoid", "Sigmoid", {}),
    ("hard_sigmoid", "HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("hard_sigmoid", "HardSigmoid", {}),
    ("hard_swish", "HardSwish", {}), ("softplus", "Softplus", {}), ("softsign", "Softsign", {}), ("mish", "Mish", {}),
    ("thresholded_relu", "ThresholdedRelu", {"alpha": 0.8}), ("sign", "Sign", {}), ("erf", "Erf", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "onnx", "attrs"), ACTIVATIONS, ids=lambda v: v if isinstance(v, str) else None)
def test_activations_against_onnxruntime(name: str, onnx: str, attrs: dict[str, Any]) -> None:
    x = np.concatenate([np.linspace(-9, 9, 200), [0.0, 40, -40]]).astype(np.float32)
    np.testing.assert_allclose(run_op(name, x, **attrs), run_onnx(onnx, [x], **attrs)[0], rtol=3e-6, atol=3e-6)


def test_silu() -> None:
    x = np.linspace(-30, 30, 121)
    np.testing.assert_allclose(run_op("silu", x), [v / (1 + math.exp(-v)) for v in x], rtol=1e-14)


@pytest.mark.parametrize("name", sorted({a[0] for a in ACTIVATIONS} | {"silu"}))
def test_nan_stays_nan_and_large_numbers_do_not_overflow(name: str) -> None:
    x = np.float32([np.nan, 1e4, -1e4])
    got = run_op(name, x)
    assert np.isnan(got[0])
    assert np.isfinite(got[1:]).all()


def test_relu_of_integers() -> None:
    np.testing.assert_array_equal(run_op("relu", np.int8([-128, -1, 0, 5])), [0, 0, 0, 5])
