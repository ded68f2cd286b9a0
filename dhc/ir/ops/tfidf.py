"""Counts of n-grams with skips, weighted: TF, IDF and TF-IDF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.dtypes import f32, i64
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.types import TensorType

MODES = ("tf", "idf", "tfidf")


def tfidf_kernel(x, grams, lengths, columns, weights, out, length, count, width, size, skips, mode, begin, end):  # type: ignore[no-untyped-def]
    """For each row: how often each n-gram occurs with 0 to `skips` tokens left out between any two of its tokens."""
    for row in range(begin, end):
        for column in range(size):
            out[row * size + column] = 0
        for gram in range(count):
            n = lengths[gram]
            if n < 1 or n > width:
                return 3
            found = 0
            for skip in range(skips + 1):
                if n == 1 and skip > 0:
                    continue  # a single token has nothing between
                for start in range(length - (n - 1) * (skip + 1)):
                    same = 1
                    for k in range(n):
                        if x[row * length + start + k * (skip + 1)] != grams[gram * width + k]:
                            same = 0
                            break
                    found = found + same
            if found > 0:
                column = columns[gram]
                if column < 0 or column >= size:
                    return 1
                if mode == 0:
                    out[row * size + column] += found
                elif mode == 1:
                    out[row * size + column] += weights[gram]
                else:
                    out[row * size + column] += found * weights[gram]
    return 0


def _type(call: Call) -> list[TensorType]:
    x, grams = call.types[:2]
    if x.rank not in (1, 2):
        call.fail("needs a vector of tokens or a matrix with one row for each text")
    require_rank(call, 1, 2)
    for index in (2, 3, 4):
        require_rank(call, index, 1)
        call.require(call.types[index].shape[0], grams.shape[0], "number of n-grams")
    return [TensorType(f32, (*x.shape[:-1], call.attrs.size))]


def _numbers(call: Call) -> list[Any]:
    x, grams = call.types[:2]
    attrs = call.attrs
    return [x.shape[-1], grams.shape[0], grams.shape[1], attrs.size, attrs.max_skip, MODES.index(attrs.mode)]


def _rows(call: Call) -> Any:
    return symbols.product(call.types[0].shape[:-1])


def _reference(call: Call, *arrays: Any) -> Any:
    out = np.zeros(call.results[0].shape, np.float32)
    flat = out.reshape(-1)
    kernel: Callable[..., int] = tfidf_kernel
    status = kernel(*(a.reshape(-1) for a in arrays), flat, *_numbers(call), 0, _rows(call))
    if status == 3:
        raise ValueError("the length of an n-gram is not between 1 and the columns of the table")
    if status:
        raise IndexError("an n-gram belongs to a column that the result does not have")
    return out


register(
    OpDef(
        name="tfidf",
        doc="Counts n-grams of tokens in each row and weights the counts.",
        operands=(
            Operand("x", frozenset({i64})),
            Operand("grams", frozenset({i64})),
            Operand("lengths", frozenset({i64})),
            Operand("columns", frozenset({i64})),
            Operand("weights", frozenset({f32})),
        ),
        attrs=(
            Attr("size", "int", doc="columns of the result"),
            Attr("max_skip", "int", 0, "how many tokens may be left out between two of an n-gram"),
            Attr("mode", "str", "tf", "count, weight where it occurs, or their product", MODES),
        ),
        infer=_type,
        reference=_reference,
        kind=Opaque(tfidf_kernel, args=_numbers, parallel=_rows, flat=True),
        grad=NotDifferentiable("counts of tokens have no derivative"),
        examples=lambda: [
            (
                [
                    np.array([[1, 2, 3, 1], [2, 2, 1, 2]]),
                    np.array([[2, 0], [1, 2], [2, 1]]),
                    np.array([1, 2, 2]),
                    np.array([0, 1, 3]),
                    np.array([1, 0.5, 2], np.float32),
                ],
                {"size": 4, "max_skip": 1, "mode": mode},
            )
            for mode in MODES
        ],
        source="ONNX TfIdfVectorizer",
    )
)
