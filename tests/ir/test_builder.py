"""Constants of the builder keep what they are given; symbols that graphs make up are new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc
from dhc.errors import DhcError, TypeMismatchError
from dhc.ir import Builder, Graph, Location
from dhc.ir.symbols import parse_dim
from dhc.ir.verifier import verify


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (2**70, None, "neither a number nor a string"),
        ([1, None], None, "neither a number nor a string"),
        ([[1, 2], [3]], None, "inhomogeneous"),
        (300, "u8", "300 does not fit u8"),
        (-1, "u64", "-1 does not fit u64"),
        (3.7, "i32", "3.7 is no i32"),
        (float("nan"), "i64", "nan is no i64"),
        (np.array([100], np.int8), "i4", "does not fit i4"),
        (b"x", "f32", "could not convert"),
    ],
)
def test_a_constant_that_would_lose_something_is_refused(value: Any, dtype: str | None, message: str) -> None:
    with pytest.raises(TypeMismatchError, match=message) as caught:
        dhc.ops.constant(Graph(), value, dtype)
    assert "test_builder.py" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [(7, "i4", 7), (0.1, "f16", np.float16(0.1)), (True, "f32", 1.0), (255, "u8", 255), (np.int64(300), "u8", 44)],
)
def test_a_constant_that_fits(value: Any, dtype: str, wanted: Any) -> None:
    constant = Builder(Graph(), Location("here")).constant(value, dtype)
    assert constant.dtype.name == dtype
    assert constant.producer is not None
    assert constant.producer.attrs["value"] == wanted


def test_a_number_without_a_float_is_no_attribute() -> None:
    x = Graph().input("x")
    with pytest.raises(DhcError, match="attribute 'alpha' of leaky_relu"):
        dhc.ops.leaky_relu(x, alpha=10**400)


def test_made_up_symbols_are_none_that_a_node_was_given() -> None:
    graph = Graph()
    x = graph.input("x", "f32", ["N"])
    first, second = dhc.ops.nonzero(x, count="u0"), dhc.ops.nonzero(x * 2)
    graph.output(first, second, names=["first", "second"])
    verify(graph)
    assert first.shape != second.shape


@pytest.mark.parametrize("text", ["4//0", "N//0", "N%0", "floordiv(N, 0)", "mod(3, 0)", "ceildiv(3, 0)"])
def test_sizes_are_not_divided_by_zero(text: str) -> None:
    with pytest.raises(ValueError, match="division by zero at column"):
        parse_dim(text)
