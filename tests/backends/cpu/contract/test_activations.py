"""The vector forms of exp, the logistic function and tanh against NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import activations
from dhc.backends.cpu.llvm.builder import Function, Module, Value
from dhc.backends.cpu.llvm.loader import LoadedObject
from tests.support.cpu_targets import ALL_TARGETS, RUNNABLE

FUNCTIONS: dict[
    str, tuple[Callable[[Function, Value], Value], Callable[[np.ndarray], np.ndarray], tuple[float, float]]
] = {
    "erf": (activations.erf, np.vectorize(math.erf), (-6.0, 6.0)),
    "whole exp": (activations.exp, np.exp, (-87.0, 88.7)),
    "exp": (activations.exp_of_difference, np.exp, (-86.0, 0.0)),
    "logistic": (activations.logistic_divisor, lambda x: 1 + np.exp(-x), (-30.0, 80.0)),
    "sigmoid": (activations.one_plus_exp_of_minus, lambda x: 1 + np.exp(-x), (-39.0, 80.0)),
    "tanh": (activations.tanh, np.tanh, (-20.0, 20.0)),
}


def emitted(function: Callable[[Function, Value], Value], target: targets.CpuTarget) -> str:
    lanes = target.lanes("f32")
    module = Module(target, "dhc_test")
    f = module.kernel("dhc_test")
    x, y = f.pointer_argument(0), f.pointer_argument(1)
    with f.loop(0, f.parameter(0), lanes) as i:
        f.store(function(f, f.load(f"<{lanes} x float>", f.at(x, i * 4), 4)), f.at(y, i * 4), 4)
    f.ret(0)
    return module.text()


def evaluate(name: str, cpu: str, x: np.ndarray) -> np.ndarray:
    target = targets.target(cpu)
    kernel = LoadedObject(targets.compile_ir(emitted(FUNCTIONS[name][0], target), target)).kernel("dhc_test")
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    assert kernel.run(kernel.bind([x.ctypes.data, y.ctypes.data], [x.size]), 0, 1) == 0
    return y


@pytest.mark.parametrize("cpu", RUNNABLE)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_few_units(cpu: str, name: str) -> None:
    low, high = FUNCTIONS[name][2]
    x = np.concatenate([np.linspace(low, high, 65520), np.geomspace(1e-30, 1e-3, 16) * (1 if high else -1)])
    x = x.astype(np.float32)
    wanted = FUNCTIONS[name][1](x.astype(np.float64))
    found = evaluate(name, cpu, x)
    assert np.abs(found / wanted - 1).max() < (2 if "exp" in name else 6) * 2.0**-23


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name: str) -> None:
    x = np.zeros(16, np.float32)
    x[:4] = [np.nan, -np.inf, -1000.0, 0.0]
    found = evaluate(name, RUNNABLE[-1], x)
    assert np.isnan(found[0]) and not np.isnan(found[1:]).any()
    if name == "exp":
        assert found[1] == 0 and found[2] == 0 and found[3] == 1
    if name == "tanh":
        np.testing.assert_allclose(found[1:4], [-1, -1, 0], rtol=2e-7)


@pytest.mark.parametrize("cpu", ALL_TARGETS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_target_has_code(cpu: str, name: str) -> None:
    target = targets.target(cpu)
    assert len(targets.compile_ir(emitted(FUNCTIONS[name][0], target), target)) > 0


def test_exp_has_denormals_and_infinity() -> None:
    x = np.array([-104.5, -100.0, -95.5, -88.0, 88.6, 89.5, np.inf, -np.inf] * 2, np.float32)
    with np.errstate(over="ignore"):
        wanted = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(evaluate("whole exp", RUNNABLE[-1], x), wanted, rtol=3e-7, atol=3e-45)
