"""The counter-based generator against the published test vectors, and the distributions that are made of it."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from dhc.errors import ShapeError, TypeMismatchError
from dhc.ir.ops.random import philox_4x32_10
from tests.ir.single_op import run_op

# Salmon et al., SC'11, known answers of philox4x32 with 10 rounds: counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(w, 16) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_known_answers(counter: str, key: str, result: str) -> None:
    c, k = _words(counter), _words(key)
    got = philox_4x32_10((c[0], c[1], c[2], c[3]), (k[0], k[1]))
    assert [int(w) for w in got] == _words(result)


def test_layout_of_the_stream() -> None:
    bits = run_op("random_bits", shape=(3, 3), seed=9, stream=4)
    assert bits.dtype == np.uint32
    blocks = [philox_4x32_10((n, 0, 0, 0), (9, 4)) for n in range(3)]
    assert bits.reshape(-1).tolist() == [int(w) for block in blocks for w in block][:9]
    longer = run_op("random_bits", shape=(50,), seed=9, stream=4)
    np.testing.assert_array_equal(longer[:9], bits.reshape(-1))
    assert (run_op("random_bits", shape=(9,), seed=9, stream=5) != longer[:9]).any()


def test_uniform_follows_its_formula() -> None:
    bits = run_op("random_bits", shape=(2000,), seed=1)
    got = run_op("random_uniform", shape=(2000,), seed=1)
    assert got.tolist() == [int(b) // 2**8 / 2**24 for b in bits]
    double = run_op("random_uniform", shape=(1000,), dtype="f64", seed=1)
    pairs = bits.reshape(-1, 2).tolist()
    assert double.tolist() == [((low + (high << 32)) >> 11) / 2**53 for low, high in pairs]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_uniform_never_reaches_the_upper_bound(dtype: str) -> None:
    got = run_op("random_uniform", shape=(20000,), dtype=dtype, low=1.0, high=2.0, seed=5).astype(np.float64)
    assert got.min() >= 1 and got.max() < 2
    assert abs(got.mean() - 1.5) < 0.02
    tight = run_op("random_uniform", shape=(500,), dtype=dtype, low=-1.0, high=-0.999, seed=5).astype(np.float64)
    assert tight.min() >= -1 and tight.max() < -0.999


def test_uniform_fills_its_range_evenly() -> None:
    counts, _ = np.histogram(run_op("random_uniform", shape=(100_000,), seed=11), bins=100, range=(0, 1))
    chi_squared = float(np.sum((counts - 1000.0) ** 2 / 1000))
    assert 60 < chi_squared < 145  # 99 degrees of freedom: outside with a probability below 0.003


def test_normal_follows_box_and_muller() -> None:
    bits = run_op("random_bits", shape=(2000,), seed=2).reshape(-1, 2).tolist()
    got = run_op("random_normal", shape=(1000,), seed=2, mean=3.0, std=2.0)
    wanted = []
    for first, second in bits:
        u1, u2 = (first // 2**8 + 1) / 2**24, second // 2**8 / 2**24
        wanted.append(3 + 2 * math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5)


def test_normal_has_the_distribution() -> None:
    for dtype in ("f32", "f64"):
        x = np.sort(run_op("random_normal", shape=(50_000,), dtype=dtype, seed=4).astype(np.float64))
        expected = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
        distance = np.max(np.abs(expected - (np.arange(len(x)) + 0.5) / len(x)))
        assert distance < 1.63 / math.sqrt(len(x))  # Kolmogorov-Smirnov, level 1 %


def test_half_floats_are_the_rounded_f32_numbers() -> None:
    wide = run_op("random_normal", shape=(64,), seed=8)
    np.testing.assert_array_equal(run_op("random_normal", shape=(64,), dtype="f16", seed=8), wide.astype(np.float16))
    narrow = run_op("random_normal", shape=(64,), dtype="bf16", seed=8)
    np.testing.assert_array_equal(narrow, wide.astype(ml_dtypes.bfloat16))


def test_wrong_attributes_are_refused() -> None:
    with pytest.raises(ShapeError, match="seed"):
        run_op("random_bits", shape=(1,), seed=-1)
    with pytest.raises(ShapeError, match="above high"):
        run_op("random_uniform", shape=(1,), low=2.0, high=1.0)
    with pytest.raises(TypeMismatchError, match="draw f32 and cast"):
        run_op("random_normal", shape=(1,), dtype="i32")
